"""GPUs as the driver shows them: which a program may use, what is told of them, and what trouble is called."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pynvml
import pytest

from builder import gpu
from builder.errors import Reason
from builder.gpu import Gpu, free_memory_bytes, processes, sample, visible_gpus
from tests.artifacts import refusal
from tests.nvml import FIRST, GIB, OTHER_SLICE, SECOND, SLICE, FakeDevice, FakeNvml, in_place, sliced, two

Install = Callable[[FakeNvml], FakeNvml]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Install]:
    """Put a made machine in the place of this one's; it has nothing on its bus."""
    monkeypatch.setattr(gpu, "_PCI", tmp_path / "pci")
    with in_place() as put:
        yield put


def uuids(asked: str | None) -> list[str]:
    """List what is visible under a value of CUDA_VISIBLE_DEVICES."""
    return [one.uuid for one in visible_gpus({} if asked is None else {"CUDA_VISIBLE_DEVICES": asked})]


def test_a_gpu_is_described(install: Install) -> None:
    install(FakeNvml(*two()))
    first, second = visible_gpus({})
    assert first == Gpu(
        uuid=FIRST,
        index=0,
        name="NVIDIA H200",
        sm="9.0",
        driver="580.159.04",
        memory_bytes=140 * GIB,
        mig=False,
        parent=None,
    )
    assert (second.label, second.sm, second.memory_bytes) == ("GPU 1 (NVIDIA L4)", "8.9", 24 * GIB)


def test_the_library_is_opened_once(install: Install) -> None:
    fake = install(FakeNvml(*two()))
    visible_gpus({})
    free_memory_bytes(FIRST)
    assert fake.calls.count("nvmlInit") == 1


def test_a_machine_without_a_driver_has_no_gpu(install: Install) -> None:
    install(FakeNvml(opening=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    assert visible_gpus({}) == ()
    assert refusal(lambda: free_memory_bytes(FIRST)).reason is Reason.GPU_UNREADABLE


def plug(folder: Path, vendor: str, kind: str) -> None:
    """Put a device on the bus."""
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n", encoding="ascii")
    (folder / "class").write_text(f"{kind}\n", encoding="ascii")


def test_a_driver_without_a_gpu_is_none(install: Install, tmp_path: Path) -> None:
    install(FakeNvml(opening=pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    plug(tmp_path / "pci" / "0000:00:02.0", "0x8086", "0x030000")
    # a network card that NVIDIA sells
    plug(tmp_path / "pci" / "0000:01:00.0", "0x10de", "0x020000")
    (tmp_path / "pci" / "0000:02:00.0").mkdir()
    assert visible_gpus({}) == ()


def test_a_gpu_whose_driver_is_not_loaded_is_trouble(install: Install, tmp_path: Path) -> None:
    install(FakeNvml(opening=pynvml.NVML_ERROR_DRIVER_NOT_LOADED))
    plug(tmp_path / "pci" / "0000:01:00.0", "0x10de", "0x030200")
    error = refusal(lambda: visible_gpus({}))
    assert error.reason is Reason.GPU_UNREADABLE
    assert "modprobe nvidia" in (error.fix or "")


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "reboot"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "/dev/nvidiactl"),
        (pynvml.NVML_ERROR_UNKNOWN, "nvidia-smi"),
    ],
)
def test_a_driver_that_does_not_answer(install: Install, code: int, fix: str) -> None:
    fake = install(FakeNvml(*two(), opening=code))
    error = refusal(lambda: visible_gpus({}))
    assert error.reason is Reason.GPU_UNREADABLE
    assert error.why == str(pynvml.NVMLError(code))
    assert fix in (error.fix or "")
    # the next question asks again: the user may have helped meanwhile
    fake.opening = None
    assert len(visible_gpus({})) == 2


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, [FIRST, SECOND]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0", [FIRST]),
        ("1", [SECOND]),
        ("1,0", [SECOND, FIRST]),
        (" 1 , 0 ", [SECOND, FIRST]),
        ("2", []),
        ("0,2,1", [FIRST]),
        ("1,-1,0", [SECOND]),
        ("0,,1", [FIRST]),
        ("0,0", []),
        ("0,1,0", []),
        (FIRST, [FIRST]),
        (f"{SECOND},{FIRST}", [SECOND, FIRST]),
        ("GPU-2", [SECOND]),
        ("GPU-22222222,GPU-1", [SECOND, FIRST]),
        ("GPU-", []),
        ("GPU-3", []),
        ("GPU-1,GPU-3,GPU-2", [FIRST]),
        ("gpu-1", []),
        ("G", []),
        (f"0,{FIRST}", []),
        (f"0,{SECOND}", [FIRST, SECOND]),
        ("MIG-1", []),
        ("void", []),
    ],
)
def test_visible_devices(install: Install, asked: str | None, found: list[str]) -> None:
    install(FakeNvml(*two()))
    assert uuids(asked) == found


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (None, [SLICE, OTHER_SLICE, SECOND]),
        ("0", [SLICE, OTHER_SLICE]),
        ("1", [SECOND]),
        ("2", []),
        (FIRST, [SLICE, OTHER_SLICE]),
        (SLICE, [SLICE]),
        (f"{OTHER_SLICE},{SLICE}", [OTHER_SLICE, SLICE]),
        ("MIG-4", [OTHER_SLICE]),
        ("MIG-", []),
        (f"MIG-{FIRST}/9/0", [SLICE]),
        (f"MIG-{FIRST}/10/0", [OTHER_SLICE]),
        (f"MIG-{FIRST}/11/0", []),
        (f"MIG-{FIRST}", []),
        (f"{SLICE},MIG-{FIRST}/9/0", []),
        (f"{SLICE},0", []),
        (f"{SLICE},{SECOND}", [SLICE, SECOND]),
    ],
)
def test_visible_slices(install: Install, asked: str | None, found: list[str]) -> None:
    install(FakeNvml(sliced(), two()[1]))
    assert uuids(asked) == found


