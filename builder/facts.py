"""Reads what this machine is: GPUs and driver through NVML, TensorRT and CUDA by their packages, not loaded."""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path

from builder import gpu, host
from builder.compat_rules import load_rules, numbers
from builder.facts_file import facts_json, load_facts
from builder.machine import ARCHITECTURES, Facts, GpuFacts
from builder.project import find_home

__all__ = ["Facts", "GpuFacts", "facts_json", "load_facts", "read_facts"]

PLUGINS = "ENGINEFARM_PLUGINS"
_TEGRA_RELEASE = Path("/etc/nv_tegra_release")
_DEVICE_TREE = Path("/proc/device-tree/compatible")
_CUDA_VERSION_FILE = Path("/usr/local/cuda/version.json")
_LIBRARIES = (Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"))
# Names of packages as Python normalises them; the libraries decide, the bindings follow them.
_CLASSIC = re.compile(r"tensorrt(-cu(?P<cuda>\d+))?(?P<part>-libs|-bindings)?")
_RTX = re.compile(r"tensorrt-rtx(-cu(?P<cuda>\d+))?(?P<part>-libs|-bindings)?")
_CUDA_RUNTIME = re.compile(r"nvidia-cuda-runtime(-cu(?P<cuda>\d+))?")
_PARTS = ("-libs", "-bindings", None)


def read_facts(environ: Mapping[str, str]) -> Facts:
    """Look at this machine; nothing runs on a GPU, and no TensorRT is loaded.

    ENGINEFARM_PLUGINS names the TensorRT plugins that applications here load, separated by commas.

    Raises:
        EnginefarmError: GPU_UNREADABLE where there is a driver and it does not answer.

    """
    gpus = gpu.visible_gpus(environ)
    driver = gpu.driver_versions()
    packages = _packages()
    l4t = _l4t()
    listed = tuple(GpuFacts(name=one.name, sm=one.sm, memory_bytes=one.memory_bytes, uuid=one.uuid) for one in gpus)
    return Facts(
        os=platform.system().lower(),
        architecture=ARCHITECTURES.get(platform.machine().lower(), platform.machine().lower()),
        l4t=l4t,
        driver=driver.driver if driver is not None else None,
        driver_cuda=driver.cuda if driver is not None else None,
        gpus=listed or _tegra_gpus(l4t),
        tensorrt=_version(packages, _CLASSIC) or _library("libnvinfer"),
        tensorrt_rtx=_version(packages, _RTX) or _library("libtensorrt_rtx"),
        cuda=_cuda(packages, environ),
        plugins=tuple(name.strip() for name in environ.get(PLUGINS, "").split(",") if name.strip()),
        disk_free_bytes=host.free_disk_bytes(find_home().root),
    )


def _packages() -> dict[str, str]:
    """Return the versions of the packages of this Python that matter here, the first of each name on sys.path."""
    found: dict[str, str] = {}
    for folder in sys.path:
        for path in _metadata_folders(folder):
            name = path.name.partition("-")[0].lower().replace("_", "-")
            if name not in found and any(kind.fullmatch(name) for kind in (_CLASSIC, _RTX, _CUDA_RUNTIME)):
                found[name] = metadata.PathDistribution(path).version
    return found


def _metadata_folders(folder: str) -> Iterable[Path]:
    # asking importlib for all packages reads hundreds of files
    root = Path(folder or ".")
    yield from sorted(root.glob("tensorrt*.dist-info"))
    yield from sorted(root.glob("nvidia_cuda_runtime*.dist-info"))


def _version(packages: Mapping[str, str], kind: re.Pattern[str]) -> str | None:
    matches = [match for name in packages if (match := kind.fullmatch(name))]
    best = min(matches, key=lambda match: _PARTS.index(match["part"]), default=None)
    return None if best is None else packages[best.group()]


def _cuda(packages: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """Return the CUDA that TensorRT here was made for; without TensorRT that of the packages, image or toolkit."""
    majors = {match["cuda"] for name in packages for kind in (_CLASSIC, _RTX) if (match := kind.fullmatch(name))}
    majors.discard(None)
    runtimes = [version for name, version in packages.items() if _CUDA_RUNTIME.fullmatch(name)]
    named = [*runtimes, environ.get("CUDA_VERSION", ""), _toolkit()]
    for version in named:
        if version and (not majors or version.partition(".")[0] in majors):
            return ".".join(version.split(".")[:2])
    return min(majors) if majors else None


def _toolkit() -> str:
    try:
        document = json.loads(_CUDA_VERSION_FILE.read_text(encoding="utf-8"))
        return str(document["cuda"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _library(name: str) -> str | None:
    """Find a library of the system's packages by its file name, such as libnvinfer.so.10.3.0."""
    versions = [
        path.name.partition(".so.")[2]
        for folder in _LIBRARIES
        for path in folder.glob(f"{name}.so.*")
        if path.name.count(".") >= 4
    ]
    return max(versions, key=numbers, default=None)


def _l4t() -> str | None:
    """Read the release of Jetson's Linux, such as "36.4.0" of `# R36 (release), REVISION: 4.0, ...`."""
    try:
        match = re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", _TEGRA_RELEASE.read_text(encoding="utf-8"))
    except OSError:
        return None
    return f"{match[1]}.{match[2]}" if match else None


def _tegra_gpus(l4t: str | None) -> tuple[GpuFacts, ...]:
    """Name the GPU of a Jetson by its chip: before JetPack 6 there is no NVML to ask."""
    if l4t is None:
        return ()
    try:
        compatible = _DEVICE_TREE.read_bytes().decode("ascii", "replace")
    except OSError:
        return ()
    memory = host.total_memory_bytes()
    return tuple(
        GpuFacts(name=name, sm=sm, memory_bytes=memory)
        for chip, (name, sm) in load_rules().tegra.items()
        if f"nvidia,{chip}" in compatible
    )
