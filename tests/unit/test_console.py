"""Plain lines of a run."""

from __future__ import annotations

import io
import sys

import pytest

from builder.console import HEARTBEAT_S, STOPPING, PlainConsole, open_console
from builder.errors import EnginefarmError, Reason
from builder.events import Event, JobFinished, JobOutcome, Note, RunStarted, Status, StepFinished, StepStarted
from builder.live import LiveConsole, live_lines
from builder.progress import Progress
from builder.terminal import Terminal

JOB = "tiny-fp16-trtrtx1.7-cuda13-sm80-sm86"


class Recorder:
    """A plain console on a clock that the test turns."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stream = io.StringIO()
        terminal = Terminal(stream=self.stream, interactive=False, colour=False, width=80)
        self.console = PlainConsole(terminal, clock=lambda: self.now, stamp=lambda: "12:00:00")

    def lines(self) -> list[str]:
        """Return what was written, without the time."""
        return [line.removeprefix("12:00:00 ") for line in self.stream.getvalue().splitlines()]


def failed(job: str) -> JobFinished:
    """Make the event of a failed job."""
    error = EnginefarmError(Reason.BUILD_FAILED, "TensorRT says no\nand more")
    return JobFinished(outcome=JobOutcome(job=job, status=Status.FAILED, seconds=1.0, error=error))


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (RunStarted(jobs=("a",), parallel=2), "1 job, at most 2 at a time"),
        (RunStarted(jobs=("a", "b"), parallel=2), "2 jobs, at most 2 at a time"),
        (StepStarted(subject="stack export", step="install", expected_s=None), "stack export install begins"),
        (StepFinished(subject=JOB, step="build", seconds=0.52, ok=True), f"{JOB} build ok 0.52 s"),
        (StepFinished(subject=JOB, step="build", seconds=0.52, ok=False), f"{JOB} build failed 0.52 s"),
        (Note(subject=JOB, text="waiting"), f"{JOB} note: waiting"),
        (
            JobFinished(outcome=JobOutcome(job=JOB, status=Status.BUILT, seconds=3.1)),
            f"{JOB} built 3.10 s",
        ),
        (failed(JOB), f"{JOB} failed EF-409 build-failed: TensorRT says no"),
    ],
)
def test_line_per_event(event: Event, line: str) -> None:
    """Each event that deserves one gets one line with the time in front."""
    recorder = Recorder()
    with recorder.console as console:
        console.listen(event)
    assert recorder.lines() == [line]
    assert recorder.stream.getvalue().startswith("12:00:00 ")


def test_what_the_final_table_says_is_not_said_twice() -> None:
    """The final table says it; a line per stage is enough."""
    recorder = Recorder()
    with recorder.console as console:
        console.listen(StepStarted(subject=JOB, step="build", expected_s=3.0))
        console.listen(JobFinished(outcome=JobOutcome(job=JOB, status=Status.REUSED, seconds=0.01)))
        console.listen(JobFinished(outcome=JobOutcome(job="never", status=Status.CANCELLED, seconds=0.0)))
    assert recorder.lines() == []


def test_heartbeat_of_a_long_step() -> None:
    """Every half minute a running step gives a sign of life; one that ended gives none."""
    recorder = Recorder()
    console = recorder.console
    console.listen(StepStarted(subject=JOB, step="build", expected_s=90.0))
    for second in range(0, 100, 10):
        recorder.now = float(second)
        console.beat()
    assert recorder.lines() == [
        f"{JOB} build runs, 30.0 s of about 1 min 30 s",
        f"{JOB} build runs, 1 min 00 s of about 1 min 30 s",
        f"{JOB} build runs, 1 min 30 s of about 1 min 30 s",
    ]
    console.listen(StepFinished(subject=JOB, step="build", seconds=95.0, ok=True))
    recorder.now += 10 * HEARTBEAT_S
    console.beat()
    assert recorder.lines()[-1] == f"{JOB} build ok 1 min 35 s"
    console.__exit__(None, None, None)


def test_stopping_is_said_once() -> None:
    """The signal handler leaves word; the heartbeat passes it on."""
    recorder = Recorder()
    recorder.console.stopping()
    assert recorder.lines() == []
    recorder.console.beat()
    recorder.console.stopping()
    recorder.console.beat()
    assert recorder.lines() == [STOPPING]
    recorder.console.listen(StepFinished(subject=JOB, step="build", seconds=0.1, ok=False))
    assert recorder.lines()[-1] == f"{JOB} build stopped 0.10 s"


def test_plain_console_needs_no_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs without a terminal never pay for the live display."""
    for name in [name for name in sys.modules if name.split(".")[0] == "rich" or name == "builder.live"]:
        monkeypatch.delitem(sys.modules, name)
    terminal = Terminal(stream=io.StringIO(), interactive=False, colour=False, width=80)
    with open_console(terminal, {}) as console:
        console.listen(RunStarted(jobs=(JOB,), parallel=1))
        console.listen(StepStarted(subject=JOB, step="build", expected_s=None))
    assert not [name for name in sys.modules if name.split(".")[0] == "rich"]


def plain(text: str, style: str) -> str:
    """Paint nothing."""
    return text


@pytest.mark.parametrize("width", [40, 80, 140])
def test_live_lines_fit(width: int) -> None:
    """No line is wider than the terminal; the beginning of a long name gives way, its end tells jobs apart."""
    progress = Progress(expected_s={JOB: 8.0})
    progress.apply(RunStarted(jobs=(JOB, "other"), parallel=2), 0.0)
    progress.apply(StepStarted(subject=JOB, step="build", expected_s=4.0), 0.0)
    progress.apply(StepStarted(subject="export vocos", step="export", expected_s=None), 1.0)
    lines = live_lines(progress, 2.0, width, plain)
    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    assert "sm80-sm86 build" in lines[0]
    assert "2.00 s / 4.00 s" in lines[0]
    assert "0 of 2 jobs" in lines[2]


def test_live_console_restores_the_terminal() -> None:
    """The display is taken away, the cursor shown, and lines for people stay."""
    stream = io.StringIO()
    terminal = Terminal(stream=stream, interactive=True, colour=False, width=80)
    with LiveConsole(terminal, {}) as console:
        console.listen(RunStarted(jobs=(JOB,), parallel=1))
        assert not stream.getvalue()
        console.listen(StepStarted(subject=JOB, step="build", expected_s=None))
        console.stopping()
        console.listen(failed(JOB))
    text = stream.getvalue()
    assert text.count("\x1b[?25l") == 1
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert f"{JOB} failed EF-409 build-failed: TensorRT says no" in " ".join(text.split())
