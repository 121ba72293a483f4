"""The only door to GPUs: what NVIDIA's driver says of them through its management library, NVML.

Nothing runs on a GPU and no setting changes. The library stays open as long as this process lives: where no program
keeps the driver awake, opening it takes a second each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from builder import host
from builder.errors import EnginefarmError, Reason

T = TypeVar("T")

VISIBLE = "CUDA_VISIBLE_DEVICES"
_PCI = Path("/sys/bus/pci/devices")
_PROC = Path("/proc")
_NVIDIA, _DISPLAY = "0x10de", "0x03"
_LOOK = "run `nvidia-smi`; `enginefarm doctor` says more"
_FIXES = {
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": "the driver was updated: reboot, or reload its kernel modules",
    "NVML_ERROR_DRIVER_NOT_LOADED": "`modprobe nvidia`; see `dmesg | grep -i nvrm` if that fails",
    "NVML_ERROR_NO_PERMISSION": "give this user, or this container, access to /dev/nvidiactl and /dev/nvidia*",
    "NVML_ERROR_GPU_IS_LOST": "`dmesg | grep Xid` says why; reboot, or leave it out with CUDA_VISIBLE_DEVICES",
    "NVML_ERROR_RESET_REQUIRED": "`nvidia-smi --gpu-reset`, or reboot, or leave it out with CUDA_VISIBLE_DEVICES",
}
_GONE = ("NVML_ERROR_GPU_IS_LOST", "NVML_ERROR_RESET_REQUIRED", "NVML_ERROR_UNINITIALIZED")
# named as nvidia-smi does below clocks_event_reasons; that a GPU is idle says nothing about its work
_THROTTLE = {
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clocks_setting",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """A GPU, or a MIG slice of one. `sm` such as "9.0"; `driver` such as "580.159.04".

    `index`: as nvidia-smi counts; a slice has that of the whole GPU, whose UUID is its `parent`. `memory_bytes`: all
    there is, used or not; the machine's where the GPU has no memory of its own.
    """

    uuid: str
    index: int
    name: str
    sm: str
    driver: str
    memory_bytes: int
    mig: bool
    parent: str | None = None

    @property
    def label(self) -> str:
        """Name for people."""
        return f"GPU {self.index} ({self.name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverVersions:
    """`driver` such as "580.159.04"; `cuda`: newest CUDA that its library speaks, such as "13.0"; null if not told."""

    driver: str
    cuda: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProcess:
    """A program that uses a GPU. What the driver or the kernel keeps to itself is null."""

    pid: int
    used_bytes: int | None
    name: str | None

    @property
    def text(self) -> str:
        """Name for people."""
        size = "" if self.used_bytes is None else f" with {self.used_bytes >> 20} MiB"
        return f"{self.name or 'process'} {self.pid}{size}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """One look at a GPU; null is what the driver does not say, as of MIG slices and Jetsons.

    `throttle`: what holds the clocks down, in nvidia-smi's words; `utilisation`: percent of the last moments (a sixth
    of a second to one second) in which something ran; `memory_used_bytes` counts all programs.
    """

    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    throttle: tuple[str, ...] | None
    memory_used_bytes: int | None
    utilisation: int | None


def visible_gpus(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """List the GPUs that CUDA programs with this environment may use; none without a driver.

    A GPU in MIG mode is listed by its slices. CUDA_VISIBLE_DEVICES counts as CUDA reads it: entries are indices, UUIDs
    or beginnings of them that only one GPU has; an entry that names nothing ends the list; one that comes twice leaves
    nothing. Two differences: an index counts in the order of nvidia-smi, also where CUDA would put the fastest first
    (stages are given UUIDs, so both mean the same GPU); and a GPU in MIG mode stands for all its slices.

    Raises:
        EnginefarmError: GPU_UNREADABLE where there is a driver and it does not answer.

    """
    nvml = _open()
    if nvml is None:
        return ()
    with _answering(nvml, "listing the GPUs"):
        devices = _devices(nvml)
    asked = environ.get(VISIBLE)
    return _chosen(devices, asked) if asked is not None else tuple(gpu for one in devices for gpu in one.usable())


def driver_versions() -> DriverVersions | None:
    """Ask the driver for its version; None without a driver.

    Raises:
        EnginefarmError: GPU_UNREADABLE where there is a driver and it does not answer.

    """
    nvml = _open()
    if nvml is None:
        return None
    with _answering(nvml, "asking for its version"):
        driver = str(nvml.nvmlSystemGetDriverVersion())
        # thousands are the major version, tens the minor one
        cuda = _told(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    return DriverVersions(driver=driver, cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}")


def free_memory_bytes(uuid: str) -> int:
    """Ask how much memory a GPU has free.

    Raises:
        EnginefarmError: GPU_UNREADABLE.

    """
    return _ask(uuid, "asking for its free memory", lambda nvml, handle: _memory(nvml, handle)[0])


def processes(uuid: str) -> tuple[GpuProcess, ...]:
    """List the programs that use a GPU, largest first. In a container the driver may hide those of others.

    Raises:
        EnginefarmError: GPU_UNREADABLE.

    """

    def ask(nvml: Any, handle: Any) -> tuple[GpuProcess, ...]:
        used: dict[int, int | None] = {}
        for kind in ("Compute", "Graphics"):
            for one in _told(nvml, f"nvmlDeviceGet{kind}RunningProcesses_v3", handle) or ():
                used[int(one.pid)] = max(used.get(one.pid) or 0, one.usedGpuMemory or 0) or None
        ordered = sorted(used, key=lambda pid: used[pid] or 0, reverse=True)
        return tuple(GpuProcess(pid=pid, used_bytes=used[pid], name=_program(pid)) for pid in ordered)

    return _ask(uuid, "listing its programs", ask)


def sample(uuid: str) -> GpuSample:
    """Look at a GPU once, which takes a few milliseconds.

    Raises:
        EnginefarmError: GPU_UNREADABLE.

    """

    def ask(nvml: Any, handle: Any) -> GpuSample:
        power = _told(nvml, "nvmlDeviceGetPowerUsage", handle)
        memory = _told(nvml, "nvmlDeviceGetMemoryInfo", handle)
        utilisation = _told(nvml, "nvmlDeviceGetUtilizationRates", handle)
        reasons = _told(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:
            # its name in drivers before 535
            reasons = _told(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return GpuSample(
            sm_clock_mhz=_told(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            memory_clock_mhz=_told(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
            temperature_c=_told(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power is None else power / 1000,
            throttle=None if reasons is None else tuple(name for bit, name in _THROTTLE.items() if reasons & bit),
            memory_used_bytes=None if memory is None else int(memory.used),
            utilisation=None if utilisation is None else int(utilisation.gpu),
        )

    return _ask(uuid, "looking at it", ask)


def plugged_in() -> bool:
    """Say whether a GPU of NVIDIA is plugged in, driven or not."""
    for device in _PCI.glob("*"):
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii") for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor.startswith(_NVIDIA) and kind.startswith(_DISPLAY):
            return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Device:
    """What one index means: a GPU, the slices of one, or one that cannot be used. `names` leads to its parts."""

    names: Mapping[str, tuple[Gpu, ...]]
    gpus: tuple[Gpu, ...]
    trouble: EnginefarmError | None = None

    def usable(self) -> tuple[Gpu, ...]:
        if self.trouble is not None:
            raise self.trouble
        return self.gpus


@cache
def _open() -> Any:
    """Return NVML's bindings, ready; null without a driver."""
    import pynvml  # noqa: PLC0415  # large, and most commands do not need it

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        none = error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
        unused = error.value == pynvml.NVML_ERROR_DRIVER_NOT_LOADED and not plugged_in()
        if none or unused:
            return None
        raise _unreadable(pynvml, error, "opening its library") from error
    return pynvml


