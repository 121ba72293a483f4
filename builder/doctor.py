"""Checks this machine: judges what `doctor_facts` found; `doctor_checks` judges Docker and GPUs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import host, preflight
from builder.doctor_checks import (
    Check,
    Verdict,
    buildx_check,
    docker_check,
    docker_disk_check,
    docker_info,
    gpu_check,
    gpu_memory_check,
    runtime_check,
    stack_check,
)
from builder.doctor_facts import Answer, Facts, gather
from builder.environments import BasePython, locate
from builder.errors import EnginefarmError, Reason
from builder.project import Home, find_project
from builder.stacks import BuildStackFile, Stack, build_stacks, load_stacks
from builder.tables import load_table

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_CLOCK_S = 300
_OLDEST_YEAR = 2024
_GIB = 1 << 30
_PROXY = "check the network, the proxy (HTTPS_PROXY) and the certificates"
# an image name without a host means Docker Hub, whose API has this address
_DOCKER_HUB = "registry-1.docker.io"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A stack on this machine: its interpreter or why there is none, and whether its packages are installed."""

    stack: Stack
    python: BasePython | EnginefarmError
    installed: bool


def check_machine(folder: Path | None, home: Home, *, offline: bool) -> list[Check]:
    """Check this machine for a project: the folder given, or found from here upwards; without one, no stack is checked.

    Raises:
        EnginefarmError: PROJECT_MISSING for a folder given that holds none.

    """
    try:
        images = find_project(Path.cwd(), folder).images
        stacks = load_stacks(images)
        hosts = registry_hosts(images / "bases.toml")
    except EnginefarmError as error:
        if folder is not None and error.reason is Reason.PROJECT_MISSING:
            raise
        return [_without_project(error), *examine(gather(home, (), offline=offline), (), home)]
    found = f"{images.parent}: {len(stacks)} stack{'s' if len(stacks) != 1 else ''}"
    project = Check(name="project", status=Verdict.OK, found=found)
    ready = [_ready(stack, home) for stack in stacks.values()]
    return [project, *examine(gather(home, hosts, offline=offline), ready, home)]


def examine(facts: Facts, stacks: Sequence[Ready], home: Home) -> list[Check]:
    """Judge everything that was found: first what every build needs, then GPUs, then Docker."""
    lowest = load_table("drivers.toml")
    here = [ready for ready in stacks if ready.stack.spec.platform == facts.platform]
    builders = build_stacks({ready.stack.name: ready.stack for ready in here})
    gpus, memory = facts.gpus.visible, gpu_memory_check(facts.gpus)
    docker = docker_info(facts.docker)
    return [
        *(python_check(ready) for ready in here),
        disk_check(home, facts.home_free_bytes, [ready for ready in here if gpus or _without_gpu(ready.stack)])
        if facts.home_writable
        else unwritable_check(home),
        *network_checks(facts, needed=not all(ready.installed for ready in here)),
        clock_check(facts),
        gpu_check(facts.gpus),
        *([memory] if memory is not None else []),
        *(stack_check(stack, gpus, lowest["cuda"]) for stack in builders.values()),
        docker_check(facts.docker, docker, lowest["docker"]["engine"]),
        buildx_check(facts.buildx, lowest["docker"]["buildx"]),
        runtime_check(docker, toolkit=facts.nvidia_toolkit, cdi=facts.cdi, gpu=bool(facts.gpus.found)),
        *_docker_disk(docker or {}, lowest["docker"]["free_gib"]),
    ]


def python_check(ready: Ready) -> Check:
    """Say which interpreter a stack's environment has or would have."""
    name, spec = f"python:{ready.stack.name}", ready.stack.spec
    if isinstance(ready.python, EnginefarmError):
        return Check(
            name=name,
            status=Verdict.FAIL if spec.default else Verdict.WARN,
            found=f"no Python {' or '.join(spec.python)}",
            means=f"The local executor cannot run stack {spec.name}.",
            fix=ready.python.fix,
        )
    state = "installed" if ready.installed else "to be installed"
    found = f"Python {ready.python.version}, packages {state}: {ready.python.path}"
    return Check(name=name, status=Verdict.OK, found=found)


def disk_check(home: Home, free: int, stacks: Sequence[Ready]) -> Check:
    """Compare the space in the farm's home with what stacks still to be installed and a first model take.

    Nobody needs all the stacks of GPUs: where they alone have no room, it is a warning.
    """
    missing = [ready.stack for ready in stacks if not ready.installed]
    every, least = (
        preflight.disk_bytes([None], [stack.spec.installed_mib * preflight.MIB for stack in some])
        for some in (missing, [stack for stack in missing if _without_gpu(stack)])
    )
    found = f"{free / _GIB:.1f} GiB free in {home.root}"
    if free >= every:
        return Check(name="disk:home", status=Verdict.OK, found=found)
    status, needed = (Verdict.WARN, every) if free >= least else (Verdict.FAIL, least)
    which = "All stacks" if status is Verdict.WARN else "The stacks that need no GPU"
    means = f"{which} and a first model take about {needed / _GIB:.1f} GiB."
    fix = f"free {(needed - free) / _GIB:.1f} GiB, or set ENGINEFARM_HOME to a larger disk"
    return Check(name="disk:home", status=status, found=found, means=means, fix=fix)


