"""Rules and known-bad combinations as data: bounds of versions, rows of the table."""

from __future__ import annotations

import pytest

from builder.compat_rules import load_known_bad, load_rules, read_bounds, read_known_bad


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (">=10.8,<10.10", ["10.8", "10.9.0.34", "10.8.0.43"], ["10.10.0.31", "10.7", "11.0"]),
        ("10.13.3.9", ["10.13.3.9"], ["10.13.3.10", "10.13.0.35"]),
        ("!=10.13.3.9", ["10.13.3.10"], ["10.13.3.9"]),
        ("<=8.6", ["8.6.1.6", "8.5"], ["8.7", "10.0"]),
        (">8.6", ["10.0", "8.7"], ["8.6.1", "8.6"]),
    ],
)
def test_bounds(bounds: str, inside: list[str], outside: list[str]) -> None:
    read = read_bounds(bounds)
    assert [version for version in inside if not read.hold(version)] == []
    assert [version for version in outside if read.hold(version)] == []


def test_malformed_rows_are_noticed() -> None:
    row = {"id": "x", "verdict": "refuse", "text": "t", "source": "s"}
    for wrong in ({"tensorrt": "ten"}, {"verdict": "perhaps"}):
        with pytest.raises(ValueError):
            read_known_bad({**row, **wrong})
    with pytest.raises(TypeError):
        read_known_bad({**row, "gpus": "*"})


def test_every_known_bad_row_has_an_id_and_a_source() -> None:
    rows = load_known_bad()
    assert len({row.id for row in rows}) == len(rows) > 0
    assert all(row.source and row.text for row in rows)


def test_drivers_and_rules_are_data() -> None:
    assert load_rules().lowest_drivers[13] == "580.65.06"
    assert (8, 11) not in load_rules().version_compatible_across
