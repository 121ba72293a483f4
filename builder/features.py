"""Features of TensorRT releases: which one has what, and what build options need. Pure; the table is data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from builder.recipe import BuildOptions
from builder.tables import load_table

RTX = "rtx"
# Values of build.hardware_compatibility, with the features of the same names, and where their engines start to run.
COMPATIBILITY_FLOORS = {"ampere_plus": (8, 0), "same_compute_capability": (7, 5)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """A row of trt-features.toml. `symbols` prove it in the bindings; `since`, `until` are classic releases."""

    name: str
    symbols: tuple[str, ...]
    since: str | None = None
    until: str | None = None
    classic: bool = True
    rtx: bool

    def is_in(self, family: str, tensorrt: str) -> bool:
        """Say whether a release such as "10.9.0.34" of a family has it."""
        return self.absence(family, tensorrt) is None

    def absence(self, family: str, tensorrt: str) -> str | None:
        """Say in words why a release lacks it, or None where it is there."""
        if family == RTX:
            return None if self.rtx else "TensorRT-RTX has none"
        if not self.classic:
            return "only TensorRT-RTX has it"
        release = _numbers(tensorrt)
        if self.since is not None and release < _numbers(self.since):
            return f"it came with TensorRT {self.since}, this is {tensorrt}"
        if self.until is not None and release >= _numbers(self.until):
            return f"it is gone since TensorRT {self.until}, this is {tensorrt}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a build option needs: `option` as a recipe writes it, and the feature's name."""

    option: str
    feature: str


@cache
def load_features() -> dict[str, Feature]:
    """Read the table, in its order."""
    return {
        name: Feature(name=name, **{**row, "symbols": tuple(row["symbols"])})
        for name, row in load_table("trt-features.toml").items()
    }


@cache
def features_of(family: str, tensorrt: str) -> frozenset[str]:
    """Name the features that a release of a family ("rtx", "trt8", "trt10", "trt11") has."""
    return frozenset(name for name, feature in load_features().items() if feature.is_in(family, tensorrt))


def option_features(build: BuildOptions) -> list[Need]:
    """List what build options need beyond what every stack has, in the order of the recipe's fields."""
    needs = []
    if build.hardware_compatibility != "none":
        level = build.hardware_compatibility
        needs.append(Need(option=f"hardware_compatibility: {level}", feature=level))
    named = {
        "version_compatible": (build.version_compatible, "version_compatible"),
        "strip_weights": (build.strip_weights, "strip_plan"),
        "refit": (build.refit, "refit"),
        "weight_streaming": (build.weight_streaming, "weight_streaming"),
    }
    needs += [Need(option=option, feature=feature) for option, (asked, feature) in named.items() if asked]
    if build.tactic_sources is not None:
        needs.append(Need(option="tactic_sources", feature="tactic_sources"))
        sources = build.tactic_sources
        needs += [Need(option=f"tactic_sources: {name}", feature=f"tactic_source_{name}") for name in sources]
    return needs


def precision_features(precision: str) -> tuple[str, ...]:
    """Name the features of which a release needs one for engines of a precision; none: every release has it."""
    needed = {
        "tf32": ("tf32",),
        "fp16": ("fp16_flag", "strongly_typed"),
        "bf16": ("bf16",),
        "int8": ("int8_calibrators",),
    }
    return needed.get(precision, ())


def _numbers(version: str) -> tuple[int, ...]:
    # 10.14.1.48.post1 is 10.14.1.48 in another wheel
    return tuple(int(part) for part in version.partition(".post")[0].split("."))
