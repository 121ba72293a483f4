# ruff: noqa: N802  # the names are the library's
"""A machine's GPUs as NVIDIA's management library shows them: made of data, asked by the library's names."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from builder import gpu

GIB = 1 << 30
FIRST = "GPU-11111111-aaaa-0000-0000-000000000001"
SECOND = "GPU-22222222-bbbb-0000-0000-000000000002"
SLICE = "MIG-33333333-cccc-0000-0000-000000000003"
OTHER_SLICE = "MIG-44444444-dddd-0000-0000-000000000004"


@dataclass
class FakeDevice:
    """A GPU or a slice. `silent`: functions that this kind of GPU does not support; `broken`: error of every question.

    `programs`: pid to bytes, null where the driver does not say. `instance`: numbers of a slice's parts.
    """

    uuid: str
    name: str = "NVIDIA H200"
    sm: tuple[int, int] = (9, 0)
    total: int = 140 * GIB
    used: int = 1 * GIB
    slices: list[FakeDevice] | None = None
    instance: tuple[int, int] = (0, 0)
    programs: dict[int, int | None] = field(default_factory=dict)
    drawing: dict[int, int | None] = field(default_factory=dict)
    clock: int = 1980
    heat: int = 41
    reasons: int = 0
    busy: int = 0
    silent: frozenset[str] = frozenset()
    broken: int | None = None


class FakeNvml:
    """Stands in for the module pynvml: its constants and errors are the real ones, its answers are data.

    `opening`: error code of nvmlInit; `calls`: names of the functions called, in order.
    """

    def __init__(
        self, *devices: FakeDevice, opening: int | None = None, driver: str = "580.159.04", cuda: int = 13000
    ) -> None:
        self.devices = list(devices)
        self.opening = opening
        self.driver = driver
        self.cuda = cuda
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("NVML"):
            return getattr(pynvml, name)
        answer: Callable[..., Any] = getattr(type(self), f"_{name.removeprefix('nvml')}")

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            device = arguments[0] if arguments and isinstance(arguments[0], FakeDevice) else None
            if device is not None and device.broken is not None:
                raise pynvml.NVMLError(device.broken)
            if device is not None and name in device.silent:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
            return answer(self, *arguments)

        return call

    def _Init(self) -> None:
        if self.opening is not None:
            raise pynvml.NVMLError(self.opening)

    def _SystemGetDriverVersion(self) -> str:
        return self.driver

    def _SystemGetCudaDriverVersion_v2(self) -> int:
        return self.cuda

    def _DeviceGetCount(self) -> int:
        return len(self.devices)

    def _DeviceGetHandleByIndex(self, index: int) -> FakeDevice:
        device: FakeDevice = self.devices[index]
        if device.broken is not None:
            raise pynvml.NVMLError(device.broken)
        return device

    def _DeviceGetHandleByUUID(self, uuid: str) -> FakeDevice:
        for device in self.devices:
            parts: list[FakeDevice] = device.slices or []
            for one in [device, *parts]:
                if one.uuid == uuid:
                    return one
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _DeviceGetUUID(self, device: FakeDevice) -> str:
        return device.uuid

    def _DeviceGetName(self, device: FakeDevice) -> str:
        return device.name

    def _DeviceGetCudaComputeCapability(self, device: FakeDevice) -> tuple[int, int]:
        return device.sm

    def _DeviceGetMemoryInfo(self, device: FakeDevice) -> SimpleNamespace:
        return SimpleNamespace(total=device.total, used=device.used, free=device.total - device.used)

    def _DeviceGetMigMode(self, device: FakeDevice) -> list[int]:
        return [int(device.slices is not None)] * 2

    def _DeviceGetMaxMigDeviceCount(self, device: FakeDevice) -> int:
        return 7

    def _DeviceGetMigDeviceHandleByIndex(self, device: FakeDevice, index: int) -> FakeDevice:
        if device.slices is None or index >= len(device.slices):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return device.slices[index]

    def _DeviceGetGpuInstanceId(self, device: FakeDevice) -> int:
        return device.instance[0]

    def _DeviceGetComputeInstanceId(self, device: FakeDevice) -> int:
        return device.instance[1]

    def _DeviceGetComputeRunningProcesses_v3(self, device: FakeDevice) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in device.programs.items()]

    def _DeviceGetGraphicsRunningProcesses_v3(self, device: FakeDevice) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in device.drawing.items()]

    def _DeviceGetClockInfo(self, device: FakeDevice, kind: int) -> int:
        return {pynvml.NVML_CLOCK_SM: device.clock, pynvml.NVML_CLOCK_MEM: 3201}[kind]

    def _DeviceGetTemperature(self, device: FakeDevice, sensor: int) -> int:
        return device.heat

    def _DeviceGetPowerUsage(self, device: FakeDevice) -> int:
        return 76_500

    def _DeviceGetUtilizationRates(self, device: FakeDevice) -> SimpleNamespace:
        return SimpleNamespace(gpu=device.busy, memory=0)

    def _DeviceGetCurrentClocksEventReasons(self, device: FakeDevice) -> int:
        return device.reasons

    def _DeviceGetCurrentClocksThrottleReasons(self, device: FakeDevice) -> int:
        return device.reasons


@contextmanager
def in_place() -> Iterator[Callable[[FakeNvml], FakeNvml]]:
    """Hand out a function that puts a made machine in the place of this one's."""
    with pytest.MonkeyPatch.context() as patch:

        def put(fake: FakeNvml) -> FakeNvml:
            gpu._open.cache_clear()
            patch.setitem(sys.modules, "pynvml", fake)
            return fake

        yield put
    gpu._open.cache_clear()


def sliced() -> FakeDevice:
    """Make a GPU in MIG mode with two slices."""
    changes: dict[str, Any] = {"name": "NVIDIA H200 MIG 1g.18gb", "total": 16 * GIB, "used": 0, "sm": (0, 0)}
    unasked = frozenset({"nvmlDeviceGetClockInfo", "nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage"})
    slices = [
        FakeDevice(uuid=SLICE, instance=(9, 0), silent=unasked, **changes),
        FakeDevice(uuid=OTHER_SLICE, instance=(10, 0), silent=unasked, **changes),
    ]
    return FakeDevice(uuid=FIRST, slices=slices)


def two() -> list[FakeDevice]:
    """Make a machine of two GPUs."""
    return [FakeDevice(uuid=FIRST), FakeDevice(uuid=SECOND, name="NVIDIA L4", sm=(8, 9), total=24 * GIB)]
