"""What stages in an image have in common, whatever runs them: the software's name in keys, and their environment."""

from __future__ import annotations

from builder.executors.context import gpu_environment
from builder.image_record import ImageRecord
from builder.key import Runtime
from builder.stacks import Stack
from builder.stage import StageRequest
from builder.standin import STANDIN
from builder.worker.addresses import ENVIRONMENT

# where the worker's source, the stage's folder and what it may scribble on lie
SOURCE = "/opt/enginefarm/src"
WORK = "/work"
TMP = "/tmp"  # noqa: S108  # the stage's own
TMP_OPTIONS = "size=256m,mode=1777"
COMMAND = ("python3", "-m", "builder.worker", WORK)


def image_runtime(stack: Stack, record: ImageRecord) -> Runtime:
    """Name the image of a stack, as keys and manifests do."""
    base = f"{STANDIN} {record.base}" if record.standin else record.base
    return Runtime(stack=stack, python=record.python, image=record.digest, image_base=base)


def stage_environment(request: StageRequest, processor: int) -> dict[str, str]:
    """Return the variables of a stage, beyond those of its image."""
    return {
        "PYTHONPATH": f"{SOURCE}:/opt/stack",
        "PYTHONHASHSEED": "0",
        "HOME": TMP,
        "TMPDIR": TMP,
        "ENGINEFARM_CPU": str(processor),
        **(ENVIRONMENT if request.stage == "build" else {}),
        **gpu_environment(request),
    }
