"""How far two arrays are apart."""

from __future__ import annotations

from typing import Any

import numpy as np

# Relative errors of values under this share of the largest one say more about zero than about precision.
REL_FLOOR = 0.01
# Metrics of which more is worse; cosine is the other way round.
DISTANCES = ("max_abs", "max_rel", "mse")


def compare(reference: np.ndarray, candidate: np.ndarray) -> dict[str, Any]:
    """Compare a candidate with its reference, in FP64.

    Returns max_abs; max_rel, the largest |difference| / max(|reference|, 0.01 x largest |reference|); mse; cosine
    similarity of the flattened arrays (1 for two zero arrays); nonfinite, the count of inf and NaN in the candidate
    where the reference is finite. With such values, or another shape, the distances are null.
    """
    if reference.shape != candidate.shape:
        return {"max_abs": None, "max_rel": None, "mse": None, "cosine": None, "nonfinite": 0, "shape_differs": True}
    left, right = reference.astype(np.float64).ravel(), candidate.astype(np.float64).ravel()
    nonfinite = int(np.count_nonzero(~np.isfinite(right) & np.isfinite(left)))
    if nonfinite or not np.isfinite(left).all():
        return {"max_abs": None, "max_rel": None, "mse": None, "cosine": None, "nonfinite": nonfinite}
    if left.size == 0:
        return {"max_abs": 0.0, "max_rel": 0.0, "mse": 0.0, "cosine": 1.0, "nonfinite": 0}
    difference = np.abs(left - right)
    floor = max(REL_FLOOR * float(np.abs(left).max()), float(np.finfo(np.float64).tiny))
    return {
        "max_abs": float(difference.max()),
        "max_rel": float((difference / np.maximum(np.abs(left), floor)).max()),
        "mse": float(np.mean(difference**2)),
        "cosine": _cosine(left, right),
        "nonfinite": 0,
    }


def limits_of(tolerance: dict[str, Any], output: str) -> dict[str, float]:
    """Return what the recipe allows for one output."""
    limits: dict[str, float] = tolerance["outputs"].get(output, tolerance["default"])
    return limits


def breaches(metrics: dict[str, Any], tolerance: dict[str, float]) -> list[tuple[str, float, float]]:
    """List the metrics outside the tolerance as (metric, value, limit)."""
    found = []
    for metric, limit in tolerance.items():
        value = metrics[metric]
        if value is None or (value > limit if metric in DISTANCES else value < limit):
            found.append((metric, float("nan") if value is None else value, limit))
    return found


def headroom(metric: str, value: float, limit: float) -> float:
    """Return how many times the error would fit into the limit; 1 is just allowed, infinite is no error."""
    error, allowed = (value, limit) if metric in DISTANCES else (1 - value, 1 - limit)
    return allowed / error if error > 0 else float("inf")


def _cosine(left: np.ndarray, right: np.ndarray) -> float:
    if np.array_equal(left, right):
        return 1.0
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(np.dot(left, right)) / norms if norms > 0 else 0.0