def unwritable_check(home: Home) -> Check:
    """Say that the farm's home is somebody else's."""
    found, means = f"{home.root} cannot be written", "What is there can be listed and exported; nothing can be built."
    fix = "change its owner or permissions, or set ENGINEFARM_HOME to a folder of yours"
    return Check(name="disk:home", status=Verdict.FAIL, found=found, means=means, fix=fix)


def _without_gpu(stack: Stack) -> bool:
    return not isinstance(stack.spec, BuildStackFile) or not stack.spec.needs_gpu


def network_checks(facts: Facts, *, needed: bool) -> Iterator[Check]:
    """Judge the Python index as a whole and each registry of base images; offline, nothing was asked."""
    if facts.offline:
        return
    missed = [answer for answer in facts.index if answer.problem]
    reached = [answer.address for answer in facts.index if not answer.problem]
    if not facts.index:
        yield Check(name="index", status=Verdict.OK, found="pip is told to use no index (no-index)")
    elif not missed:
        yield Check(name="index", status=Verdict.OK, found=" ".join(reached))
    else:
        none_left = needed and not reached
        yield Check(
            name="index",
            status=Verdict.FAIL if none_left else Verdict.WARN,
            found="; ".join(f"{answer.address}: {answer.problem}" for answer in missed),
            means="Stacks cannot be installed." if none_left else "Packages that only this index has cannot be had.",
            fix=f"{_PROXY}; a mirror goes into PIP_INDEX_URL or pip's configuration",
        )
    yield from (_registry_check(answer) for answer in facts.registries)


def clock_check(facts: Facts) -> Check:
    """Compare this machine's clock with the first server that told the time."""
    ahead = next((a.clock_ahead_s for a in (*facts.index, *facts.registries) if a.clock_ahead_s is not None), None)
    found = f"{facts.now:%Y-%m-%d %H:%M} UTC"
    if ahead is not None:
        found += f", {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the network"
    if facts.now.year >= _OLDEST_YEAR and abs(ahead or 0.0) <= _CLOCK_S:
        return Check(name="clock", status=Verdict.OK, found=found)
    means = "Certificates are refused, and logs and manifests get wrong times."
    fix = "set the clock: `timedatectl set-ntp true`, or restart the virtual machine"
    return Check(name="clock", status=Verdict.WARN, found=found, means=means, fix=fix)


def registry_hosts(bases: Path) -> tuple[str, ...]:
    """List the registries of the base images that a file names under `ref`; none where there is no file.

    Raises:
        EnginefarmError: STACK_INVALID where it is not TOML.

    """
    try:
        document = tomllib.loads(bases.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ()
    except tomllib.TOMLDecodeError as error:
        raise EnginefarmError(Reason.STACK_INVALID, str(error), where=str(bases)) from error
    return tuple(sorted({_host(ref) for ref in _refs(document)}))


def _without_project(error: EnginefarmError) -> Check:
    if error.reason is Reason.PROJECT_MISSING:
        found, means = "no recipes/ and images/ here or above", "Stacks are not checked."
        fix = "run it in a checkout, or name one with --project"
        return Check(name="project", status=Verdict.ABSENT, found=found, means=means, fix=fix)
    found = f"{error.where}: {error.what}"
    return Check(name="project", status=Verdict.FAIL, found=found, means=error.why or "", fix=error.fix)


def _ready(stack: Stack, home: Home) -> Ready:
    try:
        environment = locate(stack, home)
    except EnginefarmError as error:
        return Ready(stack=stack, python=error, installed=False)
    return Ready(stack=stack, python=environment.base, installed=environment.installed)


def _registry_check(answer: Answer) -> Check:
    name = f"registry:{answer.address.removeprefix('https://').partition('/')[0]}"
    if not answer.problem:
        return Check(name=name, status=Verdict.OK, found="reached")
    means = "Base images of this registry cannot be pulled. Building without images needs none."
    return Check(name=name, status=Verdict.WARN, found=answer.problem, means=means, fix=f"{_PROXY}, or use a mirror")


def _docker_disk(docker: dict[str, Any], needed_gib: int) -> Iterator[Check]:
    folder = Path(docker.get("DockerRootDir") or os.devnull)
    # the engine may be on another machine, or its folder closed to this user
    if folder.is_dir():
        yield docker_disk_check(folder, host.free_disk_bytes(folder), needed_gib)


def _refs(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "ref" and isinstance(value, str):
                yield value
            else:
                yield from _refs(value)
    elif isinstance(node, list):
        for item in node:
            yield from _refs(item)


def _host(ref: str) -> str:
    first, slash, _ = ref.partition("/")
    named = bool(slash) and ("." in first or ":" in first or first == "localhost")
    return first if named and first != "docker.io" else _DOCKER_HUB
