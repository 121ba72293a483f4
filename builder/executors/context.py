"""What every executor is made with, and what every stage on a GPU is told."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from builder.events import Listener
from builder.project import Home, Project
from builder.stage import StageRequest


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


def gpu_environment(request: StageRequest) -> dict[str, str]:
    """Return the variables of a stage that has a GPU; none for others.

    Without lazy loading CUDA copies all of a library's kernels to the device first: 7 s for TensorRT 8.6.
    """
    return {} if request.gpu is None else {"CUDA_MODULE_LOADING": "LAZY"}
