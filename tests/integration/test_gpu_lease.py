"""Leases on GPUs among real processes: they exclude one another, whoever runs them, and die with their process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.gpu import Gpu
from builder.gpu_lease import lease
from tests.integration.farm import ROOT

pytestmark = pytest.mark.integration

GPU = Gpu(uuid="GPU-1", index=0, name="a GPU", sm="9.0", driver="580", memory_bytes=0, mig=False)
HOLDER = """
import os, sys, threading, time
from builder.gpu import Gpu
from builder.gpu_lease import lease
gpu = Gpu(uuid="GPU-1", index=0, name="a GPU", sm="9.0", driver="580", memory_bytes=0, mig=False)
if len(sys.argv) > 1:
    os.setgroups([])
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
told = lambda text: print("waits", flush=True)
with lease([gpu], threading.Event(), told, os.environ, what="job x"):
    print("holds", flush=True)
    sys.stdin.readline()
"""
NOBODY = 65534


@pytest.fixture
def environ() -> Iterator[dict[str, str]]:
    """A folder that all users can reach, and locks in it."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o1777)
        yield {**os.environ, "PYTHONPATH": str(ROOT), "ENGINEFARM_GPU_LOCKS": f"{name}/locks"}


def start(environ: dict[str, str], user: int | None = None) -> subprocess.Popen[str]:
    """Start a process that takes the lease and holds it until a line comes in."""
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, *([] if user is None else [str(user)])],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def says(process: subprocess.Popen[str]) -> str:
    """Return the next line of a process."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    """Let a process go."""
    process.communicate("\n", timeout=20)
    assert process.returncode == 0


def test_processes_take_turns(environ: dict[str, str]) -> None:
    first = start(environ)
    assert says(first) == "holds"
    second = start(environ)
    assert says(second) == "waits"
    end(first)
    assert says(second) == "holds"
    end(second)


def test_a_killed_process_holds_nothing(environ: dict[str, str]) -> None:
    first = start(environ)
    assert says(first) == "holds"
    told: list[str] = []

    def on_wait(text: str) -> None:
        told.append(text)
        first.send_signal(signal.SIGKILL)

    with lease([GPU], threading.Event(), on_wait, environ) as gpu:
        assert gpu == GPU
    assert told == [f"GPU 0 (a GPU) is held by enginefarm process {first.pid} (job x): waiting"]
    first.communicate()


def test_a_program_that_a_holder_starts_holds_nothing(environ: dict[str, str]) -> None:
    with lease([GPU], threading.Event(), None, environ):
        child = subprocess.Popen(["sleep", "60"])
    try:
        other = start(environ)
        assert says(other) == "holds"
        end(other)
    finally:
        child.kill()
        child.wait()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be two users")
@pytest.mark.parametrize("order", [(None, NOBODY), (NOBODY, None)])
def test_users_exclude_each_other(environ: dict[str, str], order: tuple[int | None, int | None]) -> None:
    first = start(environ, order[0])
    assert says(first) == "holds"
    second = start(environ, order[1])
    assert says(second) == "waits"
    end(first)
    assert says(second) == "holds"
    end(second)
