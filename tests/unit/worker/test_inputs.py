"""Shapes and values to verify with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from builder.worker.inputs import cases, make, outside_cases
from builder.worker.protocol import Profile, ShapeRange, StageFailure


def profile(name: str = "p", **inputs: ShapeRange) -> Profile:
    return Profile(name, inputs)


def test_inside_are_min_opt_max_and_the_further_shapes_each_once() -> None:
    found = cases([profile(x=ShapeRange((1, 4), (2, 4), (2, 4), ((3, 4), (1, 4))), y=ShapeRange((5,), (5,), (5,)))])
    assert [case.name for case in found] == ["p/min", "p/opt", "p/also0"]
    assert found[0].shapes == {"x": (1, 4), "y": (5,)}


def test_outside_is_one_step_beyond_one_axis_at_a_time() -> None:
    found = outside_cases([profile(x=ShapeRange((2, 4, 1), (4, 4, 2), (8, 4, 3)))])
    assert [(case.point, case.shapes["x"]) for case in found] == [
        ("above0", (9, 4, 1)),
        ("below0", (1, 4, 1)),
        ("above2", (2, 4, 4)),
    ]


def test_axes_that_inputs_share_move_together() -> None:
    found = outside_cases([profile(x=ShapeRange((1, 4), (2, 4), (3, 4)), y=ShapeRange((1, 7), (2, 7), (3, 7)))])
    assert [case.shapes for case in found] == [{"x": (4, 4), "y": (4, 7)}]


def test_a_fixed_shape_has_no_outside() -> None:
    assert outside_cases([profile(x=ShapeRange((2, 4), (2, 4), (2, 4)))]) == []


def test_what_another_profile_holds_is_not_outside() -> None:
    small, large = (
        profile("small", x=ShapeRange((1, 4), (2, 4), (4, 4))),
        profile("large", x=ShapeRange((5, 4), (8, 4), (9, 4))),
    )
    assert [(case.profile, case.shapes["x"]) for case in outside_cases([small, large])] == [("large", (10, 4))]


def test_values_are_the_same_every_time_and_differ_between_cases() -> None:
    spec = {"dtype": "float32", "kind": "normal", "seed": 7, "mean": 1.0, "std": 2.0}
    first, again = make(spec, (2, 3), "x", "p/min"), make(spec, (2, 3), "x", "p/min")
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, make(spec, (2, 3), "x", "p/max"))
    # the stream is numpy's frozen one: these digits never change
    np.testing.assert_allclose(make(spec, (2,), "x", "c"), [2.69111, 0.9473637], rtol=1e-6)


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ({"dtype": "float32", "kind": "uniform", "seed": 0, "low": -1.0, "high": 1.0}, -1.0, 1.0),
        ({"dtype": "int64", "kind": "ints", "seed": 0, "low": 3, "high": 5}, 3, 4),
    ],
)
def test_values_stay_in_their_range(spec: dict[str, object], low: float, high: float) -> None:
    values = make(spec, (100,), "x", "c")
    assert values.dtype == spec["dtype"]
    assert low <= values.min()
    assert values.max() <= high
    assert values.min() != values.max()


def test_a_sample_is_cropped_and_repeated(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6, dtype=np.float16).reshape(2, 3))
    spec = {"dtype": "float32", "kind": "file", "path": str(path)}
    np.testing.assert_array_equal(make(spec, (3, 2), "x", "c"), [[0, 1], [3, 4], [0, 1]])


def test_a_sample_is_read_from_where_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.arange(6, dtype=np.float16).reshape(3, 2))
    spec = {"dtype": "float32", "kind": "file", "path": str(path)}
    np.testing.assert_array_equal(make(spec, (2, 2), "x", "c", 2), [[4, 5], [0, 1]])


@pytest.mark.parametrize(
    ("samples", "held"),
    [
        (np.array([["a", "b"]]), "values of type <U1"),
        (np.zeros((1, 2), np.complex64), "values of type complex64"),
        (None, "several arrays"),
    ],
    ids=["texts", "complex numbers", "archive"],
)
def test_a_sample_that_holds_no_numbers_is_refused(samples: np.ndarray | None, held: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        np.savez(file, one=np.zeros(2)) if samples is None else np.save(file, samples)
    with pytest.raises(StageFailure) as caught:
        make({"dtype": "float32", "kind": "file", "path": str(path)}, (1, 2), "x", "c")
    assert (caught.value.reason, caught.value.why) == ("input-invalid", f"the file holds {held}")


@pytest.mark.parametrize("content", [b"", b"not numpy"])
def test_a_sample_that_cannot_be_read_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(content)
    with pytest.raises(StageFailure, match="input x"):
        make({"dtype": "float32", "kind": "file", "path": str(path)}, (1,), "x", "c")


def test_a_sample_of_another_rank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((2, 2), np.float32))
    with pytest.raises(StageFailure) as caught:
        make({"dtype": "float32", "kind": "file", "path": str(path)}, (1,), "x", "c")
    assert caught.value.reason == "input-invalid"
    assert "[2, 2]" in caught.value.why
