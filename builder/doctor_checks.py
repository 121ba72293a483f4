"""Judges Docker and GPUs: what was found, what cannot be done because of it, and what to do about it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from builder.doctor_facts import Gpus, Ran
from builder.gpu import Gpu
from builder.known_failures import load_catalogue, recognise
from builder.stacks import Stack
from builder.targets import sm_number

_GIB = 1 << 30
_WITHOUT_DOCKER = "Images cannot be built and jobs cannot run in containers. The local executor needs no Docker."
_NOT_THE_SAME = "Images can be built, but not with the same bytes twice."
_RESTART = "`sudo systemctl restart docker`"
_TELL_DOCKER = f"`sudo nvidia-ctk runtime configure --runtime=docker`, then {_RESTART}"


class Verdict(str, Enum):
    """Outcome of a check. FAIL keeps the farm from working; ABSENT is something that a machine may well lack."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing looked at. `means` says what cannot be done; it and `fix` are empty where all is well."""

    name: str
    status: Verdict
    found: str
    means: str = ""
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the check as plain data."""
        return {**asdict(self), "status": self.status.value}


def docker_info(ran: Ran | None) -> dict[str, Any] | None:
    """Read `docker info`; None where no engine answered."""
    for line in ran.output.splitlines() if ran else ():
        if line.startswith("{"):
            try:
                info = json.loads(line)
            except ValueError:
                return None
            return info if isinstance(info, dict) and info.get("ServerVersion") else None
    return None


def docker_check(ran: Ran | None, info: Mapping[str, Any] | None, lowest: str) -> Check:
    """Judge the engine: there, answering, new enough, with the image store that images of the same bytes need."""
    install = f"install Docker Engine {lowest} or newer if you want images: https://docs.docker.com/engine/install/"
    if ran is None:
        found = "no docker on PATH"
        return Check(name="docker", status=Verdict.ABSENT, found=found, means=_WITHOUT_DOCKER, fix=install)
    if info is None:
        found, fix = _docker_trouble(ran)
        return Check(name="docker", status=Verdict.WARN, found=found, means=_WITHOUT_DOCKER, fix=fix)
    version = str(info["ServerVersion"])
    if _numbers(version) < _numbers(lowest):
        found = f"Docker Engine {version}, older than {lowest}"
        return Check(name="docker", status=Verdict.WARN, found=found, means=_NOT_THE_SAME, fix=install)
    if "io.containerd.snapshotter" not in json.dumps(info.get("DriverStatus")):
        return Check(
            name="docker",
            status=Verdict.WARN,
            found=f"Docker Engine {version}, containerd image store off",
            means=_NOT_THE_SAME,
            fix=f'put {{"features": {{"containerd-snapshotter": true}}}} into /etc/docker/daemon.json, then {_RESTART}',
        )
    return Check(name="docker", status=Verdict.OK, found=f"Docker Engine {version}, containerd image store on")


def buildx_check(ran: Ran | None, lowest: str) -> Check:
    """Judge the builder of images."""
    match = re.search(r"buildx v?(\d[^\s]*)", ran.output) if ran and ran.exit_code == 0 else None
    fix = f"install the plugin docker-buildx {lowest} or newer (docker-buildx-plugin in Docker's own repository)"
    if match is None:
        means = "Images cannot be built."
        return Check(name="buildx", status=Verdict.ABSENT, found="no docker buildx", means=means, fix=fix)
    if _numbers(match[1]) < _numbers(lowest):
        found = f"buildx {match[1]}, older than {lowest}"
        return Check(name="buildx", status=Verdict.WARN, found=found, means=_NOT_THE_SAME, fix=fix)
    return Check(name="buildx", status=Verdict.OK, found=f"buildx {match[1]}")


def runtime_check(info: Mapping[str, Any] | None, *, toolkit: bool, cdi: bool, gpu: bool) -> Check:
    """Judge whether Docker can give a GPU to a container: a runtime of that name, or CDI devices."""
    name, means = "nvidia-runtime", "Containers get no GPU."
    if info is not None and "nvidia" in (info.get("Runtimes") or {}):
        return Check(name=name, status=Verdict.OK, found="Docker has the runtime nvidia")
    if info is not None and (cdi or "nvidia.com/gpu" in json.dumps(info.get("DiscoveredDevices"))):
        return Check(name=name, status=Verdict.OK, found="Docker has NVIDIA's CDI devices")
    if not gpu or info is None:
        found = "no runtime nvidia, no CDI devices" if info is not None else "no Docker Engine to ask"
        fix = "nothing to do on a machine without an NVIDIA GPU or without Docker"
        return Check(name=name, status=Verdict.ABSENT, found=found, means=means, fix=fix)
    if toolkit:
        found = "nvidia-ctk is installed, but Docker has neither runtime nor CDI devices"
        return Check(name=name, status=Verdict.WARN, found=found, means=means, fix=_TELL_DOCKER)
    found, fix = "no NVIDIA Container Toolkit", f"install nvidia-container-toolkit, {_TELL_DOCKER}"
    return Check(name=name, status=Verdict.WARN, found=found, means=means, fix=fix)


def docker_disk_check(folder: Path, free: int, needed_gib: int) -> Check:
    """Compare the space in Docker's data root with what unpacking an image takes."""
    found = f"{free / _GIB:.1f} GiB free in {folder}"
    if free >= needed_gib * _GIB:
        return Check(name="disk:docker", status=Verdict.OK, found=found)
    means = f"Unpacking an image with TensorRT takes up to {needed_gib} GiB."
    fix = "`docker system prune` and `docker builder prune`, or move `data-root` in /etc/docker/daemon.json"
    return Check(name="disk:docker", status=Verdict.WARN, found=found, means=means, fix=fix)


