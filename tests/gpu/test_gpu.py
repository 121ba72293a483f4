"""A real GPU as the farm sees it: facts, free memory, who uses it, clocks under load, and leases."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from builder.errors import Reason
from builder.gpu import Gpu, free_memory_bytes, processes, sample, visible_gpus
from builder.gpu_lease import lease, require_memory
from builder.gpu_watch import Watch
from tests.artifacts import refusal

pytestmark = pytest.mark.gpu

GIB = 1 << 30
# fills memory again and again, through the driver alone; argv: bytes
BUSY = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
context, address = ctypes.c_void_p(), ctypes.c_uint64()
size = int(sys.argv[1])
def call(name, *arguments):
    code = getattr(cuda, name)(*arguments)
    assert code == 0, (name, code)
call("cuInit", 0)
call("cuDevicePrimaryCtxRetain", ctypes.byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
print("ready", flush=True)
while True:
    call("cuMemsetD8_v2", address, ctypes.c_ubyte(1), ctypes.c_size_t(size))
    call("cuCtxSynchronize")
"""


@contextmanager
def busy(gpu: Gpu, size: int) -> Iterator[int]:
    """Keep a GPU busy from another process, whose number comes back."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu.uuid}
    process = subprocess.Popen([sys.executable, "-c", BUSY, str(size)], env=env, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


def test_facts(gpu: Gpu) -> None:
    assert re.fullmatch(r"(GPU|MIG)-[0-9a-f-]{36}", gpu.uuid)
    assert re.fullmatch(r"\d+\.\d", gpu.sm)
    assert re.fullmatch(r"\d+(\.\d+)+", gpu.driver)
    assert gpu.memory_bytes > GIB
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": gpu.uuid}) == (gpu,)
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()


def test_load_and_memory_of_another_process_are_seen(gpu: Gpu) -> None:
    before = free_memory_bytes(gpu.uuid)
    with busy(gpu, 2 * GIB) as pid, Watch(gpu.uuid) as watch:
        threading.Event().wait(3.0)
        assert free_memory_bytes(gpu.uuid) < before - 2 * GIB + GIB // 4
        # in a container the driver may know the process by another number, or hide it
        found = processes(gpu.uuid)
        assert not found or pid in [one.pid for one in found] or not Path(f"/proc/{found[0].pid}").exists()
        seen = watch.seen
    assert seen.problem is None
    assert seen.looks >= 10
    assert (seen.peak_memory_bytes or 0) >= 2 * GIB
    if not gpu.mig:
        assert (seen.max_sm_clock_mhz or 0) > 300
        assert 10 < (seen.max_temperature_c or 0) < 110
        assert sample(gpu.uuid).power_w is not None


def test_memory_that_another_process_holds_is_missed(gpu: Gpu) -> None:
    free = free_memory_bytes(gpu.uuid)
    with busy(gpu, free - 2 * GIB):
        error = refusal(lambda: require_memory(gpu, 4 * GIB, threading.Event(), patience_s=0.5))
        assert error.reason is Reason.GPU_MEMORY_SHORT
    # what a killed process held comes back within the patience
    assert require_memory(gpu, 4 * GIB, threading.Event()) >= 4 * GIB


def test_a_lease_on_a_real_gpu(gpu: Gpu) -> None:
    with lease([gpu], threading.Event(), None, os.environ) as held:
        assert held == gpu
