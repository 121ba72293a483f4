"""Do the shape profiles fit the graph's inputs? Asked before TensorRT is, because its own words are hard to act on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .protocol import StageFailure, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .protocol import Profile, Shape, ShapeRange

POINTS = ("min", "opt", "max")


class GraphInput(NamedTuple):
    """One graph input: per axis its size, or its symbolic name, or None where nothing is known."""

    name: str
    dtype: str
    dims: tuple[int | str | None, ...]

    def as_json(self) -> dict[str, Any]:
        """Return name, dtype and shape; a dynamic axis is -1."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": [dim if isinstance(dim, int) else -1 for dim in self.dims],
        }


class Problem(NamedTuple):
    """One thing that does not fit; `axis` is -1 where the whole input is meant."""

    reason: str
    profile: str
    input: str
    axis: int
    text: str


def check_profiles(inputs: list[GraphInput], profiles: list[Profile]) -> None:
    """Compare every shape profile with the graph's inputs.

    Raises:
        StageFailure: input-invalid for names that the graph lacks or that the profile lacks; profile-invalid for ranks,
            orders and sizes that the graph cannot take. All problems are listed.

    """
    problems = [problem for profile in profiles for problem in _profile_problems(inputs, profile)]
    if not problems:
        return
    first = problems[0]
    raise StageFailure(
        first.reason,
        f"shape profile {first.profile}: {first.text}",
        why="\n".join(f"{problem.profile}: {problem.text}" for problem in problems[1:]),
        fix="write the shapes as the graph has them: "
        + "; ".join(f"{item.name} [{', '.join(map(_dim_text, item.dims))}]" for item in inputs),
        details={"problems": [problem._asdict() for problem in problems]},
    )


def _profile_problems(inputs: list[GraphInput], profile: Profile) -> Iterator[Problem]:
    known = [item.name for item in inputs]
    for name in profile.inputs:
        if name not in known:
            text = f"the graph has no input {name}{did_you_mean(name, known)}; it has {', '.join(known) or 'none'}"
            yield Problem("input-invalid", profile.name, name, -1, text)
    for item in inputs:
        if item.name not in profile.inputs:
            yield Problem("input-invalid", profile.name, item.name, -1, f"input {item.name} has no shapes")
            continue
        yield from _shape_problems(item, profile.inputs[item.name], profile.name)
    yield from _symbol_problems(inputs, profile)


def _shape_problems(item: GraphInput, shapes: ShapeRange, profile: str) -> Iterator[Problem]:
    ranks = {len(shapes.min), len(shapes.opt), len(shapes.max)}
    if ranks != {len(item.dims)}:
        text = f"input {item.name} has rank {len(item.dims)}, the profile gives {', '.join(map(str, sorted(ranks)))}"
        yield Problem("profile-invalid", profile, item.name, -1, text)
        return
    for axis, dim in enumerate(item.dims):
        low, best, high = shapes.min[axis], shapes.opt[axis], shapes.max[axis]
        given = f"min {low}, opt {best}, max {high}"
        if isinstance(dim, int) and {low, best, high} != {dim}:
            text = f"input {item.name}, axis {axis}: the graph fixes it at {dim}, the profile gives {given}"
            yield Problem("profile-invalid", profile, item.name, axis, text)
        elif not 0 <= low <= best <= high:
            text = f"input {item.name}, axis {axis}: {given} are not in order (min <= opt <= max)"
            yield Problem("profile-invalid", profile, item.name, axis, text)


def _symbol_problems(inputs: list[GraphInput], profile: Profile) -> Iterator[Problem]:
    """Axes of one symbolic name are one number to the graph, so they must be equal at every point."""
    seen: dict[str, tuple[str, int, tuple[int, ...]]] = {}
    for item in inputs:
        shapes = profile.inputs.get(item.name)
        if shapes is None or any(len(shape) != len(item.dims) for shape in _points(shapes)):
            continue
        for axis, dim in enumerate(item.dims):
            if not isinstance(dim, str):
                continue
            values = tuple(shape[axis] for shape in _points(shapes))
            other, other_axis, expected = seen.setdefault(dim, (item.name, axis, values))
            if values != expected:
                text = (
                    f"input {item.name}, axis {axis} is {dim} like input {other}, axis {other_axis}, "
                    f"but they differ: {_values_text(values)} against {_values_text(expected)}"
                )
                yield Problem("profile-invalid", profile.name, item.name, axis, text)


def _points(shapes: ShapeRange) -> tuple[Shape, Shape, Shape]:
    return (shapes.min, shapes.opt, shapes.max)


def _values_text(values: tuple[int, ...]) -> str:
    return ", ".join(f"{point} {value}" for point, value in zip(POINTS, values))


def _dim_text(dim: int | str | None) -> str:
    return "?" if dim is None else str(dim)
