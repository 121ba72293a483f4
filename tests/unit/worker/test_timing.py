"""Loops that time work, with a clock that the test turns."""

from __future__ import annotations

import pytest

from builder.worker import timing
from builder.worker.protocol import Profile, ShapeRange
from builder.worker.timing import Block, gpu_times, timed_cases, wall_times, warm_up


class Clock:
    """A host whose time passes only when something runs."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.runs = 0
        self.waits = 0
        self.run_ns = 2_000_000

    def perf_counter(self) -> float:
        return self.now_ns / 1e9

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def run(self) -> None:
        self.runs += 1
        self.now_ns += self.run_ns

    def wait(self) -> None:
        self.waits += 1
        self.now_ns += 500_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a clock of ours in place of the host's."""
    made = Clock()
    monkeypatch.setattr(timing, "time", made)
    return made


def test_wall_counts_the_run_and_the_wait_for_its_end(clock: Clock) -> None:
    assert wall_times(clock.run, clock.wait, Block(0, 4)) == [2.5] * 4
    assert clock.waits == 4


def test_slow_work_is_run_less_often(clock: Clock) -> None:
    clock.run_ns = 3_000_000_000
    assert len(wall_times(clock.run, clock.wait, Block(0, 200))) == 3
    clock.run_ns = 30_000_000_000
    assert len(wall_times(clock.run, clock.wait, Block(0, 200))) == timing.FEWEST
    assert len(wall_times(clock.run, clock.wait, Block(0, 2))) == 2


def test_warm_up_takes_as_many_runs_as_asked(clock: Clock) -> None:
    assert warm_up(clock.run, clock.wait, Block(500, 1)) == 500


def test_warm_up_takes_its_time(clock: Clock) -> None:
    # 2.5 ms each: 0.3 s are 120 runs
    assert warm_up(clock.run, clock.wait, Block(0, 1)) == 120


def test_warm_up_of_slow_work_ends(clock: Clock) -> None:
    clock.run_ns = 1_000_000_000
    assert warm_up(clock.run, clock.wait, Block(500, 1)) == 3


class Stamps:
    """A GPU's clock: each stamp is a tenth of a millisecond after the one before."""

    def __init__(self) -> None:
        self.count = 0
        self.waited = 0

    def mark(self) -> int:
        self.count += 1
        return self.count

    def wait(self) -> None:
        self.waited += 1

    def elapsed_ms(self, start: int, stop: int) -> float:
        assert self.waited
        return (stop - start) / 10


def test_gpu_times_follow_one_another_without_a_wait(clock: Clock) -> None:
    stamps = Stamps()
    assert gpu_times(clock.run, stamps, Block(0, 5), 2.0) == pytest.approx([0.1] * 5)
    assert (clock.runs, clock.waits, stamps.waited) == (5, 0, 1)


@pytest.mark.parametrize(("each_ms", "runs"), [(0.0, 200), (1.0, 200), (80.0, 100), (60_000.0, 3)])
def test_gpu_times_of_slow_work_are_fewer(clock: Clock, each_ms: float, runs: int) -> None:
    assert len(gpu_times(clock.run, Stamps(), Block(0, 200), each_ms)) == runs


def test_cases_to_time() -> None:
    dynamic = Profile("a", {"x": ShapeRange((1, 4), (2, 4), (8, 4), ((3, 4),)), "y": ShapeRange((1,), (1,), (1,))})
    fixed = Profile("b", {"x": ShapeRange((2, 4), (2, 4), (2, 4)), "y": ShapeRange((1,), (1,), (1,))})
    assert [case.name for case in timed_cases([dynamic, fixed], ["opt"])] == ["a/opt", "b/opt"]
    every = timed_cases([dynamic, fixed], ["min", "opt", "max"])
    assert [case.name for case in every] == ["a/min", "a/opt", "a/max", "b/min"]
    assert every[2].shapes == {"x": (8, 4), "y": (1,)}
