"""Watching a GPU: what a stage used of it, and which programs were strangers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from builder import gpu_watch
from builder.gpu_watch import Watch, Watched
from tests.nvml import FIRST, GIB, FakeDevice, FakeNvml, in_place

Install = Callable[[FakeNvml], FakeNvml]


@pytest.fixture
def install() -> Iterator[Install]:
    """Put a made machine in the place of this one's."""
    with in_place() as put:
        yield put


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /proc."""
    monkeypatch.setattr(gpu_watch, "_PROC", tmp_path)
    return tmp_path


def program(proc: Path, pid: int, parent: int, command: str) -> None:
    """Start a program, so to speak."""
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "cmdline").write_bytes(command.replace(" ", "\0").encode())
    (proc / str(pid) / "stat").write_text(f"{pid} (a) name) S {parent} 1 1 0", encoding="utf-8")


def steps(device: FakeDevice, *changes: dict[str, object]) -> Watched:
    """Watch a device while it changes, each change for at least one look."""
    with Watch(device.uuid, interval_s=0.002) as watch:
        for change in changes:
            for name, value in change.items():
                setattr(device, name, value)
            await_looks(watch)
        return watch.seen


def await_looks(watch: Watch) -> None:
    """Wait until programs were asked for as well, once more at least."""
    looks, deadline = watch.seen.looks, time.monotonic() + 10
    while watch.seen.looks < looks + 6 and watch.seen.problem is None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_figures_of_a_stage(install: Install, proc: Path) -> None:
    device = FakeDevice(uuid=FIRST, used=2 * GIB, clock=345)
    install(FakeNvml(device))
    seen = steps(
        device,
        {"busy": 90, "clock": 1980, "used": 9 * GIB, "heat": 55},
        {"busy": 95, "clock": 1755, "heat": 70, "reasons": 0x4 | 0x20},
        {"busy": 0, "clock": 210, "used": 3 * GIB, "heat": 50, "reasons": 0x1 | 0x100},
    )
    assert (seen.first_memory_bytes, seen.peak_memory_bytes) == (2 * GIB, 9 * GIB)
    # an idle GPU's clocks, before and after, are no sign of anything
    assert (seen.min_sm_clock_mhz, seen.max_sm_clock_mhz) == (1755, 1980)
    assert seen.throttle == ("sw_power_cap", "sw_thermal_slowdown")
    assert seen.max_temperature_c == 70
    assert (seen.neighbours, seen.problem) == ((), None)


def test_where_the_driver_says_little(install: Install, proc: Path) -> None:
    quiet = ("ClockInfo", "Temperature", "MemoryInfo", "PowerUsage", "UtilizationRates", "CurrentClocksEventReasons")
    silent = frozenset(f"nvmlDeviceGet{name}" for name in (*quiet, "CurrentClocksThrottleReasons"))
    device = FakeDevice(uuid=FIRST, silent=silent)
    install(FakeNvml(device))
    seen = steps(device, {})
    assert seen.looks >= 2
    assert (seen.first_memory_bytes, seen.peak_memory_bytes, seen.max_temperature_c) == (None, None, None)
    assert (seen.min_sm_clock_mhz, seen.max_sm_clock_mhz, seen.throttle) == (None, None, ())


def test_clocks_of_all_looks_where_load_is_not_told(install: Install, proc: Path) -> None:
    device = FakeDevice(uuid=FIRST, silent=frozenset({"nvmlDeviceGetUtilizationRates"}), clock=1000)
    install(FakeNvml(device))
    seen = steps(device, {"clock": 1500})
    assert (seen.min_sm_clock_mhz, seen.max_sm_clock_mhz) == (1000, 1500)


def test_strangers_are_told_from_workers(install: Install, proc: Path) -> None:
    program(proc, 10, 1, "/usr/bin/python3 train.py")
    program(proc, 20, 5, "python3 -m builder.worker /work")
    program(proc, 21, 20, "python3 something of the worker")
    program(proc, 30, os.getpid(), "python3 child")
    program(proc, 5, 1, "containerd-shim")
    program(proc, 60, 5, "")
    used = {10: 4 * GIB, 20: GIB, 21: GIB, 30: GIB, 40: GIB, 60: GIB, 0: GIB}
    device = FakeDevice(uuid=FIRST, programs=dict(used))
    install(FakeNvml(device))
    program(proc, 50, 5, "/usr/bin/Xorg")
    seen = steps(device, {"programs": {**used, 10: 6 * GIB}, "drawing": {50: None}})
    # 40 cannot be looked at, 60 is ending, 0 is what a container sees of another's: none is surely a stranger
    assert [(one.pid, one.used_bytes) for one in seen.neighbours] == [(10, 6 * GIB), (50, None)]


def test_a_farm_that_is_the_first_program_of_a_container_knows_its_own(
    install: Install, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getpid", lambda: 1)
    program(proc, 1, 0, "python3 enginefarm build")
    program(proc, 10, 1, "python3 what a worker left behind")
    # somebody has entered the container
    program(proc, 20, 0, "python3 train.py")
    install(FakeNvml(FakeDevice(uuid=FIRST, programs={1: GIB, 10: GIB, 20: GIB})))
    with Watch(FIRST) as watch:
        pass
    assert [one.pid for one in watch.seen.neighbours] == [20]


def test_a_stranger_that_has_left_is_still_told_of(install: Install, proc: Path) -> None:
    program(proc, 10, 1, "/usr/bin/python3 train.py")
    device = FakeDevice(uuid=FIRST, programs={10: GIB})
    install(FakeNvml(device))
    seen = steps(device, {"programs": {}})
    assert [one.pid for one in seen.neighbours] == [10]


def test_a_gpu_that_is_lost_ends_the_watch_and_nothing_else(install: Install, proc: Path) -> None:
    device = FakeDevice(uuid=FIRST)
    install(FakeNvml(device))
    seen = steps(device, {"broken": pynvml.NVML_ERROR_GPU_IS_LOST})
    assert seen.problem == "GPU is lost"
    assert seen.looks >= 1


def test_a_gpu_that_cannot_be_watched_at_all(install: Install, proc: Path) -> None:
    install(FakeNvml(opening=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    with Watch(FIRST) as watch:
        pass
    assert watch.seen.looks == 0
    assert FIRST in (watch.seen.problem or "")


def test_an_error_inside_goes_on_its_way(install: Install, proc: Path) -> None:
    install(FakeNvml(FakeDevice(uuid=FIRST)))
    with pytest.raises(ZeroDivisionError), Watch(FIRST) as watch:
        raise ZeroDivisionError
    assert not watch._thread.is_alive()
