from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builder.worker import graph as graphs
from builder.worker.protocol import StageFailure
from tests.unit.worker.graphs import model, two_layers


def _relu() -> onnx.NodeProto:
    return helper.make_node("Relu", ["x"], ["y"])


@pytest.mark.parametrize("unknown", ["?", "-1", "", "None", "unknown"])
def test_names_of_unknown_axes_are_dropped(unknown: str) -> None:
    cleaned = model([_relu()], x=(unknown, unknown), y=("n", unknown))
    graphs.clean(cleaned)
    assert graphs.describe(cleaned.graph.input[0]).dims == (None, None)
    assert graphs.describe(cleaned.graph.output[0]).dims == ("n", None)


@pytest.mark.parametrize("size", [-1, 0])
def test_impossible_sizes_become_dynamic(size: int) -> None:
    cleaned = model([_relu()], x=(size, 3))
    graphs.clean(cleaned)
    assert graphs.describe(cleaned.graph.input[0]).dims == (None, 3)


def test_exporters_names_with_dots_stay() -> None:
    cleaned = model([_relu()], x=("p2o.Dynamic.0", "s0 + 1"))
    graphs.clean(cleaned)
    assert graphs.describe(cleaned.graph.input[0]).dims == ("p2o.Dynamic.0", "s0 + 1")


def test_clean_drops_what_says_nothing_about_the_computation() -> None:
    cleaned = two_layers()
    cleaned.producer_name, cleaned.doc_string = "exporter", "made in /home/someone"
    cleaned.graph.node[0].doc_string = "trace"
    cleaned.metadata_props.add(key="k", value="v")
    cleaned.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n", 4]))
    graphs.clean(cleaned)
    assert cleaned.SerializeToString() == two_layers().SerializeToString()


def test_weights_listed_as_inputs_are_inputs_no_more() -> None:
    old = two_layers()
    old.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [4, 4]))
    graphs.clean(old)
    assert [value.name for value in old.graph.input] == ["x"]


def test_nodes_get_unique_names_and_keep_their_own() -> None:
    chain = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], "Relu_0"),
        helper.make_node("Relu", ["b"], ["c"], "twice"),
        helper.make_node("Relu", ["c"], ["y"], "twice"),
    ]
    named = model(chain)
    graphs.name_nodes(named.graph)
    names = [node.name for node in named.graph.node]
    assert names[1:3] == ["Relu_0", "twice"]
    assert len(set(names)) == 4
    assert all(names)


def test_nodes_are_sorted_stably() -> None:
    shuffled = two_layers()
    first, middle, last = [onnx.NodeProto.FromString(node.SerializeToString()) for node in shuffled.graph.node]
    del shuffled.graph.node[:]
    shuffled.graph.node.extend([last, first, middle])
    graphs.sort_nodes(shuffled.graph)
    assert [node.name for node in shuffled.graph.node] == ["first", "middle", "last"]


def test_sorting_follows_values_that_inner_graphs_read() -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["late"], ["z"])],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("If", ["yes"], ["y"], "if", then_branch=inner, else_branch=inner),
        helper.make_node("Relu", ["x"], ["late"], "relu"),
    ]
    shuffled = model(nodes, {"yes": np.array(True)})
    graphs.sort_nodes(shuffled.graph)
    assert [node.name for node in shuffled.graph.node] == ["relu", "if"]


def test_types_are_inferred_without_large_weights() -> None:
    big = np.zeros((64, 64), np.float32)
    typed = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": big}, x=("n", 64), y=("n", 64))
    assert graphs.value_types(typed) == {
        "x": TensorProto.FLOAT,
        "y": TensorProto.FLOAT,
        "w": TensorProto.FLOAT,
    }


def test_large_models_keep_their_weights_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "PROTOBUF_LIMIT_BYTES", 1000)
    heavy = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((64, 64), np.float32)}, x=("n", 64))
    files = graphs.save(heavy, str(tmp_path / "lowered.onnx"))
    assert Path(files["external"]).stat().st_size >= 64 * 64 * 4
    again = graphs.load(files["lowered"])
    assert np.array_equal(numpy_helper.to_array(again.graph.initializer[0]), np.ones((64, 64), np.float32))


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(StageFailure) as caught:
        graphs.load(str(path))
    assert caught.value.reason == "model-invalid"


def test_a_model_that_breaks_the_rules_of_onnx(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model([helper.make_node("Relu", ["nowhere"], ["y"])]).SerializeToString())
    with pytest.raises(StageFailure) as caught:
        graphs.load(str(path))
    assert caught.value.reason == "model-invalid"
    assert "nowhere" in caught.value.why + caught.value.details["error"]


def test_missing_weights_beside_a_model_are_named(tmp_path: Path) -> None:
    path = str(tmp_path / "m.onnx")
    onnx.save(two_layers(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (tmp_path / "weights.bin").unlink()
    with pytest.raises(StageFailure, match=r"weights in another file, weights\.bin, which is not there"):
        graphs.load(path)
