"""Shows a run while it goes on: plain lines here, a live display on terminals in `builder.live`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from enum import Enum
from types import TracebackType
from typing import Protocol

from typing_extensions import Self

from builder.events import (
    Event,
    JobFinished,
    JobOutcome,
    Note,
    RunStarted,
    Status,
    StepAdvanced,
    StepFinished,
    StepStarted,
)
from builder.progress import Progress
from builder.report.units import duration
from builder.terminal import Terminal

HEARTBEAT_S = 30.0
_BEAT_S = 0.25
STOPPING = "stopping; finished jobs are kept; Ctrl-C again ends at once"
STATUS_STYLE = {
    Status.BUILT: "green",
    Status.PROVED: "green",
    Status.REUSED: "dim",
    Status.FAILED: "red",
    Status.CANCELLED: "yellow",
}


class _Word(Enum):
    NONE = "none"
    LEFT = "left"
    PASSED_ON = "passed on"


class Console(Protocol):
    """A context manager whose `listen` takes the runner's events, from any thread."""

    def __enter__(self) -> Self:
        """Begin."""
        ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        ...

    def listen(self, event: Event) -> None:
        """Show an event; never raises."""
        ...

    def stopping(self) -> None:
        """Say that the run is being stopped. Safe in a signal handler: it only leaves word."""
        ...


def open_console(terminal: Terminal, expected_s: Mapping[str, float]) -> Console:
    """Choose the console that fits the terminal. `expected_s`: seconds that jobs took before, for estimates."""
    if terminal.interactive:
        from builder.live import LiveConsole  # noqa: PLC0415 - rich is slow to import and plain runs need none

        return LiveConsole(terminal, expected_s)
    return PlainConsole(terminal)


class PlainConsole:
    """One line per finished step and job, and a sign of life from long steps."""

    def __init__(
        self,
        terminal: Terminal,
        *,
        clock: Callable[[], float] = time.monotonic,
        stamp: Callable[[], str] = lambda: time.strftime("%H:%M:%S"),
    ) -> None:
        self._terminal = terminal
        self._clock = clock
        self._stamp = stamp
        self._progress = Progress()
        self._shown: dict[str, float] = {}
        self._lock = threading.RLock()
        self._closed = threading.Event()
        self._stopping = _Word.NONE
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Begin; the heartbeat's thread starts with the first step, so that a run without steps costs nothing."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the heartbeat."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def listen(self, event: Event) -> None:
        """Write the event's line, if it deserves one."""
        with self._lock:
            now = self._clock()
            self._progress.apply(event, now)
            if isinstance(event, StepStarted):
                self._shown[event.subject] = now
                self._start_heartbeat()
            text = event_text(event, self._terminal, stopping=self._stopping is not _Word.NONE)
            if text is not None:
                self._terminal.line(f"{self._stamp()} {text}")

    def stopping(self) -> None:
        """Leave word for the heartbeat: writing here could meet a half-written line."""
        if self._stopping is _Word.NONE:
            self._stopping = _Word.LEFT

    def beat(self) -> None:
        """Write a line for each step that was silent for long, and once that the run is being stopped."""
        with self._lock:
            now = self._clock()
            if self._stopping is _Word.LEFT:
                self._stopping = _Word.PASSED_ON
                self._terminal.line(f"{self._stamp()} {STOPPING}")
            for step in list(self._progress.running.values()):
                if now - self._shown.get(step.subject, now) >= HEARTBEAT_S:
                    self._shown[step.subject] = now
                    expected = f" of about {duration(step.expected_s)}" if step.expected_s else ""
                    line = f"{step.subject} {step.step} runs, {duration(step.elapsed_s(now))}{expected}"
                    self._terminal.line(f"{self._stamp()} {line}")

    def _start_heartbeat(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True)
            self._thread.start()

    def _heartbeat(self) -> None:
        while not self._closed.wait(_BEAT_S):
            self.beat()


def event_text(event: Event, terminal: Terminal, *, stopping: bool = False) -> str | None:
    """Say an event in one line; null for those that need none, such as a reused job: the final table lists it."""
    if isinstance(event, RunStarted):
        jobs = len(event.jobs)
        return f"{jobs} {'job' if jobs == 1 else 'jobs'}, at most {event.parallel} at a time"
    if isinstance(event, StepStarted):
        # Packages take minutes: silence would look like a hang.
        return f"{event.subject} {event.step} begins" if event.subject.startswith(("stack ", "image ")) else None
    if isinstance(event, StepAdvanced):
        return None
    if isinstance(event, StepFinished):
        ended = "stopped" if stopping else terminal.paint("failed", "red")
        result = "ok" if event.ok else ended
        return f"{event.subject} {event.step} {result} {duration(event.seconds)}"
    if isinstance(event, Note):
        return f"{event.subject} {terminal.paint('note:', 'yellow')} {event.text}"
    return outcome_text(event, terminal)


def outcome_text(event: JobFinished, terminal: Terminal) -> str | None:
    """Say how a job ended; null for one that was reused or never began."""
    outcome: JobOutcome = event.outcome
    if outcome.status is Status.REUSED or (outcome.status is Status.CANCELLED and not outcome.seconds):
        return None
    text = f"{outcome.job} {terminal.paint(outcome.status.value, STATUS_STYLE[outcome.status])}"
    if outcome.error is not None and outcome.status is Status.FAILED:
        info = outcome.error.reason.value
        what = outcome.error.what.splitlines()[0] if outcome.error.what else ""
        return f"{text} {info.code} {info.slug}: {what}"
    return f"{text} {duration(outcome.seconds)}"
