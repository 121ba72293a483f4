"""What this machine has: memory, processors, disk, operating system. Read when asked, never while planning."""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path


def available_memory_bytes() -> int:
    """Memory that a new process could take without swapping, within the limit of this control group."""
    values = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    available = int(values["MemAvailable"].split()[0]) * 1024
    return min(available, _cgroup_room(available))


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def free_disk_bytes(folder: Path) -> int:
    """Free space where a folder is or would be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def description() -> dict[str, str]:
    """Name processor architecture, kernel and Python, for manifests."""
    return {
        "machine": platform.machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cgroup_room(otherwise: int) -> int:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return otherwise
    return otherwise if limit == "max" else max(int(limit) - used, 0)
