"""Low precision on the CPU, truly rounded: an FP32 graph that gives what the low-precision graph would.

ONNX Runtime has no FP16 or BF16 kernels for most operators on the CPU. It computes in FP32 and drops the casts that it
put in itself, so an overflow in the middle never shows. Here every low-precision value is rounded by an explicit
pair of casts, which ONNX Runtime keeps: inputs and outputs of each operator have the low precision's values, sums
inside an operator are FP32, as on tensor cores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from .graph import graphs

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

LOW_TYPES = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
# Their outputs are values of their inputs, which are rounded already.
EXACT = frozenset(
    {
        "Abs",
        "Compress",
        "Concat",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "MaxPool",
        "Neg",
        "NonZero",
        "Pad",
        "Relu",
        "Reshape",
        "ReverseSequence",
        "ScatterElements",
        "ScatterND",
        "Shape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "TopK",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)
TENSOR_CORE = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum"})
# Veltkamp's constant: of FP32's 24 significant bits, 11 are left, as TF32 has.
TF32_SPLIT = float(2**13 + 1)


def emulated(model: ModelProto, precision: str, *, rounding: bool = True) -> ModelProto:
    """Return an FP32 model that emulates a model lowered to `precision`; the given one is left as it is.

    Without `rounding` the result is the same graph in plain FP32, node names included: the yardstick for its layers.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if precision == "tf32":
        if rounding:
            for graph in _innermost_first(copy):
                _round_products(graph)
    elif precision in LOW_TYPES:
        low = LOW_TYPES[precision]
        types = _value_types(copy)
        for graph in _innermost_first(copy):
            _widen(graph, low, types, rounding=rounding)
    return copy


def _innermost_first(model: ModelProto) -> list[GraphProto]:
    # a graph that gets new nodes copies them, so whatever changes inside them has to change before
    return list(graphs(model.graph))[::-1]


def _value_types(model: ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model)
    types: dict[str, int] = {}
    for graph in graphs(inferred.graph):
        types.update({tensor.name: tensor.data_type for tensor in graph.initializer})
        for value in [*graph.input, *graph.value_info, *graph.output]:
            if value.type.HasField("tensor_type"):
                types[value.name] = value.type.tensor_type.elem_type
    return types


def _widen(graph: GraphProto, low: int, types: dict[str, int], *, rounding: bool) -> None:
    for tensor in graph.initializer:
        if tensor.data_type == low:
            tensor.CopyFrom(_wide(tensor))
    for value in [*graph.input, *graph.output]:
        if value.type.tensor_type.elem_type == low:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    nodes: list[NodeProto] = []
    for node in graph.node:
        to_low = node.op_type == "Cast" and any(a.name == "to" and a.i == low for a in node.attribute)
        _widen_attributes(node, low)
        nodes.append(node)
        if not rounding or (node.op_type in EXACT and node.domain in ("", "ai.onnx")):
            continue
        for index, name in enumerate(node.output):
            if name and (types.get(name) == low or to_low):
                node.output[index] = raw = f"{name}__exact"
                nodes += _rounding(raw, name, low)
    del graph.node[:]
    graph.node.extend(nodes)


def _widen_attributes(node: NodeProto, low: int) -> None:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR and attribute.t.data_type == low:
            attribute.t.CopyFrom(_wide(attribute.t))
        elif attribute.name in ("to", "dtype") and attribute.type == AttributeProto.INT and attribute.i == low:
            attribute.i = TensorProto.FLOAT


def _wide(tensor: TensorProto) -> TensorProto:
    return numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name)


def _rounding(source: str, target: str, low: int) -> list[NodeProto]:
    middle = f"{target}__low"
    return [
        helper.make_node("Cast", [source], [middle], to=low, name=f"{target}__round_down"),
        helper.make_node("Cast", [middle], [target], to=TensorProto.FLOAT, name=f"{target}__round_up"),
    ]


def _round_products(graph: GraphProto) -> None:
    constants = {tensor.name: tensor for tensor in graph.initializer}
    rounded: dict[str, str] = {}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type in TENSOR_CORE:
            # the bias, input 2, is added in FP32
            for index, name in enumerate(node.input[:2]):
                if name not in rounded:
                    rounded[name] = f"{name}__tf32"
                    if name in constants:
                        values = tf32(numpy_helper.to_array(constants[name]))
                        graph.initializer.append(numpy_helper.from_array(values, rounded[name]))
                    else:
                        nodes += _split(name, rounded[name])
                node.input[index] = rounded[name]
        nodes.append(node)
    graph.initializer.append(numpy_helper.from_array(np.float32(TF32_SPLIT), "__tf32_split"))
    del graph.node[:]
    graph.node.extend(nodes)


def _split(source: str, target: str) -> list[NodeProto]:
    product, rest = f"{target}__product", f"{target}__rest"
    return [
        helper.make_node("Mul", [source, "__tf32_split"], [product], name=product),
        helper.make_node("Sub", [product, source], [rest], name=rest),
        helper.make_node("Sub", [product, rest], [target], name=f"{target}__rounded"),
    ]


def tf32(values: np.ndarray) -> np.ndarray:
    """Round FP32 values to TF32's 10 explicit mantissa bits; other types are given back."""
    if values.dtype != np.float32:
        return values
    product = values * np.float32(TF32_SPLIT)
    rounded: np.ndarray = (product - (product - values)).astype(np.float32)
    return rounded
