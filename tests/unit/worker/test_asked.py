from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from builder.worker import asked, low_precision
from builder.worker.asked import Weight
from tests.unit.worker.graphs import branching, two_layers


def test_types_of_a_lowered_graph() -> None:
    model, _ = low_precision.lower(two_layers(1e6), "fp16", {"nodes": ["last"], "ops": []})
    found = asked.of(model)
    assert {name: found.types[name] for name in ("first", "middle", "last")} == {
        "first": "HALF",
        "middle": "FLOAT",
        "last": "FLOAT",
    }
    assert (found.ops["first"], found.tensors) == ("MatMul", ["x", "y"])
    assert found.weights["w1"] == Weight(16, "HALF")
    assert found.weights["w2"] == Weight(16, "FLOAT")
    assert found.weights_of(["first", "last", "no such node"]) == {"w1", "w2"}


def test_weights_are_followed_through_what_only_changes_their_form() -> None:
    weight = numpy_helper.from_array(np.zeros((3, 4), np.float16), "w")
    constant = helper.make_node(
        "Constant", [], ["k"], "constant", value=numpy_helper.from_array(np.zeros(4, np.float32), "")
    )
    nodes = [
        constant,
        helper.make_node("Transpose", ["w"], ["t"], "transpose"),
        helper.make_node("Cast", ["t"], ["wide"], "cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["a"], "product"),
        helper.make_node("Add", ["a", "k"], ["y"], "add"),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:], [weight]))
    found = asked.of(model)
    assert (found.reads["product"], found.reads["add"]) == (frozenset("w"), frozenset("k"))
    assert found.weights == {"w": Weight(12, "HALF"), "k": Weight(4, "FLOAT")}


def test_nodes_inside_branches_are_known_by_name() -> None:
    found = asked.of(branching())
    assert (found.ops["product"], found.reads["product"]) == ("MatMul", frozenset("w"))


def test_weights_outside_the_file_need_not_be_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(two_layers(), str(path), save_as_external_data=True, location="gone", size_threshold=0)
    (tmp_path / "gone").unlink()
    assert asked.read(str(path)).weights["w1"] == Weight(16, "FLOAT")
