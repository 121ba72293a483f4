"""TensorRT 10: built strongly typed, so the types of the lowered graph are those that the engine computes in.

But for INT8: calibrators want weak typing, which is deprecated and still there up to 10.16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import classic, weak

if TYPE_CHECKING:
    from . import Request

FLAGS = {"fp32": (), "tf32": ("TF32",), "fp16": (), "bf16": (), "int8": weak.INT8_FLAGS}


def constrain(trt: Any, network: Any, model: str, request: Request) -> int:
    """Tell the layers of a weakly typed network their precision; return how many were told."""
    return weak.constrain(trt, network, model, request) if request.precision == "int8" else 0


ADAPTER = classic.Classic(
    network_flags=("STRONGLY_TYPED",),
    precision_flags=FLAGS,
    recording=classic.RECORDING,
    sealing=("ERROR_ON_TIMING_CACHE_MISS",),
    constrain=constrain,
    own_network_flags={"int8": ()},
)
