"""What this machine has: memory, processors, disk, operating system. Read when asked, never while planning."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_GPUS = Path("/proc/driver/nvidia/gpus")
_CONTROL = Path("/dev/nvidiactl")


def available_memory_bytes() -> int:
    """Memory that a new process could take without swapping, within the limit of this control group."""
    values = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="utf-8").splitlines())
    available = int(values["MemAvailable"].split()[0]) * 1024
    return min(available, _cgroup_room(available))


def total_memory_bytes() -> int:
    """Memory of the machine, used or not."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def platform_among(platforms: list[str]) -> str:
    """Choose this machine's platform, such as linux/amd64, among some; else the first."""
    own = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}.get(platform.machine())
    return own if own in platforms else platforms[0]


def has_gpu() -> bool:
    """Say whether NVIDIA's driver drives a GPU here."""
    return any(_GPUS.glob("*")) or _CONTROL.exists()


def free_disk_bytes(folder: Path) -> int:
    """Free space where a folder is or would be."""
    return shutil.disk_usage(_existing(folder)).free


def is_writable(folder: Path) -> bool:
    """Say whether this user may write to a folder, or make it."""
    place = _existing(folder)
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def description() -> dict[str, str]:
    """Name processor architecture, kernel and Python, for manifests."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cgroup_room(otherwise: int) -> int:
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="utf-8").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="utf-8"))
        stat = (_CGROUP / "memory.stat").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return otherwise
    if limit == "max":
        return otherwise
    # files read lately count as used, but the kernel drops them when a process asks for memory
    cached = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
    return max(int(limit) - used + cached, 0)
