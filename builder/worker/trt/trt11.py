"""TensorRT 11: strongly typed only. The flag that asks for it is still there, without effect."""

from __future__ import annotations

from . import classic

FLAGS = {"fp32": (), "tf32": ("TF32",), "fp16": (), "bf16": ()}

ADAPTER = classic.Classic(
    network_flags=("STRONGLY_TYPED",),
    precision_flags=FLAGS,
    recording=classic.RECORDING,
    sealing=("ERROR_ON_TIMING_CACHE_MISS",),
)
