"""What a lowered graph asks for: the type that each node computes in, and the weights that it reads."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, NamedTuple

import onnx
from onnx import TensorProto

from . import graph as graphs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from onnx import ModelProto

# ONNX element types that are floats, to their names in TensorRT's API.
FLOATS = {TensorProto.FLOAT: "FLOAT", TensorProto.FLOAT16: "HALF", TensorProto.BFLOAT16: "BF16"}
# What is behind them is the same weight in another form.
PASSES_ON = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


class Weight(NamedTuple):
    """A float constant of the graph: how many values, and of which type."""

    values: int
    type: str


class Asked(NamedTuple):
    """What a graph's nodes are.

    `types` by node name (FLOAT, HALF, BF16; nodes that make no float have none), `ops` likewise, `weights` by their own
    name, `reads` which of them each node reads, and `tensors`, the names of the graph's inputs and outputs.
    """

    types: dict[str, str]
    ops: dict[str, str]
    weights: dict[str, Weight]
    reads: dict[str, frozenset[str]]
    tensors: list[str]

    def weights_of(self, nodes: Iterable[str]) -> set[str]:
        """Return the names of the weights that the nodes read."""
        return {name for node in nodes for name in self.reads.get(node, ())}


def read(path: str) -> Asked:
    """Read a lowered ONNX file; weights kept outside it are not opened."""
    return of(onnx.load(path, load_external_data=False))


def of(model: ModelProto) -> Asked:
    """Read a lowered model with named nodes."""
    types = graphs.value_types(model)
    weights = _weights(model)
    # for a value that is a weight in another form: which weight
    origin = {name: name for name in weights}
    tensors = [value.name for value in [*model.graph.input, *model.graph.output] if value.name not in weights]
    asked = Asked({}, {}, weights, {}, tensors)
    for node in graphs.all_nodes(model.graph):
        asked.ops[node.name] = node.op_type
        made = next((FLOATS[types[name]] for name in node.output if types.get(name) in FLOATS), None)
        if made is not None:
            asked.types[node.name] = made
        if node.op_type in PASSES_ON and node.input and node.input[0] in origin:
            origin.update((name, origin[node.input[0]]) for name in node.output)
        asked.reads[node.name] = frozenset(origin[name] for name in node.input if name in origin)
    return asked


def _weights(model: ModelProto) -> dict[str, Weight]:
    found = {tensor.name: tensor for each in graphs.graphs(model.graph) for tensor in each.initializer}
    for node in graphs.all_nodes(model.graph):
        if node.op_type == "Constant":
            found.update((node.output[0], attribute.t) for attribute in node.attribute if attribute.name == "value")
    return {
        name: Weight(prod(tensor.dims), FLOATS[tensor.data_type])
        for name, tensor in found.items()
        if tensor.data_type in FLOATS
    }
