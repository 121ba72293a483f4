"""Which nodes stay in FP32 when the rest is lowered, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from onnx import TensorProto, numpy_helper

from . import graph as graphs
from .protocol import StageFailure, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto, ModelProto, NodeProto

# Largest finite value of each format.
LARGEST = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
# The type of what they make is an attribute, or their scales must be FP32: the converter knows neither.
TYPED_OPS = (
    "BlackmanWindow",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "HammingWindow",
    "HannWindow",
    "MelWeightMatrix",
    "QuantizeLinear",
)
# TensorRT knows no kernel for them in this format.
NO_KERNEL = {"fp16": (), "bf16": ("ConvTranspose",)}
# They pass values on unchanged, so what is out of range before them is so behind them.
MOVES = ("Expand", "Gather", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze")
INTEGERS = (TensorProto.INT32, TensorProto.INT64)


class Kept(NamedTuple):
    """Node names with the reason for each, and the weights that the format cannot hold."""

    reasons: dict[str, str]
    out_of_range: list[dict[str, Any]]


def choose(
    model: ModelProto, types: dict[str, int], precision: str, asked: dict[str, list[str]], always: list[str]
) -> Kept:
    """Decide what stays in FP32: what the recipe names, what the converter cannot lower, what would lose its value.

    Raises:
        StageFailure: input-invalid where the recipe names a node or an operator that the graph lacks.

    """
    reasons = named(model, asked)
    for node in graphs.all_nodes(model.graph):
        if node.name in reasons:
            continue
        if (node.op_type in always or node.op_type in TYPED_OPS) and _touches_floats(node, types):
            reasons[node.name] = f"operator {node.op_type} is not lowered"
        elif node.op_type in NO_KERNEL[precision]:
            reasons[node.name] = f"TensorRT has no {precision} kernel for {node.op_type}"
    for name in _shape_arithmetic(model.graph, types):
        reasons.setdefault(name, "computes with shapes, which FP16 and BF16 round")
    out_of_range = _out_of_range(model.graph, LARGEST[precision])
    for name, tensor in _readers(model.graph, set(out_of_range)):
        reasons.setdefault(name, f"{tensor} is out of the range of {precision}")
    _refuse_inner(model.graph, reasons, precision)
    return Kept(reasons, [{"tensor": name, "max_abs": value} for name, value in sorted(out_of_range.items())])


def named(model: ModelProto, asked: dict[str, list[str]]) -> dict[str, str]:
    """Return the nodes that the recipe keeps in FP32, with the reason for each.

    Raises:
        StageFailure: input-invalid where the recipe names a node or an operator that the graph lacks.

    """
    _refuse_unknown(model.graph, asked)
    reasons: dict[str, str] = {}
    for node in graphs.all_nodes(model.graph):
        if node.name in asked["nodes"]:
            reasons[node.name] = "named by the recipe"
        elif node.op_type in asked["ops"]:
            reasons[node.name] = f"operator {node.op_type} named by the recipe"
    return reasons


def _refuse_unknown(graph: GraphProto, asked: dict[str, list[str]]) -> None:
    nodes = [node.name for node in graphs.all_nodes(graph)]
    ops = sorted({node.op_type for node in graphs.all_nodes(graph)})
    unknown = [("node", name, nodes) for name in asked["nodes"] if name not in set(nodes)]
    unknown += [("operator", name, ops) for name in asked["ops"] if name not in ops]
    if unknown:
        texts = [f"no {kind} {name}{did_you_mean(name, known)}" for kind, name, known in unknown]
        raise StageFailure(
            "input-invalid",
            f"keep_fp32 names what the graph lacks: {texts[0]}",
            why="\n".join(texts[1:]),
            fix=f"use names of the graph; its operators are {', '.join(ops)}",
            details={"unknown": [name for _, name, _ in unknown]},
        )


def _refuse_inner(graph: GraphProto, reasons: dict[str, str], precision: str) -> None:
    """Casts cannot be placed inside If, Loop and Scan."""
    outer = {node.name for node in graph.node}
    inner = sorted(set(reasons) - outer)
    if inner:
        raise StageFailure(
            "precision-unsupported",
            f"{precision}: node {inner[0]} inside an If, Loop or Scan would have to stay in FP32",
            why="\n".join(f"{name}: {reasons[name]}" for name in inner),
            fix="build this model in fp32 or tf32, or export it without control flow",
        )


def _touches_floats(node: NodeProto, types: dict[str, int]) -> bool:
    return any(types.get(name) == TensorProto.FLOAT for name in [*node.input, *node.output])


def _shape_arithmetic(graph: GraphProto, types: dict[str, int]) -> Iterator[str]:
    """Yield float nodes whose values follow from shapes alone: above 2048 FP16 no longer holds every whole number."""
    constants = {tensor.name for tensor in graph.initializer}
    whole: set[str] = set()
    floats: set[str] = set()
    for node in graph.node:
        inputs = {name for name in node.input if name}
        if node.op_type == "Constant":
            constants.update(node.output)
        elif node.op_type in ("Shape", "Size"):
            whole.update(node.output)
        elif inputs and inputs <= constants | whole | floats and inputs & (whole | floats):
            makes_floats = any(types.get(name) == TensorProto.FLOAT for name in node.output)
            starts = node.op_type in ("Cast", "Range") and inputs & whole
            if inputs & floats or (makes_floats and starts):
                yield node.name
            if makes_floats and (inputs & floats or starts):
                floats.update(node.output)
            elif not makes_floats:
                whole.update(node.output)


def _out_of_range(graph: GraphProto, largest: float) -> dict[str, float]:
    """Return every float constant with a finite value that the format cannot hold; ConstantOfShape by its output."""
    found: dict[str, float] = {}
    for tensor in (tensor for each in graphs.graphs(graph) for tensor in each.initializer):
        if tensor.data_type == TensorProto.FLOAT:
            found[tensor.name] = _largest_finite(numpy_helper.to_array(tensor))
    for node in graphs.all_nodes(graph):
        if node.op_type == "ConstantOfShape":
            for attribute in node.attribute:
                if attribute.t.data_type == TensorProto.FLOAT:
                    found[node.output[0]] = _largest_finite(numpy_helper.to_array(attribute.t))
        elif node.op_type == "Constant" and (array := graphs.constant_array(node)) is not None:
            found[node.output[0]] = _largest_finite(array)
    return {name: value for name, value in found.items() if value > largest}


def _largest_finite(array: np.ndarray) -> float:
    if array.size == 0:
        return 0.0
    largest = max(float(array.max()), -float(array.min()))
    if np.isfinite(largest):
        return largest
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def _readers(graph: GraphProto, tensors: set[str]) -> Iterator[tuple[str, str]]:
    """Yield each node that makes or reads one of the tensors, through nodes that only move values."""
    origin = {name: name for name in tensors}
    for node in graphs.all_nodes(graph):
        sources = [name for name in [*node.input, *node.output] if name in origin]
        if not sources:
            continue
        yield node.name, origin[sources[0]]
        if node.op_type in MOVES and node.input[0] in origin:
            origin.update((name, origin[node.input[0]]) for name in node.output)
