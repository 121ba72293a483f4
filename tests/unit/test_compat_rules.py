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


@pytest.mark.parametrize(
    ("meant", "not_meant"),
    [
        ({"tensorrt": "11.3.0.99", "jetson": True}, {"tensorrt": "11.4.1.8", "jetson": True}),
        ({"tensorrt": "11.4.0.106", "jetson": True}, {"tensorrt": "11.3.0.99"}),
        ({"tensorrt": "10.7.0.23", "sm": "12.0"}, {"tensorrt": "10.8.0.43", "sm": "12.0"}),
        ({"tensorrt": "8.6.1.6", "sm": "10.0"}, {"tensorrt": "8.6.1.6", "sm": "9.0"}),
        (
            {"sm": "12.1", "architecture": "arm64", "compatibility": "ampere_plus"},
            {"sm": "12.1", "architecture": "arm64", "compatibility": "ampere_plus", "tensorrt": "10.13.3.9"},
        ),
        (
            {"sm": "11.0", "architecture": "arm64", "compatibility": "same_compute_capability"},
            {"sm": "12.0", "architecture": "arm64", "compatibility": "same_compute_capability"},
        ),
        (
            {"tensorrt": "10.14.1.48", "sm": "12.0", "verified": False},
            {"tensorrt": "10.14.1.48", "sm": "12.0", "verified": True},
        ),
        (
            {"tensorrt": "11.1.0.106", "sm": "12.0", "verified": False},
            {"tensorrt": "11.2.1.2", "sm": "12.0", "verified": False},
        ),
    ],
)
def test_what_the_rows_mean(meant: dict[str, object], not_meant: dict[str, object]) -> None:
    usual: dict[str, object] = {
        "tensorrt": "10.16.1.11",
        "cuda": "12.8",
        "driver": "570.124.06",
        "sm": "8.6",
        "gpu": "NVIDIA A10",
        "compatibility": "none",
        "precision": "fp16",
        "architecture": "amd64",
        "jetson": False,
        "rtx": False,
        "version_compatible": False,
        "verified": True,
    }
    rows = load_known_bad()
    assert len([row.id for row in rows if row.matches(usual | meant)]) == 1
    assert [row.id for row in rows if row.matches(usual | not_meant)] == []
    assert [row.id for row in rows if row.matches(usual | meant | {"rtx": True})] in ([], ["tensorrt-11-on-jetson"])


def test_drivers_and_rules_are_data() -> None:
    assert load_rules().lowest_drivers[13] == "580.65.06"
    assert (8, 11) not in load_rules().version_compatible_across
