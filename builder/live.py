"""The live display on a terminal: a line with a bar per running step, and one for the whole run."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Literal

from rich.console import Console as RichConsole
from rich.live import Live
from rich.text import Text
from typing_extensions import Self

from builder.console import STATUS_STYLE, STOPPING, event_text
from builder.events import Event, RunStarted, StepAdvanced, StepFinished, StepStarted
from builder.progress import Progress, RunningStep
from builder.report.table import Paint
from builder.report.units import duration
from builder.terminal import Terminal

_FRAMES = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_FRAMES_PER_SECOND = 8
_STEP_WIDTH = 8
_TIME_WIDTH = 17
_BAR_WIDTH = 24
_BAR_LEAST = 6


class LiveConsole:
    """Shows nothing until a first step begins: a run that reuses everything needs no display."""

    def __init__(self, terminal: Terminal, expected_s: Mapping[str, float]) -> None:
        self._terminal = terminal
        self._progress = Progress(expected_s=expected_s)
        self._lock = threading.Lock()
        self._beginning = threading.Lock()
        self._stopping = False
        colours: Literal["standard"] | None = "standard" if terminal.colour else None
        self._console = RichConsole(file=terminal.stream, force_terminal=True, color_system=colours, highlight=False)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the display away and show the cursor."""
        if self._live is not None:
            self._live.stop()

    def listen(self, event: Event) -> None:
        """Take an event in; a line above the display where it deserves one."""
        with self._lock:
            self._progress.apply(event, time.monotonic())
        # Outside the lock: the display's own thread holds its lock while it asks for ours.
        if isinstance(event, StepStarted):
            self._begin()
        if isinstance(event, RunStarted | StepStarted | StepAdvanced | StepFinished):
            return
        text = event_text(event, self._terminal)
        if text is not None:
            self._console.print(Text.from_ansi(text))

    def stopping(self) -> None:
        """Show at the next refresh that the run is being stopped."""
        self._stopping = True

    def _begin(self) -> None:
        with self._beginning:
            if self._live is None:
                self._live = Live(
                    console=self._console,
                    get_renderable=self._render,
                    refresh_per_second=_FRAMES_PER_SECOND,
                    transient=True,
                    redirect_stdout=False,
                    redirect_stderr=False,
                )
                self._live.start()

    def _render(self) -> Text:
        with self._lock:
            lines = live_lines(self._progress, time.monotonic(), self._console.width, self._terminal.paint)
        if self._stopping:
            lines.append(self._terminal.paint(STOPPING[: self._console.width], "yellow"))
        return Text.from_ansi("\n".join(lines), no_wrap=True, overflow="crop")


def live_lines(progress: Progress, now: float, width: int, paint: Paint) -> list[str]:
    """Draw the running steps and the total within `width` columns."""
    frame = _FRAMES[int(now * _FRAMES_PER_SECOND) % len(_FRAMES)]
    steps = sorted(progress.running.values(), key=lambda step: step.started)
    names = max([len(step.subject) for step in steps], default=0)
    fixed = 2 + 1 + _STEP_WIDTH + 1 + _TIME_WIDTH
    room = min(names, width - fixed)
    bar = min(_BAR_WIDTH, width - fixed - room - 1)
    lines = [_step_line(step, now, frame, room, bar, paint) for step in steps]
    return [*lines, _total_line(progress, now, width, paint)]


def _step_line(step: RunningStep, now: float, frame: str, room: int, bar: int, paint: Paint) -> str:
    name = step.subject if len(step.subject) <= room else f"…{step.subject[-(room - 1) :]}"
    times = duration(step.elapsed_s(now))
    if step.expected_s:
        times += f" / {duration(step.expected_s)}"
    drawn = f" {_bar(step.share(now), bar, paint)}" if bar >= _BAR_LEAST else ""
    return f"{paint(frame, 'cyan')} {name:<{room}} {step.step:<{_STEP_WIDTH}}{drawn} {times:<{_TIME_WIDTH}}".rstrip()


def _total_line(progress: Progress, now: float, width: int, paint: Paint) -> str:
    total, done = len(progress.jobs), len(progress.outcomes)
    if not total:
        return ""
    bar = min(_BAR_WIDTH, width // 4)
    counts = [(f"{count} {status.value}", STATUS_STYLE[status]) for status, count in progress.counts.items()]
    parts = [(f"{done} of {total} jobs", ""), *counts]
    remaining = progress.remaining_s(now)
    if remaining is not None and remaining >= 1:
        parts.insert(1, (f"about {_rough(remaining)} left", ""))
    line, used = _bar(done / total if total else None, bar, paint), bar
    for text, style in parts:
        used += 2 + len(text)
        if used <= width:
            line += f"  {paint(text, style)}"
    return line


def _rough(seconds: float) -> str:
    return f"{round(seconds)} s" if seconds < 59.5 else duration(seconds)


def _bar(share: float | None, width: int, paint: Paint) -> str:
    if share is None:
        return " " * width
    filled = int(width * share)
    return paint("━" * filled, "cyan") + paint("─" * (width - filled), "dim")
