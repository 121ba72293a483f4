"""What the resolver knows as data: portability rules, lowest drivers, combinations known to be bad. Pure."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from builder.tables import load_table

Numbers = tuple[int, ...]
_BOUND = re.compile(r"(>=|<=|<|>|!=|==)?(\d+(?:\.\d+)*)")


@lru_cache(maxsize=1024)
def numbers(version: str) -> Numbers:
    """Return the leading numbers of a version: those of "10.14.1.48.post1" are 10, 14, 1, 48."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def same_release(left: str, right: str) -> bool:
    """Compare versions as far as both are known: "8.6.1" is "8.6.1.6", and 8.6.1.2 is not 8.6.1.6."""
    one, other = numbers(left), numbers(right)
    common = min(len(one), len(other))
    return common > 0 and one[:common] == other[:common]


@dataclass(frozen=True, slots=True)
class Bounds:
    """A comma list of bounds of a version, such as ">=10.8,<10.9"; a bare version stands for all its releases."""

    parts: tuple[tuple[str, Numbers], ...]

    def hold(self, version: str) -> bool:
        """Say whether a version is within all bounds; an unknown one is not."""
        found = numbers(version)
        return bool(found) and all(_holds(found, sign, bound) for sign, bound in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownBad:
    """A row of known_bad.toml. What is null does not narrow it; a fact that is not known does not match a bound."""

    id: str
    refuses: bool
    text: str
    source: str
    tensorrt: Bounds | None = None
    cuda: Bounds | None = None
    driver: Bounds | None = None
    sm: Bounds | None = None
    gpu: str | None = None
    compatibility: tuple[str, ...] | None = None
    precision: tuple[str, ...] | None = None
    architecture: tuple[str, ...] | None = None
    jetson: bool | None = None
    rtx: bool | None = None
    version_compatible: bool | None = None
    verified: bool | None = None

    def matches(self, case: Mapping[str, Any]) -> bool:
        """Say whether a case is meant; it has a value for each field above that narrows, null where not known."""
        return (
            all(_bounded(getattr(self, name), case[name]) for name in ("tensorrt", "cuda", "driver", "sm"))
            and all(_listed(getattr(self, name), case[name]) for name in ("compatibility", "precision", "architecture"))
            and all(
                getattr(self, name) in (None, case[name])
                for name in ("jetson", "rtx", "version_compatible", "verified")
            )
            and (self.gpu is None or fnmatch.fnmatchcase((case["gpu"] or "").lower(), self.gpu.lower()))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """portability.toml, and the lowest driver per major version of CUDA."""

    version_compatible_since: Numbers
    version_compatible_across: frozenset[tuple[int, int]]
    ampere_plus_min_sm: Numbers
    ampere_plus_on_jetson: bool
    rtx_systems: tuple[str, ...]
    rtx_header_sms: Mapping[str, tuple[str, ...]]
    servers_since_l4t: int
    no_forward_compatibility: tuple[str, ...]
    tegra: Mapping[str, tuple[str, str]]
    lowest_drivers: Mapping[int, str]

    def header_sms(self, version: str | None, targets: int | None) -> tuple[str, ...] | None:
        """Return the SMs that the head of a TensorRT-RTX engine names; null where its bits are not understood."""
        known = next((sms for release, sms in self.rtx_header_sms.items() if same_release(release, version or "")), ())
        if not targets or targets >> len(known):
            return None
        return tuple(sm for bit, sm in enumerate(known) if targets >> bit & 1)

    def header_is_known(self, version: str) -> bool:
        """Say whether the head of engines of a release of TensorRT-RTX is understood beyond the version."""
        return any(same_release(release, version) for release in self.rtx_header_sms)

    def takes_forward_compatibility(self, gpu: str) -> bool:
        """Say whether CUDA's forward compatibility package works with a GPU of this name."""
        return not any(fnmatch.fnmatchcase(gpu.lower(), glob) for glob in self.no_forward_compatibility)

    def runs_later(self, built: str, here: str) -> bool:
        """Say whether a version-compatible engine of one release runs under another, later one."""
        old, new = numbers(built), numbers(here)
        if not old or not new or new < old or old < self.version_compatible_since:
            return False
        return old[0] == new[0] or (old[0], new[0]) in self.version_compatible_across


@cache
def load_rules() -> Rules:
    """Read the rules."""
    data = load_table("portability.toml")
    drivers = load_table("drivers.toml")["cuda"]
    versions = data["version_compatible"]
    return Rules(
        version_compatible_since=numbers(versions["since"]),
        version_compatible_across=frozenset((int(old), int(new)) for old, new in versions["across"]),
        ampere_plus_min_sm=numbers(data["ampere_plus"]["min_sm"]),
        ampere_plus_on_jetson=data["ampere_plus"]["jetson"],
        rtx_systems=tuple(data["rtx"]["systems"]),
        rtx_header_sms={release: tuple(sms) for release, sms in data["rtx"]["header_sms"].items()},
        servers_since_l4t=int(data["jetson"]["servers_since"]),
        no_forward_compatibility=tuple(data["forward_compatibility"]["not_for"]),
        tegra={chip: (row["name"], row["sm"]) for chip, row in data["tegra"].items()},
        lowest_drivers={int(major): driver for major, driver in drivers.items()},
    )


@cache
def load_known_bad() -> tuple[KnownBad, ...]:
    """Read the table of combinations known to be bad, in its order."""
    return tuple(read_known_bad(row) for row in load_table("known_bad.toml")["bad"])


def read_known_bad(row: Mapping[str, Any]) -> KnownBad:
    """Read a row of the table.

    Raises:
        ValueError, TypeError: the row is malformed; a test reads all rows.

    """
    values = dict(row)
    verdict = values.pop("verdict")
    if verdict not in ("refuse", "warn"):
        raise ValueError(f"{row['id']}: verdict {verdict!r} is neither refuse nor warn")
    for name in ("tensorrt", "cuda", "driver", "sm"):
        if name in values:
            values[name] = read_bounds(values[name])
    for name in ("compatibility", "precision", "architecture"):
        if name in values:
            values[name] = tuple(values[name])
    return KnownBad(refuses=verdict == "refuse", **values)


def read_bounds(text: str) -> Bounds:
    """Read bounds such as ">=10.8,<10.9".

    Raises:
        ValueError: a part is no bound.

    """
    parts = []
    for part in text.split(","):
        match = _BOUND.fullmatch(part.strip())
        if match is None:
            raise ValueError(f"{part.strip()!r} is no bound of a version")
        parts.append((match[1] or "==", numbers(match[2])))
    return Bounds(tuple(parts))


def _holds(found: Numbers, sign: str, bound: Numbers) -> bool:
    # 10.8.0.43 counts as 10.8: a bound says nothing of the numbers that it leaves out
    cut = found[: len(bound)]
    return {
        "==": cut == bound,
        "!=": cut != bound,
        ">=": cut >= bound,
        "<": cut < bound,
        ">": cut > bound,
        "<=": cut <= bound,
    }[sign]


def _bounded(bounds: Bounds | None, version: str | None) -> bool:
    return bounds is None or (version is not None and bounds.hold(version))


def _listed(values: tuple[str, ...] | None, value: str) -> bool:
    return values is None or value in values
