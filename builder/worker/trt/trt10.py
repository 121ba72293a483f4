"""TensorRT 10: built strongly typed, so the types of the lowered graph are those that the engine computes in.

The flags for weak typing are still there and deprecated; they cannot be set on such a network.
"""

from __future__ import annotations

from . import classic

FLAGS = {"fp32": (), "tf32": ("TF32",), "fp16": (), "bf16": ()}

ADAPTER = classic.Classic(
    network_flags=("STRONGLY_TYPED",),
    precision_flags=FLAGS,
    sealing=("ERROR_ON_TIMING_CACHE_MISS", "EDITABLE_TIMING_CACHE"),
)
