"""Connections to registries that are open, so that whoever stops a run need not wait for a server that says nothing."""

from __future__ import annotations

import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_LINES: weakref.WeakValueDictionary[int, socket.socket] = weakref.WeakValueDictionary()


def note_line(line: socket.socket) -> None:
    """Take note of a connection; it is forgotten when nobody uses it any more."""
    _LINES[id(line)] = line


def hang_up() -> None:
    """Break all connections: who waits for one is told at once. For signal handlers, too."""
    for line in _LINES.copy().values():
        cut(line)


def cut(line: socket.socket) -> None:
    """Break a connection that another thread may be reading from."""
    # past what TLS makes of it, which is not for two threads
    with suppress(OSError):
        socket.socket.shutdown(line, socket.SHUT_RDWR)


@contextmanager
def watched(line: socket.socket | None, count: Callable[[], int], pause_s: float) -> Iterator[None]:
    """Break a connection on which `count` does not grow within a pause.

    A time-out between two bytes is not enough: a byte now and then would keep us for ever.
    """
    if line is None:
        yield
        return
    ended, watching = threading.Event(), line

    def watch() -> None:
        before = -1
        while (now := count()) > before:
            before = now
            if ended.wait(pause_s):
                return
        cut(watching)

    threading.Thread(target=watch, name="registry-watch", daemon=True).start()
    try:
        yield
    finally:
        ended.set()
