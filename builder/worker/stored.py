"""What one engine layer, and the size of an engine's file, say about the precision inside."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from .trt.inspect import UNKNOWN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .asked import Asked
    from .trt.inspect import EngineLayer

OPAQUE = "OPAQUE"
# Types that a kernel multiplies in, with the bytes of one value.
BYTES = {"FLOAT": 4.0, "HALF": 2.0, "BF16": 2.0, "FP8": 1.0, "INT8": 1.0, "FP4": 0.5, "INT4": 0.5}
COMPUTES = frozenset(BYTES)
TACTIC_TYPES = {
    "f32": "FLOAT",
    "fp32": "FLOAT",
    "tf32": "FLOAT",
    "f16": "HALF",
    "fp16": "HALF",
    "bf16": "BF16",
    "i8": "INT8",
    "e4m3": "FP8",
}
_OPERAND = "tf32|bf16|e4m3|fp16|fp32|f16|f32|i8"
# The types of both operands, as kernels are called: ..._f16f16_f16f16_f16_..., ..._fp32fp32_..., ...FP32FP32NCHW...
_TACTIC = re.compile(rf"(?:^|_)({_OPERAND})(?:{_OPERAND}|i32)(?=_|n|$)")
# Below this much, code and tables of the engine file weigh as much as the weights.
LEAST_BYTES = 1_000_000
# Weights in FP32 are a claim against the engine, so kernels must not be mistaken for them: they take some megabytes.
LEAST_FP32_BYTES = 32_000_000
LOW_BELOW, FP32_ABOVE = 0.75, 0.9


class Known(NamedTuple):
    """A type and how it is known."""

    type: str
    basis: str


class Stored(NamedTuple):
    """How the weights of layers that cannot be seen into are stored: low, fp32, unclear, absent, or not asked.

    Bytes are those of the engine file and of these weights in FP32; `ratio` is what the file has left for them, after
    all others, over that.
    """

    weights: str
    engine_bytes: int | None
    hidden_fp32_bytes: int | None
    ratio: float | None
    why: str


def own_type(layer: EngineLayer) -> Known:
    """Tell the type that a visible layer computes in: of what it reads, else of its weights, kernel or outputs."""
    inputs = [kind for kind in layer.inputs if kind in COMPUTES]
    if len(set(inputs)) == 1:
        return Known(inputs[0], "io")
    outputs = [kind for kind in layer.outputs if kind in COMPUTES]
    if not inputs and UNKNOWN not in layer.inputs and len(set(outputs)) == 1:
        return Known(outputs[0], "io")
    if layer.weights in COMPUTES:
        return Known(layer.weights, "weights")
    kernel = _TACTIC.search(layer.tactic.lower())
    if kernel is not None:
        return Known(TACTIC_TYPES[kernel[1]], "tactic")
    rest = inputs or outputs
    return Known(rest[0], "io") if rest else Known(OPAQUE, "none")


def uses_tf32(tactic: str) -> bool:
    """Say whether a kernel's name tells that it rounds its operands to TF32."""
    return "tf32" in tactic.lower()


def weigh(asked: Asked, known: dict[str, str], hidden: Iterable[str], size: int | None, *, padded: bool) -> Stored:
    """Weigh an engine file: do the weights of the `hidden` nodes fit into it in FP32, or only in low precision?

    `known` gives the types of the nodes that can be seen. The weights of all other nodes are taken to be as the lowered
    graph has them.
    """
    mine = asked.weights_of(hidden) - asked.weights_of(known)
    full = sum(asked.weights[name].values for name in mine) * 4
    if not full:
        return Stored("not asked", size, full, None, "no layer with weights is hidden")
    if size is None:
        return Stored("absent", None, full, None, "the engine file does not hold the weights")
    types = {name: kind for node, kind in known.items() for name in asked.reads.get(node, ())}
    least = most = 0.0
    for name, weight in asked.weights.items():
        if name not in mine:
            least += weight.values * BYTES[types.get(name, weight.type)]
            most += weight.values * BYTES[types.get(name, "FLOAT")]
    ratio = round((size - least) / full, 3)
    if full < LEAST_BYTES:
        return Stored("unclear", size, full, ratio, f"{full} bytes of weights are too few to tell")
    if ratio < LOW_BELOW:
        return Stored("low", size, full, ratio, f"the file has room for {ratio:.0%} of the hidden weights in FP32")
    if full >= LEAST_FP32_BYTES and not padded and (size - most) / full > FP32_ABOVE:
        return Stored(
            "fp32", size, full, ratio, f"the file is as large as with all hidden weights in FP32 ({ratio:.0%})"
        )
    return Stored("unclear", size, full, ratio, f"the file has room for {ratio:.0%} of the hidden weights in FP32")
