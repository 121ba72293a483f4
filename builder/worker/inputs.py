"""Shapes to verify and the values to feed: the same on every machine, in the export stage and in the verify stage."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .protocol import StageFailure

if TYPE_CHECKING:
    from .protocol import Profile, Shape

ABOVE, BELOW = "above", "below"
# kinds of numpy's types: floats, whole numbers, truth values
NUMBERS = "fiub"


class Case(NamedTuple):
    """One shape per input. `point` is min, opt, max, also0, ... or, outside, above<axis> and below<axis>."""

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
    """List the shapes just outside: one step beyond the max or the min of one axis, all others at their min.

    Axes of the same position and range move together: inputs share a batch axis more often than not. What lies inside
    another shape profile is not outside.
    """
    found: list[Case] = []
    for profile in profiles:
        for axis, low, high in _dynamic_axes(profile):
            found.append(Case(profile.name, f"{ABOVE}{axis}", _moved(profile, axis, (low, high), high + 1)))
            if low > 1:
                found.append(Case(profile.name, f"{BELOW}{axis}", _moved(profile, axis, (low, high), low - 1)))
    return [case for case in found if not any(_contains(profile, case) for profile in profiles)]


def static_outside_cases(profiles: list[Profile]) -> list[Case]:
    """List one shape per shape profile that lies just outside, for models whose axes are all fixed."""
    return [
        Case(
            profile.name,
            f"{ABOVE}0",
            {name: (ranges.max[0] + 1, *ranges.max[1:]) for name, ranges in profile.inputs.items() if ranges.max},
        )
        for profile in profiles
    ]


def make(spec: dict[str, Any], shape: Shape, name: str, case: str, start: int = 0) -> np.ndarray:
    """Make the values of one input for one case.

    `spec` is the recipe's generator with its dtype; `start`: where along its first axis to begin in a file. numpy's
    RandomState is used because its stream never changes.

    Raises:
        StageFailure: input-invalid for a sample file that does not fit.

    """
    dtype = np.dtype(spec["dtype"])
    if spec["kind"] == "file":
        return _from_file(spec["path"], dtype, shape, name, start)
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


def _contains(profile: Profile, case: Case) -> bool:
    return all(
        low <= size <= high
        for name, shape in case.shapes.items()
        for low, size, high in zip(profile.inputs[name].min, shape, profile.inputs[name].max)
    )


def _dynamic_axes(profile: Profile) -> list[tuple[int, int, int]]:
    ranges = {
        (axis, low, high)
        for shapes in profile.inputs.values()
        for axis, (low, high) in enumerate(zip(shapes.min, shapes.max))
        if low != high
    }
    return sorted(ranges)


def _moved(profile: Profile, axis: int, span: tuple[int, int], size: int) -> dict[str, Shape]:
    return {
        name: tuple(
            size if position == axis and (low, high) == span else low
            for position, (low, high) in enumerate(zip(shapes.min, shapes.max))
        )
        for name, shapes in profile.inputs.items()
    }


def _from_file(path: str, dtype: np.dtype[Any], shape: Shape, name: str, start: int) -> np.ndarray:
    try:
        # what is not asked for stays on the disk: samples to calibrate on may be many
        sample = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError, OverflowError) as error:
        raise StageFailure("input-invalid", f"input {name}: the sample file cannot be read", why=str(error)) from error
    if not isinstance(sample, np.ndarray):
        sample.close()
        raise _no_sample(name, "several arrays")
    if sample.dtype.kind not in NUMBERS:
        raise _no_sample(name, f"values of type {sample.dtype}")
    if sample.ndim != len(shape) or 0 in sample.shape:
        why = f"the sample has shape {list(sample.shape)}, the input {list(shape)}"
        raise StageFailure("input-invalid", f"input {name}: the sample file does not fit", why=why)
    for axis, size in enumerate(shape):
        # wraps round along every axis: a shape the sample has is taken as it is
        first = 0 if axis else start
        sample = np.take(sample, range(first, first + size), axis=axis, mode="wrap")
    return np.ascontiguousarray(sample.astype(dtype))


def _no_sample(name: str, held: str) -> StageFailure:
    what, fix = f"input {name}: the sample file does not fit", "write one array of numbers with numpy.save"
    return StageFailure("input-invalid", what, why=f"the file holds {held}", fix=fix)
