"""Loading an engine: the only call that deserializes one, its header, and what TensorRT's refusals mean.

Worker and runtime share it; it takes the standard library alone.
"""

from __future__ import annotations

import os
from typing import Any

from ..protocol import StageFailure

# TensorRT's own words when it refuses to load an engine.
OTHER_VERSION = (
    "version tag does not match",
    "older plan file",
    "not compatible with this version",
    "serialization assertion stdversionread",
)
OTHER_DEVICE = ("incompatible device", "compute capability", "generated on a different device", "sm version")
NO_LIBRARY = ("unable to load library", "cannot open shared object file", "could not load library")
OLD_DRIVER = "driver version is insufficient"
MAGIC = b"ftrt"
VERSION_AT = 0x18


def deserialize(trt: Any, logger: Any, content: bytes, *, host_code: bool = False) -> tuple[Any, Any]:
    """Let TensorRT read an engine; return its runtime, which has to outlive the engine, and the engine or None.

    An engine is executable code: who calls this has checked where `content` comes from. `host_code`: whether code for
    the host in it may run.
    """
    runtime = trt.Runtime(logger)
    if host_code:
        runtime.engine_host_code_allowed = True
    return runtime, runtime.deserialize_cuda_engine(content)


def refusal(trt: Any, errors: list[str], content: bytes, sm: str) -> StageFailure:
    """Say why TensorRT did not load an engine."""
    failure = load_failure(errors, "TensorRT cannot load the engine")
    version = plan_version(content)
    if failure.reason == "engine-invalid" and version is not None and not version.startswith(f"{_release(trt)}."):
        message = f"the engine was built by TensorRT {version}, this is {trt.__version__}"
        return StageFailure("engine-version", message, why=failure.why, fix="use the stack of its version")
    if failure.reason == "sm-mismatch":
        return StageFailure("sm-mismatch", f"the engine is for another GPU than this one of SM {sm}", why=failure.why)
    return failure


def load_failure(errors: list[str], message: str) -> StageFailure:
    """Sort TensorRT's words of loading or running into a reason."""
    why = "\n".join(dict.fromkeys(errors)) or "TensorRT gave no reason"
    said = why.lower()
    if any(text in said for text in NO_LIBRARY):
        return StageFailure("library-missing", message, why=why, fix="build the image of the stack again")
    if any(text in said for text in OTHER_VERSION):
        return StageFailure("engine-version", message, why=why, fix="use the stack of the engine's version")
    if any(text in said for text in OTHER_DEVICE):
        return StageFailure("sm-mismatch", message, why=why, fix="build the engine for this GPU")
    if "out of memory" in said or "outofmemory" in said:
        return StageFailure("out-of-memory", message, why=why, fix="end other programs on the GPU")
    if errors and OLD_DRIVER in errors[0].lower():
        return StageFailure("driver-too-old", message, why=why, fix="update the driver")
    return StageFailure("engine-invalid", message, why=why, fix="build the engine again")


def plan_version(content: bytes) -> str | None:
    """Read the TensorRT version in a classic engine's header, such as "8.6.0.12"; None where this is no such engine."""
    if content[: len(MAGIC)] != MAGIC or len(content) < VERSION_AT + 4:
        return None
    return ".".join(str(byte) for byte in content[VERSION_AT : VERSION_AT + 4])


def check_header(trt: Any, path: str, *, version_compatible: bool) -> None:
    """Refuse what is no classic engine or one of another TensorRT, before TensorRT reads it.

    TensorRT 8.6 loads an engine whose header names another version.

    Raises:
        StageFailure: engine-invalid, engine-version.

    """
    with open(path, "rb") as file:
        version = plan_version(file.read(VERSION_AT + 4))
    if version is None:
        what = f"{os.path.basename(path)} is no engine of TensorRT"
        raise StageFailure("engine-invalid", what, why="it does not begin as one", fix="build the engine again")
    if not version_compatible and not version.startswith(f"{_release(trt)}."):
        message = f"the engine was built by TensorRT {version}, this is {trt.__version__}"
        raise StageFailure("engine-version", message, fix="use the stack of its version")


def _release(trt: Any) -> str:
    return ".".join(str(trt.__version__).split(".")[:3])
