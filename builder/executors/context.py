"""What every executor is made with."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from builder.events import Listener
from builder.project import Home, Project


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorContext:
    """`install`: software that is missing may be put in place. `keep`: what failed stays to be looked at.

    `memory_bytes`: limit of one stage; null is what the machine has free.
    """

    project: Project
    home: Home
    install: bool
    cancel: threading.Event
    listen: Listener
    keep: bool = False
    memory_bytes: int | None = None
