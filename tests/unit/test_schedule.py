"""Tasks that need one another, several at a time, within a memory budget."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.schedule import Task, run_tasks

LONG_S = 10.0


def task(name: str, run: Callable[[], None], *, needs: tuple[str, ...] = (), memory_bytes: int = 0) -> Task:
    """Make a task with few words."""
    return Task(name=name, needs=frozenset(needs), memory_bytes=memory_bytes, run=run)


class Recorder:
    """Remembers what began, and how much ran at once."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.order: list[str] = []
        self.most = 0
        self.most_memory = 0
        self._running: dict[str, int] = {}
        self._lock = threading.Lock()

    def task(self, name: str, *, needs: tuple[str, ...] = (), memory_bytes: int = 0, seconds: float = 0.0) -> Task:
        """Make a task that records itself."""

        def run() -> None:
            with self._lock:
                self.begun.append(name)
                self.order.append(f"begin {name}")
                self._running[name] = memory_bytes
                self.most = max(self.most, len(self._running))
                self.most_memory = max(self.most_memory, sum(self._running.values()))
            time.sleep(seconds)
            with self._lock:
                self.ended.append(name)
                self.order.append(name)
                del self._running[name]

        return task(name, run, needs=needs, memory_bytes=memory_bytes)


def test_runs_in_the_given_order_one_at_a_time() -> None:
    recorder = Recorder()
    run_tasks([recorder.task(name) for name in "dcab"], 1, 0, threading.Event())
    assert recorder.begun == ["d", "c", "a", "b"]


def test_a_task_waits_for_what_it_needs() -> None:
    recorder = Recorder()
    tasks = [
        recorder.task("job", needs=("stack", "export")),
        recorder.task("export", needs=("stack",), seconds=0.02),
        recorder.task("stack", seconds=0.02),
    ]
    run_tasks(tasks, 4, 100, threading.Event())
    assert recorder.begun == ["stack", "export", "job"]


def test_as_many_at_once_as_asked_for() -> None:
    both = threading.Barrier(2, timeout=LONG_S)
    run_tasks([task("a", lambda: _meet(both)), task("b", lambda: _meet(both))], 2, 0, threading.Event())
    assert not both.broken


def test_no_more_at_once_than_asked_for() -> None:
    recorder = Recorder()
    run_tasks([recorder.task(str(index), seconds=0.01) for index in range(6)], 2, 0, threading.Event())
    assert recorder.most == 2


def test_the_memory_budget_limits_how_many_run() -> None:
    recorder = Recorder()
    tasks = [recorder.task(str(index), memory_bytes=40, seconds=0.01) for index in range(5)]
    run_tasks(tasks, 5, 100, threading.Event())
    assert recorder.most == 2
    assert recorder.most_memory == 80


def test_a_task_larger_than_the_budget_runs_alone() -> None:
    recorder = Recorder()
    tasks = [recorder.task(name, memory_bytes=500, seconds=0.01) for name in "ab"]
    run_tasks(tasks, 2, 100, threading.Event())
    assert recorder.ended == ["a", "b"]
    assert recorder.most == 1


def test_a_small_task_goes_first_while_a_large_one_waits_for_memory() -> None:
    recorder = Recorder()
    tasks = [
        recorder.task("running", memory_bytes=60, seconds=0.1),
        recorder.task("large", memory_bytes=80),
        recorder.task("small", memory_bytes=30),
    ]
    run_tasks(tasks, 2, 100, threading.Event())
    assert recorder.ended == ["small", "running", "large"]


def test_cancel_starts_nothing_more_and_waits_for_the_running() -> None:
    cancel = threading.Event()
    recorder = Recorder()

    def stop() -> None:
        cancel.set()
        time.sleep(0.05)
        recorder.ended.append("stopping")

    run_tasks([task("stopping", stop), recorder.task("next")], 1, 0, cancel)
    assert recorder.ended == ["stopping"]


def test_cancelled_before_the_start_runs_nothing() -> None:
    cancel = threading.Event()
    cancel.set()
    recorder = Recorder()
    run_tasks([recorder.task("a")], 1, 0, cancel)
    assert recorder.begun == []


def test_a_bug_in_a_task_ends_the_run_and_starts_nothing_more() -> None:
    recorder = Recorder()

    def bug() -> None:
        msg = "a bug"
        raise ZeroDivisionError(msg)

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_tasks([task("bug", bug), *(recorder.task(str(index)) for index in range(5))], 1, 0, threading.Event())
    assert recorder.begun == []


def test_a_bug_in_a_task_stops_what_watches_the_cancel_event() -> None:
    cancel = threading.Event()
    stopped = threading.Event()
    both = threading.Barrier(2, timeout=LONG_S)

    def bug() -> None:
        both.wait()
        msg = "a bug"
        raise ZeroDivisionError(msg)

    def long_stage() -> None:
        both.wait()
        if cancel.wait(LONG_S):
            stopped.set()

    with pytest.raises(ZeroDivisionError):
        run_tasks([task("bug", bug), task("long", long_stage)], 2, 0, cancel)
    assert stopped.is_set()


def test_refuses_a_need_that_no_task_fulfils() -> None:
    with pytest.raises(ValueError, match=r"missing: \['nobody'\]"):
        run_tasks([task("a", _nothing, needs=("nobody",))], 1, 0, threading.Event())


def test_refuses_a_circle() -> None:
    tasks = [task("a", _nothing, needs=("b",)), task("b", _nothing, needs=("a",))]
    with pytest.raises(ValueError, match=r"never start: \['a', 'b'\], missing: \[\]"):
        run_tasks(tasks, 1, 0, threading.Event())


def test_refuses_two_tasks_of_one_name() -> None:
    with pytest.raises(ValueError, match="two tasks are named a"):
        run_tasks([task("a", _nothing), task("a", _nothing)], 1, 0, threading.Event())


@given(
    needs=st.lists(st.sets(st.integers(0, 11), max_size=4), min_size=1, max_size=12),
    parallel=st.integers(1, 4),
    budget=st.integers(0, 200),
)
@settings(max_examples=40, deadline=None)
def test_any_graph_without_a_circle_runs_each_task_once_after_its_needs(
    needs: list[set[int]], parallel: int, budget: int
) -> None:
    recorder = Recorder()
    tasks = [
        recorder.task(str(index), needs=tuple(str(need) for need in wanted if need < index), memory_bytes=index * 20)
        for index, wanted in enumerate(needs)
    ]
    run_tasks(tasks[::-1], parallel, budget, threading.Event())
    assert sorted(recorder.begun, key=int) == [str(index) for index in range(len(needs))]
    for item in tasks:
        assert item.needs <= set(recorder.order[: recorder.order.index(f"begin {item.name}")])
    assert recorder.most <= parallel


def _nothing() -> None:
    pass


def _meet(barrier: threading.Barrier) -> None:
    barrier.wait()
