"""Executors: where stages run. One Protocol, one registry."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from builder.executors.local import LocalExecutor
from builder.key import Runtime
from builder.project import Home
from builder.stacks import Stack
from builder.stage import StageRequest, StageResult


class Executor(Protocol):
    """Runs stages in a stack's software. Methods are called from several threads."""

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


EXECUTORS: dict[str, Callable[[Home, bool, threading.Event], Executor]] = {"local": LocalExecutor}
