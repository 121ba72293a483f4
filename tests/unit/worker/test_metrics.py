"""Distances between arrays."""

from __future__ import annotations

import numpy as np
import pytest

from builder.worker.metrics import breaches, compare, headroom


def test_equal_arrays_have_no_distance() -> None:
    values = np.array([0.0, -1.0, 2.5])
    assert compare(values, values) == {"max_abs": 0.0, "max_rel": 0.0, "mse": 0.0, "cosine": 1.0, "nonfinite": 0}


def test_distances_by_hand() -> None:
    found = compare(np.array([10.0, 0.0]), np.array([9.0, 0.05]))
    assert found["max_abs"] == pytest.approx(1.0)
    # the second value is judged against 1 % of the largest: 0.05 / 0.1
    assert found["max_rel"] == pytest.approx(0.5)
    assert found["mse"] == pytest.approx((1 + 0.0025) / 2)
    assert found["cosine"] == pytest.approx(90 / (10 * np.hypot(9, 0.05)))


def test_small_differences_survive_low_precision_outputs() -> None:
    found = compare(np.array([1000.0], np.float16), np.array([1001.0], np.float16))
    assert found["max_abs"] == 1.0


def test_values_that_are_not_finite_are_counted_where_the_reference_is() -> None:
    found = compare(np.array([1.0, np.inf, 2.0]), np.array([np.nan, np.inf, np.inf]))
    assert found["nonfinite"] == 2
    assert found["max_abs"] is None


def test_another_shape_is_a_breach() -> None:
    found = compare(np.zeros(2), np.zeros(3))
    assert breaches(found, {"max_abs": 1e9})


@pytest.mark.parametrize(
    ("metric", "limit", "outside"),
    [("max_abs", 0.9, True), ("max_abs", 1.1, False), ("cosine", 0.999, True), ("cosine", 0.9, False)],
)
def test_a_breach_is_beyond_the_limit(metric: str, limit: float, outside: bool) -> None:
    found = {"max_abs": 1.0, "max_rel": 0.1, "mse": 0.1, "cosine": 0.99, "nonfinite": 0}
    assert bool(breaches(found, {metric: limit})) is outside


def test_headroom_counts_how_often_the_error_fits() -> None:
    assert headroom("max_abs", 0.5, 2.0) == 4.0
    assert headroom("cosine", 0.99, 0.9) == pytest.approx(10.0)
    assert headroom("mse", 0.0, 1.0) == float("inf")


def test_whole_numbers_and_booleans_are_compared_exactly() -> None:
    assert compare(np.array([2**53 - 1]), np.array([2**53 - 2]))["max_abs"] == 1.0
    assert compare(np.array([True, False]), np.array([True, True]))["max_abs"] == 1.0
