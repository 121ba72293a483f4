"""Connections that are broken, so that nobody waits for what does not come."""

from __future__ import annotations

import gc
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from builder import hang_up


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connect two ends."""
    here, there = socket.socketpair()
    with here, there:
        here.settimeout(10)
        yield here, there


def test_who_waits_is_told_at_once(pair: tuple[socket.socket, socket.socket]) -> None:
    here, _ = pair
    hang_up.note_line(here)
    threading.Timer(0.05, hang_up.hang_up).start()
    assert here.recv(1) == b""


def test_what_is_closed_or_gone_is_no_trouble() -> None:
    here, there = socket.socketpair()
    hang_up.note_line(here)
    hang_up.note_line(there)
    here.close()
    there.close()
    hang_up.hang_up()
    del here, there
    gc.collect()
    hang_up.hang_up()


def test_a_byte_now_and_then_is_not_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    there.sendall(b"x")
    with hang_up.watched(here, lambda: 0, 0.05), here.makefile("rb") as stream:
        assert stream.read(100) == b"x"


def test_what_grows_is_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    here, there = pair
    started = time.monotonic()
    with hang_up.watched(here, lambda: int((time.monotonic() - started) * 1e6), 0.02):
        time.sleep(0.1)
        there.sendall(b"x")
        assert here.recv(1) == b"x"
    time.sleep(0.05)
    there.sendall(b"y")
    assert here.recv(1) == b"y"


def test_without_a_connection_nobody_watches() -> None:
    before = threading.active_count()
    with hang_up.watched(None, lambda: 0, 0.01):
        assert threading.active_count() == before
