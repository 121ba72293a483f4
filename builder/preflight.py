"""Checks before work starts: enough disk for what is to be made, and how much memory each job will take."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from builder.errors import EnginefarmError, Reason

MIB = 1 << 20

# A stage holds the model several times (protobuf, TensorRT's network, its weights, the serialised engine).
# Measured with TensorRT-RTX 1.7.1 on PP-OCRv4 and Vocos; benchmarks/ prints the figures anew.
_STAGE_BASE_BYTES = 450 * MIB
_STAGE_MODEL_FACTOR = 8
_UNKNOWN_MODEL_BYTES = 128 * MIB

# An ONNX model, its lowered copy, the engine in the work folder and in the store, each at most the model's FP32 size.
_DISK_MODEL_FACTOR = 4

# CUDA's context, the libraries' kernels and the builder's own needs; then weights of several tactics at once.
_GPU_BASE_BYTES = 768 * MIB
_GPU_MODEL_FACTOR = 4
_EXPORT_BASE_BYTES = 1500 * MIB


def job_memory_bytes(model_bytes: int | None, seen_bytes: int | None) -> int:
    """Estimate the peak memory of a job's largest stage: what the journal saw, else from the model's size."""
    if seen_bytes:
        return seen_bytes
    return _STAGE_BASE_BYTES + _STAGE_MODEL_FACTOR * (_UNKNOWN_MODEL_BYTES if model_bytes is None else model_bytes)


def gpu_memory_bytes(model_bytes: int) -> int:
    """Estimate the GPU memory without which tuning cannot begin; TensorRT takes more where there is more."""
    return _GPU_BASE_BYTES + _GPU_MODEL_FACTOR * model_bytes


def export_memory_bytes(seen_bytes: int | None) -> int:
    """Estimate the peak memory of an export."""
    return seen_bytes or _EXPORT_BASE_BYTES


def disk_bytes(model_bytes: Iterable[int | None], install_bytes: Iterable[int]) -> int:
    """Estimate the disk that the jobs and the environments still to install will take."""
    models = sum(_UNKNOWN_MODEL_BYTES if size is None else size for size in model_bytes)
    return _DISK_MODEL_FACTOR * models + sum(install_bytes)


def check_disk(needed: int, free: int, folder: Path) -> None:
    """Refuse to start where the disk would fill up.

    Raises:
        EnginefarmError: DISK_FULL with the number of bytes missing.

    """
    if needed <= free:
        return
    missing = needed - free
    raise EnginefarmError(
        Reason.DISK_FULL,
        f"this needs about {needed} bytes in {folder}, {free} are free: {missing} bytes are missing",
        fix=f"free {missing / MIB:.0f} MiB (`enginefarm gc --keep-days 7 --dry-run` lists what the farm could give), "
        "ask for less at once, or set ENGINEFARM_HOME to a larger disk",
    )