def test_a_slice_is_described(install: Install) -> None:
    install(FakeNvml(sliced()))
    one = visible_gpus({})[1]
    assert (one.uuid, one.parent, one.mig, one.index) == (OTHER_SLICE, FIRST, True, 0)
    # the SM is the whole GPU's, the memory its own
    assert (one.sm, one.memory_bytes, one.label) == ("9.0", 16 * GIB, "GPU 0 (NVIDIA H200 MIG 1g.18gb)")


def test_mig_mode_without_slices_leaves_nothing(install: Install) -> None:
    install(FakeNvml(FakeDevice(uuid=FIRST, slices=[])))
    assert visible_gpus({}) == ()
    assert uuids(FIRST) == []


def test_a_gpu_of_another_container_does_not_count(install: Install) -> None:
    install(FakeNvml(FakeDevice(uuid=FIRST, broken=pynvml.NVML_ERROR_NO_PERMISSION), two()[1]))
    assert [one.index for one in visible_gpus({})] == [1]
    assert uuids("0") == [SECOND]


def test_a_lost_gpu_matters_to_those_who_ask_for_it(install: Install) -> None:
    install(FakeNvml(FakeDevice(uuid=FIRST, broken=pynvml.NVML_ERROR_GPU_IS_LOST), two()[1]))
    for environ in ({}, {"CUDA_VISIBLE_DEVICES": "0"}):
        error = refusal(lambda environ=environ: visible_gpus(environ))  # type: ignore[misc]
        assert error.reason is Reason.GPU_UNREADABLE
        assert "GPU 0" in error.what
        assert "Xid" in (error.fix or "")
    assert uuids("1") == uuids(SECOND) == [SECOND]


def test_free_memory(install: Install) -> None:
    install(FakeNvml(FakeDevice(uuid=FIRST, used=40 * GIB), sliced()))
    assert free_memory_bytes(FIRST) == 100 * GIB
    assert free_memory_bytes(SLICE) == 16 * GIB


def test_a_gpu_without_memory_of_its_own_has_the_machines(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeNvml(FakeDevice(uuid=FIRST, silent=frozenset({"nvmlDeviceGetMemoryInfo"}))))
    monkeypatch.setattr("builder.host.available_memory_bytes", lambda: 5 * GIB)
    assert free_memory_bytes(FIRST) == 5 * GIB
    assert visible_gpus({})[0].memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_programs_are_named(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_PROC", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "comm").write_text("python3\n", encoding="utf-8")
    both = {5: 3 * GIB, 8: None}
    install(FakeNvml(FakeDevice(uuid=FIRST, programs={7: 20 * GIB, **both}, drawing={5: 1 * GIB})))
    found = processes(FIRST)
    assert [(one.pid, one.used_bytes, one.name) for one in found] == [
        (7, 20 * GIB, "python3"),
        (5, 3 * GIB, None),
        (8, None, None),
    ]
    assert [one.text for one in found] == ["python3 7 with 20480 MiB", "process 5 with 3072 MiB", "process 8"]


def test_a_look_at_a_gpu(install: Install) -> None:
    install(FakeNvml(FakeDevice(uuid=FIRST, reasons=0x1 | 0x4 | 0x40, busy=97)))
    one = sample(FIRST)
    assert (one.sm_clock_mhz, one.memory_clock_mhz, one.temperature_c, one.power_w) == (1980, 3201, 41, 76.5)
    # that it was idle is no reason to distrust it
    assert one.throttle == ("sw_power_cap", "hw_thermal_slowdown")
    assert (one.memory_used_bytes, one.utilisation) == (GIB, 97)


def test_older_drivers_know_the_reasons_by_another_name(install: Install) -> None:
    silent = frozenset({"nvmlDeviceGetCurrentClocksEventReasons"})
    install(FakeNvml(FakeDevice(uuid=FIRST, reasons=0x8, silent=silent)))
    assert sample(FIRST).throttle == ("hw_slowdown",)


def test_what_a_slice_does_not_tell_is_null(install: Install) -> None:
    install(FakeNvml(sliced()))
    one = sample(SLICE)
    assert (one.sm_clock_mhz, one.memory_clock_mhz, one.power_w, one.utilisation) == (None, None, None, None)
    assert (one.temperature_c, one.memory_used_bytes, one.throttle) == (41, 0, ())


def test_a_gpu_that_falls_off_the_bus_is_no_missing_answer(install: Install) -> None:
    fake = install(FakeNvml(*two()))
    fake.devices[0].broken = pynvml.NVML_ERROR_GPU_IS_LOST
    for ask in (sample, processes, free_memory_bytes):
        error = refusal(lambda ask=ask: ask(FIRST))  # type: ignore[misc]
        assert error.reason is Reason.GPU_UNREADABLE
        assert FIRST in error.what


def test_an_unknown_uuid(install: Install) -> None:
    install(FakeNvml(*two()))
    assert refusal(lambda: sample("GPU-nobody")).reason is Reason.GPU_UNREADABLE
