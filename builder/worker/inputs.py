"""Shapes to verify and the values to feed: the same on every machine, in the export stage and in the verify stage."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .protocol import StageFailure

if TYPE_CHECKING:
    from .protocol import Profile, Shape, ShapeRange

ABOVE, BELOW = "above", "below"


class Case(NamedTuple):
    """One shape per input. `point` is min, opt, max, also0, ... or, outside the shape profile, above or below."""

    profile: str
    point: str
    shapes: dict[str, Shape]

    @property
    def name(self) -> str:
        """Name in reference files and messages."""
        return f"{self.profile}/{self.point}"


def cases(profiles: list[Profile]) -> list[Case]:
    """List the shapes inside each shape profile: min, opt, max and the further ones; equal shapes appear once."""
    found: list[Case] = []
    for profile in profiles:
        further = max((len(ranges.also) for ranges in profile.inputs.values()), default=0)
        points: list[tuple[str, dict[str, Shape]]] = [
            ("min", {name: ranges.min for name, ranges in profile.inputs.items()}),
            ("opt", {name: ranges.opt for name, ranges in profile.inputs.items()}),
            ("max", {name: ranges.max for name, ranges in profile.inputs.items()}),
        ]
        for index in range(further):
            shapes = {n: r.also[index] if index < len(r.also) else r.opt for n, r in profile.inputs.items()}
            points.append((f"also{index}", shapes))
        seen: list[dict[str, Shape]] = []
        for point, shapes in points:
            if shapes not in seen:
                seen.append(shapes)
                found.append(Case(profile.name, point, shapes))
    return found


def outside_cases(profiles: list[Profile]) -> list[Case]:
    """List the shapes just outside: each dynamic axis one above its max, and one below its min where that is over 1."""
    found: list[Case] = []
    for profile in profiles:
        above = {name: _above(ranges) for name, ranges in profile.inputs.items()}
        below = {name: _below(ranges) for name, ranges in profile.inputs.items()}
        if any(above[name] != ranges.max for name, ranges in profile.inputs.items()):
            found.append(Case(profile.name, ABOVE, above))
        if any(below[name] != ranges.min for name, ranges in profile.inputs.items()):
            found.append(Case(profile.name, BELOW, below))
    return found


def make(spec: dict[str, Any], shape: Shape, name: str, case: str) -> np.ndarray:
    """Make the values of one input for one case.

    `spec` is the recipe's generator with its dtype. numpy's RandomState is used because its stream never changes.

    Raises:
        StageFailure: input-invalid for a sample file that does not fit.

    """
    dtype = np.dtype(spec["dtype"])
    if spec["kind"] == "file":
        return _from_file(spec["path"], dtype, shape, name)
    seed = zlib.crc32(f"{spec['seed']}/{name}/{case}".encode())
    stream = np.random.RandomState(seed)
    if spec["kind"] == "normal":
        return stream.normal(spec["mean"], spec["std"], shape).astype(dtype)
    if spec["kind"] == "uniform":
        return stream.uniform(spec["low"], spec["high"], shape).astype(dtype)
    if spec["kind"] == "ints":
        return stream.randint(spec["low"], spec["high"], shape).astype(dtype)
    raise StageFailure("input-invalid", f"input {name}: unknown kind of values {spec['kind']!r}")


def make_all(specs: dict[str, Any], case: Case) -> dict[str, np.ndarray]:
    """Make the values of all inputs for one case."""
    return {name: make(specs[name], shape, name, case.name) for name, shape in case.shapes.items()}


def _above(ranges: ShapeRange) -> Shape:
    return tuple(high + 1 if low != high else high for low, high in zip(ranges.min, ranges.max))


def _below(ranges: ShapeRange) -> Shape:
    return tuple(low - 1 if low != high and low > 1 else low for low, high in zip(ranges.min, ranges.max))


def _from_file(path: str, dtype: np.dtype[Any], shape: Shape, name: str) -> np.ndarray:
    try:
        sample = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise StageFailure("input-invalid", f"input {name}: the sample file cannot be read", why=str(error)) from error
    if sample.ndim != len(shape) or 0 in sample.shape:
        why = f"the sample has shape {list(sample.shape)}, the input {list(shape)}"
        raise StageFailure("input-invalid", f"input {name}: the sample file does not fit", why=why)
    for axis, size in enumerate(shape):
        # wraps round along every axis: a shape the sample has is taken as it is
        sample = np.take(sample, range(size), axis=axis, mode="wrap")
    return np.ascontiguousarray(sample.astype(dtype))