def _devices(nvml: Any) -> list[_Device]:
    driver, found = str(nvml.nvmlSystemGetDriverVersion()), []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            found.append(_device(nvml, nvml.nvmlDeviceGetHandleByIndex(index), index, driver))
        except nvml.NVMLError as error:
            # one that this container was not given does not count, for CUDA either
            if error.value != nvml.NVML_ERROR_NO_PERMISSION:
                trouble = _unreadable(nvml, error, f"asking for GPU {index}")
                found.append(_Device(names={}, gpus=(), trouble=trouble))
    return found


def _device(nvml: Any, handle: Any, index: int, driver: str) -> _Device:
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)

    def describe(part: Any, parent: str | None) -> Gpu:
        return Gpu(
            uuid=str(nvml.nvmlDeviceGetUUID(part)),
            index=index,
            name=str(nvml.nvmlDeviceGetName(part)),
            sm=f"{major}.{minor}",
            driver=driver,
            memory_bytes=_memory(nvml, part)[1],
            mig=parent is not None,
            parent=parent,
        )

    whole = describe(handle, None)
    if (_told(nvml, "nvmlDeviceGetMigMode", handle) or (0,))[0] != 1:
        return _Device(names={whole.uuid: (whole,)}, gpus=(whole,))
    names: dict[str, tuple[Gpu, ...]] = {}
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        part = _told(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
        if part is None:
            # there are fewer slices than there is room for
            continue
        one = describe(part, whole.uuid)
        instance, compute = nvml.nvmlDeviceGetGpuInstanceId(part), nvml.nvmlDeviceGetComputeInstanceId(part)
        names |= {one.uuid: (one,), f"MIG-{whole.uuid}/{instance}/{compute}": (one,)}
    slices = tuple(dict.fromkeys(gpu for gpus in names.values() for gpu in gpus))
    return _Device(names={whole.uuid: slices, **names}, gpus=slices)


def _chosen(devices: list[_Device], asked: str) -> tuple[Gpu, ...]:
    """Read a list of CUDA_VISIBLE_DEVICES."""
    chosen: list[Gpu] = []
    for entry in asked.split(","):
        named = _named(devices, entry.strip())
        if named is None:
            break
        if any(gpu in chosen for gpu in named):
            return ()
        chosen += named
    return tuple(chosen)


def _named(devices: list[_Device], entry: str) -> tuple[Gpu, ...] | None:
    if entry.isdecimal():
        return devices[int(entry)].usable() if int(entry) < len(devices) else None
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    names = {name: gpus for device in devices for name, gpus in device.names.items()}
    found = {names[entry]} if entry in names else {gpus for name, gpus in names.items() if name.startswith(entry)}
    return found.pop() if len(found) == 1 else None


def _memory(nvml: Any, handle: Any) -> tuple[int, int]:
    """Return free and total bytes."""
    memory = _told(nvml, "nvmlDeviceGetMemoryInfo", handle)
    if memory is None:
        return host.available_memory_bytes(), host.total_memory_bytes()
    return int(memory.free), int(memory.total)


def _ask(uuid: str, doing: str, question: Callable[[Any, Any], T]) -> T:
    nvml = _open()
    if nvml is None:
        raise EnginefarmError(Reason.GPU_UNREADABLE, f"there is no driver for GPU {uuid}", fix=_LOOK)
    with _answering(nvml, f"{doing}, GPU {uuid}"):
        return question(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))


def _told(nvml: Any, function: str, *arguments: Any) -> Any:
    """Call a function; null where the driver, or this kind of GPU, has no answer."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError as error:
        if error.value in {getattr(nvml, name) for name in _GONE}:
            raise
        return None


@contextmanager
def _answering(nvml: Any, doing: str) -> Iterator[None]:
    """Turn NVML's errors into one that says what was asked."""
    try:
        yield
    except nvml.NVMLError as error:
        raise _unreadable(nvml, error, doing) from error


def _unreadable(nvml: Any, error: Any, doing: str) -> EnginefarmError:
    fix = next((fix for name, fix in _FIXES.items() if getattr(nvml, name) == error.value), _LOOK)
    return EnginefarmError(Reason.GPU_UNREADABLE, f"NVIDIA's driver does not answer ({doing})", why=str(error), fix=fix)


def _program(pid: int) -> str | None:
    try:
        return (_PROC / str(pid) / "comm").read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
