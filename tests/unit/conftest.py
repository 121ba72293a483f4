"""Unit tests start no program, open no connection and leave the user's store alone."""

from __future__ import annotations

import gc
import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

# Python itself asks `uname` once and remembers
platform.platform()


class GuardError(AssertionError):
    """A unit test reached for the world outside."""


def _no_program(self: object, args: object = None, *_: Any, **__: Any) -> NoReturn:
    raise GuardError(f"a unit test starts a program: {args}; move it to tests/integration")


def _no_connection(self: object, address: object) -> NoReturn:
    raise GuardError(f"a unit test connects to {address}; move it to tests/integration")


def pytest_collection_finish() -> None:
    """Let the collector of garbage leave thousands of collected tests alone: it took a fifth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)


@pytest.fixture(autouse=True)
def _guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    # a patch of its own: a test that undoes its monkeypatch must not lift the guard
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", _no_program)
        # what a power failure would leave is no matter here, and waiting for the disk is half the time of some tests
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(socket.socket, "connect", _no_connection)
        patch.setattr(socket.socket, "connect_ex", _no_connection)
        home: Path = tmp_path_factory.getbasetemp() / "nobody"
        for name in ("HOME", "ENGINEFARM_HOME", "ENGINEFARM_GPU_LOCKS", "XDG_CACHE_HOME"):
            patch.setenv(name, str(home / name.lower()))
        yield
