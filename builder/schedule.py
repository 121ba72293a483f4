"""Runs tasks that need one another, several at a time, within a memory budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

_POLL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Something to run once all that it needs has run. `run` must not raise; results travel outside."""

    name: str
    needs: frozenset[str]
    memory_bytes: int
    run: Callable[[], None]


def run_tasks(tasks: Sequence[Task], parallel: int, memory_bytes: int, cancel: threading.Event) -> None:
    """Run all tasks; in the given order where they could start at once.

    A task waits while the estimates of the running ones and its own exceed the budget, but never when nothing else
    runs. A smaller task overtakes one that waits for memory. Once `cancel` is set no task starts; the running ones are
    waited for. A task that raises all the same is a bug: `cancel` is set, and the exception comes out when the others
    have stopped.

    Raises:
        ValueError: a task needs a name that no task has, two have one name, or tasks need each other in a circle.

    """
    _check(tasks)
    with ThreadPoolExecutor(max_workers=parallel, thread_name_prefix="job") as pool:
        try:
            _run(pool, list(tasks), parallel, memory_bytes, cancel)
        except BaseException:
            # leaving the pool waits for the running tasks: they are told to stop
            cancel.set()
            raise


def _run(
    pool: ThreadPoolExecutor, waiting: list[Task], parallel: int, memory_bytes: int, cancel: threading.Event
) -> None:
    done: set[str] = set()
    running: dict[Future[None], Task] = {}
    while waiting or running:
        if not cancel.is_set():
            for task in _startable(waiting, done, list(running.values()), parallel, memory_bytes):
                waiting.remove(task)
                running[pool.submit(task.run)] = task
        elif not running:
            return
        for future in wait(running, timeout=_POLL_S, return_when=FIRST_COMPLETED).done:
            done.add(running.pop(future).name)
            future.result()


def _startable(
    waiting: Sequence[Task], done: set[str], running: Sequence[Task], parallel: int, memory_bytes: int
) -> list[Task]:
    chosen: list[Task] = []
    used, slots = sum(task.memory_bytes for task in running), parallel - len(running)
    for task in waiting:
        if len(chosen) >= slots:
            break
        if not task.needs <= done:
            continue
        if used + task.memory_bytes > memory_bytes and (running or chosen):
            continue
        chosen.append(task)
        used += task.memory_bytes
    return chosen


def _check(tasks: Sequence[Task]) -> None:
    names = {task.name for task in tasks}
    if len(names) < len(tasks):
        twice = sorted({name for name in names if sum(task.name == name for task in tasks) > 1})
        msg = f"two tasks are named {', '.join(twice)}"
        raise ValueError(msg)
    settled: set[str] = set()
    rest = list(tasks)
    while rest:
        ready = [task for task in rest if task.needs <= settled]
        if not ready:
            missing = sorted(set().union(*(task.needs for task in rest)) - names)
            msg = f"tasks that can never start: {sorted(task.name for task in rest)}, missing: {missing}"
            raise ValueError(msg)
        settled |= {task.name for task in ready}
        rest = [task for task in rest if task.name not in settled]
