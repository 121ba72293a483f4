"""Spreads stages over processors: one that has to stay on a processor must not share it with another."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Processors:
    """The processors that this process may use, and how many stages each has."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = dict.fromkeys(sorted(os.sched_getaffinity(0)), 0)

    @contextmanager
    def lend(self) -> Iterator[int]:
        """Name a processor with the fewest stages."""
        with self._lock:
            processor = min(self._users, key=lambda number: self._users[number])
            self._users[processor] += 1
        try:
            yield processor
        finally:
            with self._lock:
                self._users[processor] -= 1
