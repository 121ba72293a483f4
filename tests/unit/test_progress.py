"""The state of a run and its estimates."""

from __future__ import annotations

import pytest

from builder.events import JobFinished, JobOutcome, RunStarted, Status, StepAdvanced, StepFinished, StepStarted
from builder.progress import Progress, RunningStep


def finished(job: str, status: Status = Status.BUILT, seconds: float = 10.0) -> JobFinished:
    """Make the event of an ended job."""
    return JobFinished(outcome=JobOutcome(job=job, status=status, seconds=seconds))


def started(*jobs: str, parallel: int = 1, **expected: float) -> Progress:
    """Make the state of a run that has just begun."""
    progress = Progress(expected_s=expected)
    progress.apply(RunStarted(jobs=jobs, parallel=parallel), 0.0)
    return progress


def test_steps_come_and_go() -> None:
    """A step runs between its two events; the end of its job ends it, too."""
    progress = started("a", "b")
    progress.apply(StepStarted(subject="a", step="build", expected_s=4.0), 1.0)
    assert progress.running["a"] == RunningStep(subject="a", step="build", started=1.0, expected_s=4.0)
    progress.apply(StepFinished(subject="a", step="build", seconds=4.0, ok=True), 5.0)
    assert not progress.running
    progress.apply(StepStarted(subject="b", step="build", expected_s=None), 5.0)
    progress.apply(finished("b", Status.FAILED), 6.0)
    assert not progress.running
    assert progress.counts == {Status.FAILED: 1}


@pytest.mark.parametrize(("now", "share"), [(0.0, 0.0), (2.0, 0.5), (400.0, 0.99)])
def test_share_never_reaches_the_end(now: float, share: float) -> None:
    """A step that takes longer than ever is not shown as done."""
    assert RunningStep(subject="a", step="build", started=0.0, expected_s=4.0).share(now) == share


def test_share_is_unknown_without_history() -> None:
    """Nothing is guessed for a step."""
    assert RunningStep(subject="a", step="build", started=0.0, expected_s=None).share(3.0) is None


def test_remaining_is_unknown_at_first() -> None:
    """The first run of all has nothing to go by."""
    assert started("a").remaining_s(0.0) is None


def test_remaining_shares_work_among_slots() -> None:
    """Two slots halve the time, but no job ends before its own time."""
    assert started("a", "b", a=10.0, b=10.0).remaining_s(0.0) == 20.0
    assert started("a", "b", parallel=2, a=10.0, b=10.0).remaining_s(0.0) == 10.0
    assert started("a", "b", parallel=2, a=30.0, b=10.0).remaining_s(0.0) == 30.0


def test_remaining_takes_the_average_for_unknown_jobs() -> None:
    """Built jobs of this run serve as history; reused ones say nothing."""
    progress = started("a", "b", "c")
    progress.apply(finished("a", Status.REUSED, 0.01), 0.0)
    assert progress.remaining_s(0.0) is None
    progress.apply(finished("b", Status.BUILT, 8.0), 8.0)
    assert progress.remaining_s(8.0) == 8.0


def test_remaining_shrinks_while_a_job_runs() -> None:
    """Elapsed time is subtracted, never below zero."""
    progress = started("a", a=10.0)
    progress.apply(StepStarted(subject="a", step="lower", expected_s=1.0), 100.0)
    assert progress.remaining_s(104.0) == 6.0
    assert progress.remaining_s(1000.0) == 0.0


def test_remaining_is_zero_at_the_end() -> None:
    """Nothing is left."""
    progress = started("a")
    progress.apply(finished("a"), 3.0)
    assert progress.remaining_s(3.0) == 0.0


def test_transfer_tells_its_share() -> None:
    """Bytes say more than the time that a step took before; the end is never shown early."""
    progress = started()
    progress.apply(StepStarted(subject="image s", step="fetch", expected_s=100.0), 0.0)
    assert progress.running["image s"].share(50.0) == 0.5
    shares = []
    for done, total in ((0, 200), (50, 200), (200, 200), (300, 200)):
        progress.apply(StepAdvanced(subject="image s", done=done, total=total), 50.0)
        shares.append(progress.running["image s"].share(50.0))
    assert shares == [0.0, 0.25, 0.99, 0.99]
    assert progress.running["image s"].started == 0.0


@pytest.mark.parametrize("total", [None, 0])
def test_transfer_of_unknown_size_tells_nothing(total: int | None) -> None:
    """The expected time stays what there is to go by."""
    progress = started()
    progress.apply(StepStarted(subject="image s", step="fetch", expected_s=None), 0.0)
    progress.apply(StepAdvanced(subject="image s", done=7, total=total), 1.0)
    assert progress.running["image s"].share(1.0) is None


def test_transfer_of_a_step_that_is_over_or_unknown_is_left_out() -> None:
    """Transfers end in other threads than steps; the next step begins anew."""
    progress = started()
    progress.apply(StepAdvanced(subject="image s", done=1, total=2), 0.0)
    progress.apply(StepStarted(subject="image s", step="fetch", expected_s=None), 0.0)
    progress.apply(StepAdvanced(subject="image s", done=1, total=2), 1.0)
    progress.apply(StepFinished(subject="image s", step="fetch", seconds=1.0, ok=True), 1.0)
    progress.apply(StepAdvanced(subject="image s", done=2, total=2), 2.0)
    assert not progress.running
    progress.apply(StepStarted(subject="image s", step="build", expected_s=None), 2.0)
    assert progress.running["image s"].share(2.0) is None
