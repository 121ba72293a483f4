"""What the runner tells its listener while it works. The console renders these; the core never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from builder.errors import EnginefarmError
from builder.manifest import Manifest


class Status(str, Enum):
    """How a job ended."""

    BUILT = "built"
    REUSED = "reused"
    PROVED = "proved"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The run begins. `jobs` are ids in plan order."""

    jobs: tuple[str, ...]
    parallel: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A job, an export or an installation begins a step.

    `subject` is a job id, `export <recipe>` or `stack <name>`. `expected_s` comes from the journal, null if unknown.
    """

    subject: str
    step: str
    expected_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepAdvanced:
    """A transfer of a step under way has come this far. `total` is null where it is unknown."""

    subject: str
    done: int
    total: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFinished:
    """A step ended."""

    subject: str
    step: str
    seconds: float
    ok: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something a person should know that is no failure, for example a corrupt entry set aside."""

    subject: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOutcome:
    """How one job ended. `proved`: the engine's bytes were in the store, the proof had to be made anew."""

    job: str
    status: Status
    seconds: float
    manifest: Manifest | None = None
    error: EnginefarmError | None = None
    log: Path | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFinished:
    """A job ended, one way or another."""

    outcome: JobOutcome


Event = RunStarted | StepStarted | StepAdvanced | StepFinished | Note | JobFinished
Listener = Callable[[Event], None]
