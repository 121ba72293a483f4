"""Executors: where stages run. One Protocol, one registry."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

from builder.errors import EnginefarmError
from builder.executors.context import ExecutorContext
from builder.executors.local import LocalExecutor
from builder.key import Runtime
from builder.stacks import Stack
from builder.stage import StageRequest, StageResult

AUTO = "auto"
_SOCKET = Path("/var/run/docker.sock")


class Executor(Protocol):
    """Runs stages in a stack's software. Methods are called from several threads."""

    def identified(self, stack: Stack) -> bool:
        """Say whether `runtime` can answer before `prepare`."""
        ...

    def runtime(self, stack: Stack) -> Runtime:
        """Name the software that keys depend on; nothing is installed."""
        ...

    def ready(self, stack: Stack) -> bool:
        """Say whether the stack's software is in place."""
        ...

    def prepare(self, stack: Stack, log: Path) -> None:
        """Put the stack's software in place."""
        ...

    def run(self, stack: Stack, request: StageRequest) -> StageResult:
        """Run one stage in a process of its own."""
        ...


def _docker(context: ExecutorContext) -> Executor:
    # Docker's library takes longer to import than a run that reuses everything
    executor: Executor = import_module("builder.executors.docker").DockerExecutor(context)
    return executor


def _rootfs(context: ExecutorContext) -> Executor:
    # it reads images' records, whose model takes longer to import than most runs need it
    executor: Executor = import_module("builder.executors.rootfs").RootfsExecutor(context)
    return executor


EXECUTORS: dict[str, Callable[[ExecutorContext], Executor]] = {
    "docker": _docker,
    "local": LocalExecutor,
    "rootfs": _rootfs,
}


def docker_answers() -> bool:
    """Say whether a Docker Engine answers."""
    if not os.environ.get("DOCKER_HOST") and not _SOCKET.exists():
        return False
    try:
        import_module("builder.docker_engine").DockerEngine().info()
    except EnginefarmError:
        return False
    return True
