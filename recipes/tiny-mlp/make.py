"""Writes model.onnx: a normalised two-layer perceptron with seeded weights. Same bytes every time.

Run it with onnx and numpy installed: python make.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES, HIDDEN, CLASSES = 16, 32, 4


def model() -> onnx.ModelProto:
    """Build the graph: features [batch, 16] to scores [batch, 4]."""
    stream = np.random.RandomState(0)  # the newer generators' streams may change between releases
    weights = {
        "first.weight": stream.normal(0, 0.25, (FEATURES, HIDDEN)),
        "first.bias": stream.normal(0, 0.1, HIDDEN),
        "second.weight": stream.normal(0, 0.18, (HIDDEN, CLASSES)),
        "second.bias": stream.normal(0, 0.1, CLASSES),
    }
    nodes = [
        helper.make_node("Gemm", ["features", "first.weight", "first.bias"], ["first"], name="first"),
        helper.make_node("Relu", ["first"], ["hidden"], name="hidden"),
        helper.make_node("Gemm", ["hidden", "second.weight", "second.bias"], ["second"], name="second"),
        helper.make_node("Softmax", ["second"], ["scores"], name="scores", axis=-1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny-mlp",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", CLASSES])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    content = model().SerializeToString(deterministic=True)
    Path(__file__).with_name("model.onnx").write_bytes(content)
