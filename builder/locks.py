"""Named locks among all processes that share a home; the kernel releases them when a process dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from builder.errors import EnginefarmError, Reason
from builder.project import Home

_TRY_S = 0.25


@contextmanager
def named_lock(
    home: Home, name: str, cancel: threading.Event, on_wait: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold a lock; `on_wait` is called once if another process has it.

    Raises:
        EnginefarmError: INTERRUPTED when `cancel` is set while waiting.

    """
    home.locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(home.locks / f"{name}.lock")
    while True:
        try:
            lock.acquire(timeout=_TRY_S)
            break
        except Timeout:
            if cancel.is_set():
                raise EnginefarmError(Reason.INTERRUPTED, f"stopped while waiting for {name}") from None
            if on_wait is not None:
                on_wait()
                on_wait = None
    try:
        yield
    finally:
        lock.release()