def gpu_check(gpus: Gpus) -> Check:
    """Name the GPUs that programs may use, and the driver."""
    means = "Engines cannot be run or timed here. Stacks that need no GPU build all the same."
    if gpus.trouble is not None:
        found, fix = gpus.trouble.why or gpus.trouble.what, gpus.trouble.fix or ""
        return Check(name="gpu", status=Verdict.WARN, found=found, means=means, fix=fix)
    if not gpus.found and gpus.plugged:
        found, fix = "a GPU of NVIDIA that no driver drives", "install NVIDIA's driver, or give this container the GPU"
        return Check(name="gpu", status=Verdict.WARN, found=found, means=means, fix=fix)
    if not gpus.found:
        fix = "nothing to do on a machine without an NVIDIA GPU; else install NVIDIA's driver"
        return Check(name="gpu", status=Verdict.ABSENT, found="no NVIDIA driver, or no GPU", means=means, fix=fix)
    hidden = f"CUDA_VISIBLE_DEVICES={gpus.asked}"
    if not gpus.visible:
        found, fix = f"{_names(gpus.found)}, hidden by {hidden}", "unset CUDA_VISIBLE_DEVICES, or name a GPU in it"
        return Check(name="gpu", status=Verdict.WARN, found=found, means=means, fix=fix)
    more = f"; {hidden} hides {_names([one for one in gpus.found if one not in gpus.visible])}"
    found = f"{_names(gpus.visible)}; driver {gpus.visible[0].driver}"
    return Check(name="gpu", status=Verdict.OK, found=found if len(gpus.visible) == len(gpus.found) else found + more)


def gpu_memory_check(gpus: Gpus) -> Check | None:
    """Warn where other programs hold most of a GPU's memory."""
    short = [one for one in gpus.visible if gpus.free.get(one.uuid, one.memory_bytes) < one.memory_bytes / 2]
    if not short:
        return None
    found = "; ".join(f"{one.label}: {_gib(gpus.free[one.uuid])} of {_gib(one.memory_bytes)} GiB free" for one in short)
    means = "Builds there can run out of memory, and timings are disturbed."
    fix = "`nvidia-smi` names the programs that hold it"
    return Check(name="gpu-memory", status=Verdict.WARN, found=found, means=means, fix=fix)


def stack_check(stack: Stack, gpus: Sequence[Gpu], lowest_drivers: Mapping[str, str]) -> Check:
    """Say what a stack can do with the GPUs of this machine: its SMs, its CUDA and the driver."""
    name, spec = f"stack:{stack.name}", stack.build
    built = f"builds for SM {', '.join(spec.sms)}"
    if not gpus:
        if not spec.needs_gpu:
            return Check(name=name, status=Verdict.OK, found=f"{built}, without a GPU")
        means, fix = "This stack builds on a machine with the GPU only.", "build there, or choose another stack"
        return Check(name=name, status=Verdict.ABSENT, found="no GPU", means=means, fix=fix)
    sms = sorted({gpu.sm for gpu in gpus}, key=sm_number)
    still = "It cannot build here." if spec.needs_gpu else f"It {built} all the same, but the engines do not run here."
    lowest = lowest_drivers.get(spec.cuda.split(".")[0])
    driver = gpus[0].driver
    if lowest is not None and _numbers(driver) < _numbers(lowest):
        found = f"driver {driver}, older than {lowest}"
        means = f"CUDA {spec.cuda} needs driver {lowest}. {still}"
        fix = f"update the driver to {lowest} or newer, or choose a stack of an older CUDA"
        return Check(name=name, status=Verdict.WARN, found=found, means=means, fix=fix)
    fitting = [sm for sm in sms if sm in spec.sms]
    if not fitting:
        found = f"not for this GPU: SM {', '.join(sms)}"
        means, fix = f"The stack has SM {', '.join(spec.sms)}. {still}", "choose a stack that has this SM"
        return Check(name=name, status=Verdict.WARN, found=found, means=means, fix=fix)
    return Check(name=name, status=Verdict.OK, found=f"builds and runs for SM {', '.join(fitting)}")


def _docker_trouble(ran: Ran) -> tuple[str, str]:
    if ran.exit_code is None:
        return "docker info does not answer", f"see `systemctl status docker`; {_RESTART}"
    errors = [line for document in _documents(ran) for line in document.get("ServerErrors") or ()]
    found = str(errors[0]) if errors else _first_line(ran) or "docker info says nothing"
    if found.startswith("{"):
        found = "docker info answers, but not as Docker Engine does (Podman?)"
    return found, _known_fix(found) or "see what `docker info` says"


def _documents(ran: Ran) -> Iterator[dict[str, Any]]:
    for line in ran.output.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:
                return


def _known_fix(text: str) -> str:
    found = recognise(io.BytesIO(text.encode()), load_catalogue())
    return found[0].fix if found else ""


def _first_line(ran: Ran) -> str:
    return next((line.strip() for line in ran.output.splitlines() if line.strip()), "")


def _names(gpus: Sequence[Gpu]) -> str:
    named = [f"{gpu.name} (SM {gpu.sm}, {_gib(gpu.memory_bytes)} GiB)" for gpu in gpus]
    counts = {text: named.count(text) for text in named}
    return "; ".join(f"{count} x {text}" if count > 1 else text for text, count in counts.items())


def _gib(size: int) -> str:
    return f"{size / _GIB:.0f}"


def _numbers(version: str) -> tuple[int, ...]:
    """Turn the leading numbers of a version into what can be compared: "26.1.5+dfsg1" is (26, 1, 5)."""
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()
