"""Named locks: threads and processes of one home exclude one another, and waiting can be cancelled."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from builder.errors import EnginefarmError, Reason
from builder.locks import named_lock
from builder.project import Home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that does not exist yet."""
    return Home(root=tmp_path / "home")


def test_two_threads_exclude_one_another(home: Home) -> None:
    inside: list[int] = []
    seen: list[int] = []

    def work(index: int) -> None:
        for _ in range(5):
            with named_lock(home, "engine-1", threading.Event()):
                inside.append(index)
                seen.append(len(inside))
                inside.remove(index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert seen == [1] * 20


def test_locks_of_other_names_do_not_wait(home: Home) -> None:
    waited: list[str] = []
    with (
        named_lock(home, "engine-1", threading.Event()),
        named_lock(home, "engine-2", threading.Event(), lambda: waited.append("2")),
    ):
        pass
    assert waited == []


def test_a_waiting_thread_is_told_once_and_gets_the_lock(home: Home) -> None:
    told: list[str] = []
    order: list[str] = []
    waiting = threading.Event()

    def on_wait() -> None:
        told.append("waiting")
        waiting.set()

    def second() -> None:
        with named_lock(home, "engine-1", threading.Event(), on_wait):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with named_lock(home, "engine-1", threading.Event()):
            future = pool.submit(second)
            assert waiting.wait(10)
            order.append("first")
        future.result(10)
    assert told == ["waiting"]
    assert order == ["first", "second"]


def test_cancel_ends_the_waiting(home: Home) -> None:
    cancel = threading.Event()

    def second() -> None:
        with named_lock(home, "engine-1", cancel, cancel.set):
            pass

    with named_lock(home, "engine-1", threading.Event()), ThreadPoolExecutor(1) as pool:
        future = pool.submit(second)
        with pytest.raises(EnginefarmError, match="stopped while waiting for engine-1") as caught:
            future.result(10)
    assert caught.value.reason is Reason.INTERRUPTED


def test_the_lock_is_free_after_an_error(home: Home) -> None:
    with pytest.raises(ZeroDivisionError), named_lock(home, "engine-1", threading.Event()):
        raise ZeroDivisionError
    with FileLock(home.locks / "engine-1.lock", timeout=0):
        pass
