"""Small ONNX models for the worker's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Dims = Sequence[int | str]


def model(
    nodes: Sequence[NodeProto],
    weights: dict[str, Any] | None = None,
    *,
    x: Dims = ("n", 4),
    y: Dims = ("n", 4),
    opset: int = 17,
) -> ModelProto:
    """Return a model with FP32 input x and output y; `weights` become initializers with their own types."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(y))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def two_layers(middle: float = 1.0) -> ModelProto:
    """MatMul, Mul by a scalar, MatMul, all with names."""
    eye = np.eye(4, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
        helper.make_node("Mul", ["a", "s"], ["b"], "middle"),
        helper.make_node("MatMul", ["b", "w2"], ["y"], "last"),
    ]
    return model(nodes, {"w1": eye, "s": np.float32(middle), "w2": eye})


def branching() -> ModelProto:
    """Return y = x w where the sum of x is positive, else relu(x)."""

    def branch(node: NodeProto) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, ["n", 4])
        return helper.make_graph([node], node.name, [], [output])

    then = branch(helper.make_node("MatMul", ["x", "w"], ["t"], "product"))
    otherwise = branch(helper.make_node("Relu", ["x"], ["e"], "relu"))
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], "greater"),
        helper.make_node("If", ["positive"], ["y"], "if", then_branch=then, else_branch=otherwise),
    ]
    return model(nodes, {"w": np.full((4, 4), 0.3, np.float32), "zero": np.float32(0)})


def run(model_: ModelProto, x: np.ndarray) -> np.ndarray:
    """Run a model with ONNX's own reference implementation."""
    onnx.checker.check_model(model_, full_check=True)
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(model_).run(None, {"x": x})[0])
