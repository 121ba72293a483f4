"""Targets: GPU families and the precisions their hardware knows. Read from data files, never written in code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from builder.errors import EnginefarmError, Reason
from builder.tables import load_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A GPU family. `sms` are compute capabilities such as "8.6"."""

    name: str
    title: str
    sms: tuple[str, ...]
    platform: str


def load_targets() -> dict[str, Target]:
    """Read the targets in the order of the data file."""
    return {
        name: Target(name=name, title=row["title"], sms=tuple(row["sms"]), platform=row["platform"])
        for name, row in load_table("targets.toml").items()
    }


def load_precision_floors() -> dict[str, tuple[int, int]]:
    """Read the lowest compute capability per precision, as (major, minor)."""
    return {name: sm_number(row["min_sm"]) for name, row in load_table("precisions.toml").items()}


def choose_targets(targets: Mapping[str, Target], names: Iterable[str]) -> tuple[Target, ...]:
    """Pick targets by name, in the order asked for; no name means all.

    Raises:
        EnginefarmError: TARGET_UNKNOWN, with the nearest valid name.

    """
    wanted = tuple(dict.fromkeys(names)) or tuple(targets)
    for name in wanted:
        if name not in targets:
            raise EnginefarmError(
                Reason.TARGET_UNKNOWN, f"there is no target {name!r}", fix=suggestion(name, targets, "targets")
            )
    return tuple(targets[name] for name in wanted)


def sm_number(sm: str) -> tuple[int, int]:
    """Turn "8.6" into (8, 6), which sorts rightly where text would not ("12.0" < "8.6")."""
    major, minor = sm.split(".")
    return int(major), int(minor)


def suggestion(name: str, known: Iterable[str], plural: str) -> str:
    """Say the nearest valid name and all valid names."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names) or "none"
    return f"did you mean {near[0]!r}? {plural}: {listed}" if near else f"{plural}: {listed}"
