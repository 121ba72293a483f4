"""Walks and small edits of ONNX graphs that several stages need."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from .profiles import GraphInput
from .protocol import StageFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

# A dim_param that names one number. Exporters also write "?", "-1" or "" for "unknown", which name nothing.
SYMBOL = re.compile(r"^[A-Za-z_]")
NO_SYMBOLS = frozenset({"none", "unknown", "unk", "dynamic"})
# Larger tensors never decide a shape, so shape inference does without their values.
SMALL_TENSOR_BYTES = 4096
# The message size limit of protobuf is 2 GiB; leave room for the graph itself.
PROTOBUF_LIMIT_BYTES = 1_900_000_000


def load(path: str) -> ModelProto:
    """Read and check an ONNX file with its external data.

    Raises:
        StageFailure: model-invalid.

    """
    try:
        onnx.checker.check_model(path)
        return onnx.load(path)
    except Exception as error:  # protobuf, onnx and file errors share no base class
        if isinstance(error, (MemoryError, KeyboardInterrupt)):
            raise
        text = str(error).strip().splitlines()
        beside = _weights_beside(path)
        what, fix = "the ONNX file is not a valid model", "export it again"
        if beside:
            what = f"the ONNX file keeps weights in another file, {', '.join(beside)}, which is not there"
            fix = "save the model as one file: onnx.save(model, path, save_as_external_data=False)"
        why = text[0] if text else type(error).__name__
        raise StageFailure("model-invalid", what, why=why, fix=fix, details={"error": str(error)}) from error


def _weights_beside(path: str) -> list[str]:
    """List the files, next to a model, in which it keeps weights and which are missing; none for what is no model."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # noqa: BLE001  (what is no model has no weights)
        return []
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    names = sorted({entry.value for entry in entries if entry.key == "location"})
    return [name for name in names if not os.path.exists(os.path.join(os.path.dirname(path), name))]


def save(model: ModelProto, path: str) -> dict[str, str]:
    """Write a model with the same bytes every time; return its files by role.

    A model over protobuf's limit keeps its weights in a file beside it, role `external`.
    """
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > PROTOBUF_LIMIT_BYTES:
        beside = path + ".data"
        onnx.save(model, path, save_as_external_data=True, location=beside.rpartition("/")[2], size_threshold=1024)
        return {"lowered": path, "external": beside}
    with open(path, "wb") as file:
        file.write(model.SerializeToString(deterministic=True))
    return {"lowered": path}


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and all graphs inside its nodes, outer ones first."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from graphs(attribute.g)
            for inner in attribute.graphs:
                yield from graphs(inner)


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield the nodes of a graph and of all graphs inside it."""
    for each in graphs(graph):
        yield from each.node


def opset(model: ModelProto) -> int:
    """Return the version of the default operator set."""
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)


def dtype_name(elem_type: int) -> str:
    """Return float32, int64, ... for an ONNX element type."""
    return str(helper.tensor_dtype_to_np_dtype(elem_type).name)


def describe(value: ValueInfoProto) -> GraphInput:
    """Return name, element type and axes of a graph input or output."""
    tensor = value.type.tensor_type
    dims = tuple(
        dim.dim_value if dim.WhichOneof("value") == "dim_value" else dim.dim_param or None for dim in tensor.shape.dim
    )
    return GraphInput(value.name, dtype_name(tensor.elem_type), dims)


def name_nodes(graph: GraphProto) -> None:
    """Give every node a name that no other has: `<op>_<n>`, counted per operator, where it has none."""
    taken = {node.name for node in all_nodes(graph)}
    seen: set[str] = set()
    counts: Counter[str] = Counter()
    for node in all_nodes(graph):
        name = node.name
        while not name or name in seen:
            candidate = f"{node.name or node.op_type}_{counts[node.op_type]}"
            counts[node.op_type] += 1
            name = "" if candidate in taken else candidate
        node.name = name
        seen.add(name)


def clean(model: ModelProto) -> None:
    """Drop what says nothing about the computation, and symbols that exporters write for "unknown".

    Two axes that are both called "?" are equal to TensorRT, which then refuses profiles where they differ.
    """
    graph = model.graph
    for message in [model, graph, *all_nodes(graph), *graph.initializer, *graph.input, *graph.output]:
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
    for field in ("producer_name", "producer_version", "domain", "model_version"):
        model.ClearField(field)
    for each in graphs(graph):
        del each.value_info[:]
    # Old models list weights among the inputs; then no one may treat them as constants.
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    for value in [*graph.input, *graph.output]:
        for dim in value.type.tensor_type.shape.dim:
            is_size = dim.dim_value > 0
            is_symbol = SYMBOL.match(dim.dim_param) and dim.dim_param.lower() not in NO_SYMBOLS
            if not is_size and not is_symbol:
                dim.Clear()


def constant_array(node: NodeProto) -> np.ndarray | None:
    """Return the value of a Constant node that holds floats, else None."""
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            return np.asarray(numpy_helper.to_array(attribute.t))
        if attribute.name == "value_float":
            return np.asarray(attribute.f, np.float32)
        if attribute.name == "value_floats":
            return np.asarray(attribute.floats, np.float32)
    return None


def value_types(model: ModelProto) -> dict[str, int]:
    """Infer the element type of every value of the main graph that ONNX can infer one for."""
    inferred = onnx.shape_inference.infer_shapes(_without_large_weights(model)).graph
    types = {
        value.name: value.type.tensor_type.elem_type
        for value in [*inferred.input, *inferred.output, *inferred.value_info]
    }
    types.update((tensor.name, tensor.data_type) for tensor in model.graph.initializer)
    return types


def _without_large_weights(model: ModelProto) -> ModelProto:
    """Copy a model but for large weights, so that inference works over protobuf's limit and costs little."""
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.output.extend(model.graph.output)
    light.graph.input.extend(model.graph.input)
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= SMALL_TENSOR_BYTES:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def sort_nodes(graph: GraphProto) -> None:
    """Order the nodes so that every value is made before it is used; otherwise keep their order."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    makers_of = [sorted({makers[name] for name in used_names(node) if name in makers}) for node in graph.node]
    order: list[int] = []
    entered: set[int] = set()
    stack = list(range(len(graph.node) - 1, -1, -1))
    while stack:
        index = stack.pop()
        if index < 0:  # all makers of this node are in place
            order.append(~index)
        elif index not in entered:
            entered.add(index)
            stack.append(~index)
            stack.extend(maker for maker in reversed(makers_of[index]) if maker not in entered)
    nodes = [graph.node[index] for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def used_names(node: NodeProto) -> Iterator[str]:
    """Yield the values that a node reads, those read by the graphs inside it included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for inner in [attribute.g, *attribute.graphs] if attribute.type in _GRAPH_KINDS else []:
            made = {name for each in inner.node for name in each.output} | {value.name for value in inner.input}
            yield from (name for each in inner.node for name in used_names(each) if name not in made)
            yield from (value.name for value in inner.output if value.name not in made)


_GRAPH_KINDS = (AttributeProto.GRAPH, AttributeProto.GRAPHS)
