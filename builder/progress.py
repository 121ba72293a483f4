"""What is running, what is done and how long the rest may take: events in, figures out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from builder.events import Event, JobFinished, JobOutcome, RunStarted, Status, StepAdvanced, StepFinished, StepStarted
from builder.journal import Journal
from builder.plan import Plan

_JOB_STAGES = ("lower", "build", "examine", "verify")


def expected_job_seconds(plan: Plan, journal: Journal) -> dict[str, float]:
    """Look up how long each job took before; jobs of which a stage was never timed are left out."""
    expected = {}
    for job in plan.jobs:
        stages = [journal.expected_seconds(job.recipe, job.precision, job.stack, stage) for stage in _JOB_STAGES]
        known = [seconds for seconds in stages if seconds is not None]
        if len(known) == len(stages):
            expected[job.id] = sum(known)
    return expected


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningStep:
    """A step under way. `started` is a clock reading, `expected_s` null where the journal knows nothing."""

    subject: str
    step: str
    started: float
    expected_s: float | None
    transferred: float | None = None

    def elapsed_s(self, now: float) -> float:
        """Seconds since the step began."""
        return max(0.0, now - self.started)

    def share(self, now: float) -> float | None:
        """Part that is done: of a transfer's bytes, else of the expected time, at most 0.99; null where unknown."""
        if self.transferred is not None:
            return self.transferred
        return min(0.99, self.elapsed_s(now) / self.expected_s) if self.expected_s else None


@dataclass(slots=True, kw_only=True)
class Progress:
    """The state of a run. `expected_s` says how long a job took before, where the journal knows it."""

    expected_s: Mapping[str, float] = field(default_factory=dict)
    jobs: tuple[str, ...] = ()
    parallel: int = 1
    running: dict[str, RunningStep] = field(default_factory=dict)
    outcomes: list[JobOutcome] = field(default_factory=list)
    _began: dict[str, float] = field(default_factory=dict)

    def apply(self, event: Event, now: float) -> None:
        """Take an event in. `now` is a reading of one clock, in seconds."""
        if isinstance(event, RunStarted):
            self.jobs, self.parallel = event.jobs, max(1, event.parallel)
        elif isinstance(event, StepStarted):
            self._began.setdefault(event.subject, now)
            self.running[event.subject] = RunningStep(
                subject=event.subject, step=event.step, started=now, expected_s=event.expected_s
            )
        elif isinstance(event, StepAdvanced):
            step = self.running.get(event.subject)
            if step is not None and event.total:
                share = min(0.99, event.done / event.total)
                self.running[event.subject] = replace(step, transferred=share)
        elif isinstance(event, StepFinished):
            self.running.pop(event.subject, None)
        elif isinstance(event, JobFinished):
            self.outcomes.append(event.outcome)
            self.running.pop(event.outcome.job, None)

    @property
    def counts(self) -> Counter[Status]:
        """How many jobs ended in which way."""
        return Counter(outcome.status for outcome in self.outcomes)

    def remaining_s(self, now: float) -> float | None:
        """Estimate the seconds until the last job ends; null while nothing is known about a waiting job.

        A job that was never timed is taken to last as long as the average of those that were.
        """
        done = {outcome.job for outcome in self.outcomes}
        left = [job for job in self.jobs if job not in done]
        timed = {o.job: o.seconds for o in self.outcomes if o.status in {Status.BUILT, Status.PROVED}}
        known = {**self.expected_s, **timed}
        work = sum(s.expected_s - s.elapsed_s(now) for s in self._others() if s.expected_s is not None)
        if left and not known:
            return None
        average = sum(known.values()) / len(known) if known else 0.0
        longest = 0.0
        for job in left:
            rest = max(0.0, known.get(job, average) - (now - self._began.get(job, now)))
            work, longest = work + rest, max(longest, rest)
        return max(work / self.parallel, longest)

    def _others(self) -> list[RunningStep]:
        jobs = set(self.jobs)
        return [step for step in self.running.values() if step.subject not in jobs]
