"""How far a rebuilt engine is the same as the one it was rebuilt from: four levels, and what each rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from builder.engine_bytes import ByteDifference
from builder.manifest import Manifest

Level = Literal["bitwise", "outputs", "tolerance", "drifted"]

# From the best to the worst.
LEVELS: tuple[Level, ...] = ("bitwise", "outputs", "tolerance", "drifted")


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputDifference:
    """How far outputs on the same inputs are apart, over all shapes that are verified.

    `within`: inside the recipe's tolerance. `worst`: per output the case where it is furthest off, with its metrics
    (max_abs, max_rel, mse, cosine, nonfinite; null where there is no distance).
    """

    device: str
    cases: int
    equal: bool
    within: bool
    worst: Mapping[str, Mapping[str, Any]]

    def text(self) -> str:
        """Say it in one line."""
        where = f"at {self.cases} shapes on {self.device}"
        if self.equal:
            return f"outputs are equal bit for bit {where}"
        listed = (f"{name} {_figures(metrics)} ({metrics['case']})" for name, metrics in self.worst.items())
        verdict = "within the tolerance" if self.within else "outside the tolerance"
        return f"outputs differ, {verdict}, {where}: {'; '.join(listed)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuild:
    """One rebuild against the engine. `difference` is null where the bytes are the same.

    `changed`: steps that came out differently, in their order. `outputs`: null where outputs were not compared.
    """

    level: Level
    sha256: str
    build_seconds: float
    changed: tuple[str, ...]
    difference: ByteDifference | None
    outputs: OutputDifference | None

    def lines(self) -> list[str]:
        """Say what differs; nothing where nothing does."""
        if self.difference is None:
            return []
        lines = [*self.changed, self.difference.text(), self.difference.places()]
        return [*lines, self.outputs.text()] if self.outputs is not None else lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """The verdict: the level is that of the worst rebuild, and `rebuilt_sha256` its engine.

    `same`: all rebuilds have the engine's bytes. `timing_cache`: SHA-256 of the cache that all rebuilds were sealed
    with. `repeats`: whether the engine itself gives the same outputs when it runs twice; null where it did not run.
    """

    job: str
    level: Level
    rebuilds: int
    same: bool
    engine_sha256: str
    rebuilt_sha256: str
    first_difference: str | None
    details: tuple[str, ...]
    cold: bool = False
    timing_cache: str | None = None
    repeats: bool | None = None
    measured: tuple[Rebuild, ...] = ()

    @property
    def worst(self) -> Rebuild:
        """The first rebuild of the verdict's level."""
        return next(one for one in self.measured if one.level == self.level)

    def summary(self) -> str | None:
        """Say in one line what the level rests on, for the manifest; nothing where there is no difference."""
        worst = self.worst
        if worst.difference is None or worst.outputs is None:
            return self.first_difference
        return f"{worst.difference.count} bytes of the engine differ; {worst.outputs.text()}"


def measure(
    manifest: Manifest, rebuilt: Manifest, difference: ByteDifference | None, outputs: OutputDifference | None
) -> Rebuild:
    """Judge one rebuild by its manifest, its bytes and, where they were compared, its outputs."""
    steps = [
        ("the exported ONNX model", manifest.onnx.sha256, rebuilt.onnx.sha256),
        ("the lowered ONNX model", manifest.lowered.sha256, rebuilt.lowered.sha256),
        ("the engine", manifest.engine.sha256, rebuilt.engine.sha256),
    ]
    return Rebuild(
        level=level_of(difference, outputs),
        sha256=rebuilt.engine.sha256,
        build_seconds=rebuilt.build.seconds,
        changed=tuple(f"{name}: {was[:12]} then, {now[:12]} now" for name, was, now in steps if was != now),
        difference=difference,
        outputs=outputs,
    )


def level_of(difference: ByteDifference | None, outputs: OutputDifference | None) -> Level:
    """Name the level of one rebuild; without a comparison of outputs nothing between the extremes can be told."""
    if difference is None:
        return "bitwise"
    if outputs is None:
        return "drifted"
    if outputs.equal:
        return "outputs"
    return "tolerance" if outputs.within else "drifted"


def verdict(
    job: str,
    manifest: Manifest,
    measured: Sequence[Rebuild],
    *,
    cold: bool,
    timing_cache: str | None,
    repeats: bool | None,
) -> Reproduction:
    """Sum up all rebuilds: the worst one counts."""
    level = max((one.level for one in measured), key=LEVELS.index)
    worst = next(one for one in measured if one.level == level)
    return Reproduction(
        job=job,
        level=level,
        rebuilds=len(measured),
        same=all(one.difference is None for one in measured),
        engine_sha256=manifest.engine.sha256,
        rebuilt_sha256=worst.sha256,
        first_difference=worst.changed[0] if worst.changed else None,
        details=tuple(worst.lines()),
        cold=cold,
        timing_cache=timing_cache,
        repeats=repeats,
        measured=tuple(measured),
    )


def _figures(metrics: Mapping[str, Any]) -> str:
    if metrics["max_abs"] is None:
        return "cannot be compared"
    return f"max_abs {metrics['max_abs']:.2g}, mse {metrics['mse']:.2g}"
