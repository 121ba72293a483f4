"""Sizes, durations and figures."""

from __future__ import annotations

import pytest

from builder.report.units import duration, figure, short, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (4_923_392, "4.7 MiB"),
        (5 * 1024**3, "5.0 GiB"),
        (3 * 1024**4, "3.0 TiB"),
    ],
)
def test_size(count: int, text: str) -> None:
    """No size reads 1024 of the smaller unit."""
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 s"),
        (0.52, "0.52 s"),
        (9.996, "10.0 s"),
        (59.97, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    """No duration reads 60 seconds or 60 minutes."""
    assert duration(seconds) == text


def test_figure_keeps_two_digits() -> None:
    """Small metrics stay readable."""
    assert [figure(value) for value in (0.0012345, 3.14e-9, 1.0)] == ["0.0012", "3.1e-09", "1"]


def test_short_is_a_beginning() -> None:
    """A short digest can be typed back in."""
    digest = "0123456789abcdef" * 4
    assert digest.startswith(short(digest))
    assert len(short(digest)) >= 6
