"""FP16 and BF16 made explicit in the graph: a kept library places the casts, this module keeps the values exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from . import graph as graphs
from . import keep
from .protocol import StageFailure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import GraphProto, NodeProto

# ONNX knows BF16 in its arithmetic since this operator set.
BF16_OPSET = 13


def lower(model: ModelProto, precision: str, asked: dict[str, list[str]]) -> tuple[ModelProto, keep.Kept]:
    """Lower a cleaned FP32 model with named nodes; inputs and outputs keep their types.

    Weights that the format cannot hold stay in FP32 together with the nodes that read them.

    Raises:
        StageFailure: input-invalid for unknown names in `asked`; precision-unsupported where the graph forbids it.

    """
    model = _prepare(model, precision)
    types = graphs.value_types(model)
    kept = keep.choose(model, types, precision, asked, list(DEFAULT_OP_BLOCK_LIST))
    _give_own_weights(model.graph, set(kept.reasons))
    originals = _float_tensors(model.graph) if precision == "bf16" else {}
    before = {node.name for node in graphs.all_nodes(model.graph)}
    _add_types(model.graph, types)
    lowered = convert_float_to_float16(
        model,
        keep_io_types=True,
        disable_shape_infer=True,
        op_block_list=[*DEFAULT_OP_BLOCK_LIST, *asked["ops"]],
        node_block_list=sorted(kept.reasons),
    )
    inserted = [node for node in lowered.graph.node if node.name not in before]
    _tidy(lowered.graph, {node.name for node in inserted})
    if precision == "bf16":
        _retype(lowered.graph, originals)
    for each in graphs.graphs(lowered.graph):
        del each.value_info[:]
    graphs.sort_nodes(lowered.graph)
    return lowered, kept


def _prepare(model: ModelProto, precision: str) -> ModelProto:
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
        graphs.name_nodes(model.graph)
    if precision == "bf16":
        _refuse_fp16_values(model.graph)
        model = _raise_opset(model)
    for each in graphs.graphs(model.graph):
        _constants_to_weights(each)
    return model


def _raise_opset(model: ModelProto) -> ModelProto:
    version = graphs.opset(model)
    if version >= BF16_OPSET:
        return model
    try:
        raised = onnx.version_converter.convert_version(model, BF16_OPSET)
    except Exception as error:  # the converter raises plain RuntimeError and others
        raise StageFailure(
            "precision-unsupported",
            f"bf16 needs opset {BF16_OPSET}, and the model of opset {version} cannot be converted",
            why=str(error).strip(),
            fix=f"export the model with opset {BF16_OPSET} or later",
        ) from error
    graphs.name_nodes(raised.graph)
    graphs.clean(raised)
    return raised


def _refuse_fp16_values(graph: GraphProto) -> None:
    tensors = (tensor for each in graphs.graphs(graph) for tensor in each.initializer)
    found = [tensor.name for tensor in tensors if tensor.data_type == TensorProto.FLOAT16]
    found += [value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT16]
    found += [node.name for node in graphs.all_nodes(graph) if _cast_to(node) == TensorProto.FLOAT16]
    if found:
        message = f"the model already computes in FP16 ({found[0]}), so it cannot be lowered to bf16"
        raise StageFailure("precision-unsupported", message, fix="ask for fp16, or export the model in FP32")


def _cast_to(node: NodeProto) -> int:
    """Return the type that a Cast node makes, 0 (undefined) for any other node."""
    if node.op_type != "Cast":
        return 0
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "to"), 0)


def _constants_to_weights(graph: GraphProto) -> None:
    """Turn float Constant nodes into weights, which the converter lowers only where a lowered node reads them."""
    remaining = []
    for node in graph.node:
        array = graphs.constant_array(node) if node.op_type == "Constant" else None
        if array is None:
            remaining.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), node.output[0]))
    del graph.node[:]
    graph.node.extend(remaining)


def _give_own_weights(graph: GraphProto, kept: set[str]) -> None:
    """Copy weights that kept and lowered nodes share: the converter would round them for both."""
    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    lowered_reads = {name for node in graph.node if node.name not in kept for name in graphs.used_names(node)}
    copies: set[str] = set()
    for node in graph.node:
        for index, name in enumerate(node.input):
            if node.name in kept and name in weights and name in lowered_reads:
                copy = f"{name}_fp32"
                node.input[index] = copy
                if copy not in copies:
                    copies.add(copy)
                    graph.initializer.add().CopyFrom(weights[name])
                    graph.initializer[-1].name = copy


def _float_tensors(graph: GraphProto) -> dict[str, TensorProto]:
    """Copy every float tensor before it is rounded to FP16: weights by name, attributes by node name."""
    found = {tensor.name: _copy(tensor) for each in graphs.graphs(graph) for tensor in each.initializer}
    for node, attribute in _tensor_attributes(graph):
        found[f"{node.name}:{attribute.name}"] = _copy(attribute.t)
    return {name: tensor for name, tensor in found.items() if tensor.data_type == TensorProto.FLOAT}


def _copy(tensor: TensorProto) -> TensorProto:
    copy = TensorProto()
    copy.CopyFrom(tensor)
    return copy


def _tensor_attributes(graph: GraphProto) -> Iterator[tuple[NodeProto, AttributeProto]]:
    for node in graphs.all_nodes(graph):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield node, attribute


def _add_types(graph: GraphProto, types: dict[str, int]) -> None:
    """Tell the converter the type of every value: it puts casts only where it knows one."""
    known = {value.name for value in [*graph.input, *graph.output]} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        for name in node.output:
            if name and name not in known and name in types:
                graph.value_info.append(helper.make_tensor_value_info(name, types[name], None))


def _tidy(graph: GraphProto, inserted: set[str]) -> None:
    """Mend what the converter leaves: a cast per reader under one name, and FP32 rounded between two kept nodes."""
    _drop_twins(graph)
    makers = {name: node for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    needless = []
    for node in graph.node:
        maker = makers.get(node.input[0]) if node.name in inserted and _cast_to(node) == TensorProto.FLOAT else None
        if maker is None or maker.name not in inserted or _cast_to(maker) != TensorProto.FLOAT16:
            continue
        source, target = maker.input[0], node.output[0]
        if target not in outputs:
            renamed[target] = source
        elif source in makers and source not in outputs:
            renamed[source] = target
        else:
            continue
        needless.append(node)
    _drop(graph, needless)
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = _follow(renamed, name)
    _drop_unread(graph, inserted)


def _follow(renamed: dict[str, str], name: str) -> str:
    while name in renamed:
        name = renamed[name]
    return name


def _drop_twins(graph: GraphProto) -> None:
    seen: set[str] = set()
    twins = []
    for node in graph.node:
        if node.op_type == "Cast" and node.output[0] in seen:
            twins.append(node)
        seen.update(node.output)
    _drop(graph, twins)


def _drop_unread(graph: GraphProto, inserted: set[str]) -> None:
    while True:
        read = {name for node in graph.node for name in graphs.used_names(node)}
        read.update(value.name for value in graph.output)
        unread = [node for node in graph.node if node.name in inserted and node.output[0] not in read]
        if not unread:
            return
        _drop(graph, unread)


def _drop(graph: GraphProto, nodes: list[NodeProto]) -> None:
    gone = {id(node) for node in nodes}
    remaining = [node for node in graph.node if id(node) not in gone]
    del graph.node[:]
    graph.node.extend(remaining)


def _retype(graph: GraphProto, originals: dict[str, TensorProto]) -> None:
    """Turn FP16 into BF16, values made anew from the FP32 originals."""
    for tensor in (tensor for each in graphs.graphs(graph) for tensor in each.initializer):
        _make_bf16(tensor, originals.get(tensor.name))
    for node, attribute in _tensor_attributes(graph):
        _make_bf16(attribute.t, originals.get(f"{node.name}:{attribute.name}"))
    for node in graphs.all_nodes(graph):
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.BFLOAT16
    for each in graphs.graphs(graph):
        for value in [*each.input, *each.output]:
            if each is not graph and value.type.tensor_type.elem_type == TensorProto.FLOAT16:
                value.type.tensor_type.elem_type = TensorProto.BFLOAT16


def _make_bf16(tensor: TensorProto, original: TensorProto | None) -> None:
    if tensor.data_type != TensorProto.FLOAT16:
        return
    # Without an original the converter made it itself: the zero of a ConstantOfShape that names no value.
    array = numpy_helper.to_array(tensor if original is None else original).astype(np.float32)
    dtype = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)
    tensor.CopyFrom(numpy_helper.from_array(array.astype(dtype), tensor.name))
