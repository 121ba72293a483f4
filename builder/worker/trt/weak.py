"""Weak typing, up to TensorRT 10: the graph's types are hints, and precision is a wish for each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import TensorProto

from .. import graph as graphs
from .layers import node_of

if TYPE_CHECKING:
    from . import Request

COMPUTING = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "FULLY_CONNECTED", "EINSUM"})
# INT8 is found by calibration; where TensorRT has no INT8 kernel, or a slower one, it may take FP16.
INT8_FLAGS = ("INT8", "FP16", "PREFER_PRECISION_CONSTRAINTS")


def constrain(trt: Any, network: Any, model: str, request: Request) -> int:
    """Tell each layer that multiplies, and each that was kept in FP32, its precision; return how many were told.

    TensorRT follows where it has a kernel and warns where it has none: the examine stage sees what came of it. INT8 is
    TensorRT's own choice layer by layer: only what was kept is told.
    """
    if request.precision not in ("fp16", "int8"):
        return 0
    asked = node_types(model)
    told = 0
    for layer in (network.get_layer(index) for index in range(network.num_layers)):
        node = node_of(layer)
        if asked.get(node) == TensorProto.FLOAT and node in request.kept_fp32:
            layer.precision = trt.DataType.FLOAT
            told += 1
        elif asked.get(node) == TensorProto.FLOAT16 and layer.type.name in COMPUTING:
            layer.precision = trt.DataType.HALF
            told += 1
    return told


def node_types(model: str) -> dict[str, int]:
    """Return the float type that each node of the lowered graph computes in: that of its first float value."""
    loaded = onnx.load(model)
    types = graphs.value_types(loaded)
    types.update((tensor.name, tensor.data_type) for tensor in loaded.graph.initializer)
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16)
    found = {}
    for node in loaded.graph.node:
        seen = [types[name] for name in [*node.input, *node.output] if types.get(name) in floats]
        if seen and node.op_type != "Cast":
            found[node.name] = seen[0]
    return found
