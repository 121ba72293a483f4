"""Timing caches: what earlier builds measured goes into the builder, what it measured comes out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from ..protocol import StageFailure
from .session import WARNING

if TYPE_CHECKING:
    from . import Request
    from .session import Log

TIMING_CACHE = "out/timing.cache"


def load_timing(config: Any, request: Request, log: Log) -> bytes:
    """Give the builder the caches of earlier builds; return them as TensorRT writes them when nothing was added.

    A cache carries the UUID of the GPU that it was measured on. Where the farm knows that device and driver are alike,
    another board is no hindrance. A build that is not sealed goes on without a cache that TensorRT refuses.

    Raises:
        StageFailure: timing-cache-invalid for the cache of a sealed build.

    """
    alike = request.timing.same_device or not request.timing.sealed
    whole = config.create_timing_cache(b"")
    for path in request.timing.files:
        with open(path, "rb") as file:
            content = file.read()
        part = config.create_timing_cache(content)
        # of a damaged file TensorRT 8.6 takes nothing, and says so in its log alone
        if part is None or len(bytes(part.serialize())) < len(content) or not whole.combine(part, alike):
            failure = _bad_cache(path, log)
            if request.timing.sealed:
                raise failure
            log.note(WARNING, f"{failure.message}: {failure.why}")
    if not config.set_timing_cache(whole, alike):
        raise _bad_cache(", ".join(request.timing.files), log)
    return bytes(whole.serialize())


def _bad_cache(path: str, log: Log) -> StageFailure:
    why = "\n".join(log.errors[-2:]) or "it is damaged, or of another GPU, driver or TensorRT"
    return StageFailure(
        "timing-cache-invalid",
        f"TensorRT refuses the timing cache {path}",
        why=why,
        fix="use the cache of this stack and GPU, or build without one",
    )


def save_timing(trt: Any, config: Any, request: Request, before: bytes) -> dict[str, Any]:
    """Write what the builder has measured by now, and say how it compares with what went in.

    Raises:
        StageFailure: sealed-cache-changed.

    """
    after = bytes(config.get_timing_cache().serialize())
    # 8.6 cannot be told to refuse a miss, and writes what it read in another order: there a cache changes by growing
    exact = "ERROR_ON_TIMING_CACHE_MISS" in trt.BuilderFlag.__members__
    unchanged = after == before if exact else len(after) == len(before)
    if request.timing.sealed and not unchanged:
        raise changed(f"the cache had {len(before)} bytes and has {len(after)} now")
    with open(TIMING_CACHE, "wb") as file:
        file.write(after)
    return {
        "read": [_sha256(path) for path in request.timing.files],
        "sealed": request.timing.sealed,
        "unchanged": unchanged and bool(request.timing.files),
        "bytes": len(after),
        "sha256": hashlib.sha256(after).hexdigest(),
    }


def changed(why: str) -> StageFailure:
    """Say that a sealed build had to time what its cache lacks."""
    return StageFailure(
        "sealed-cache-changed",
        "the build needed timings that its sealed timing cache lacks",
        why=why,
        fix="build without the seal, then seal the cache of that build",
    )


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()
