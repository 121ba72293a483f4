from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from builder.worker import graph as graphs
from builder.worker import keep, low_precision
from builder.worker.protocol import StageFailure
from tests.unit.worker.graphs import model, run, two_layers

X = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)


def _lower(
    model_: ModelProto, precision: str = "fp16", nodes: tuple[str, ...] = (), ops: tuple[str, ...] = ()
) -> tuple[ModelProto, keep.Kept]:
    graphs.name_nodes(model_.graph)
    graphs.clean(model_)
    lowered, kept = low_precision.lower(model_, precision, {"nodes": list(nodes), "ops": list(ops)})
    onnx.checker.check_model(lowered, full_check=True)
    return lowered, kept


def _types(lowered: ModelProto) -> dict[str, int]:
    return graphs.value_types(lowered)


def _casts(lowered: ModelProto) -> list[tuple[str, str]]:
    return [(node.input[0], node.output[0]) for node in lowered.graph.node if node.op_type == "Cast"]


def _weights(lowered: ModelProto) -> dict[str, Any]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in lowered.graph.initializer}


@pytest.mark.parametrize(("precision", "kind"), [("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)])
def test_inside_is_lowered_and_inputs_and_outputs_are_not(precision: str, kind: int) -> None:
    lowered, kept = _lower(two_layers(), precision)
    types = _types(lowered)
    assert (types["x"], types["y"]) == (TensorProto.FLOAT, TensorProto.FLOAT)
    assert {types[name] for name in ("a", "b", "w1", "s", "w2")} == {kind}
    assert len(_casts(lowered)) == 2
    assert kept == keep.Kept({}, [])


def test_bf16_values_come_from_the_fp32_originals() -> None:
    third = 1e30 / 3  # FP16 would make it inf
    lowered, _ = _lower(two_layers(third), "bf16")
    expected = np.float32(third).astype(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    assert _weights(lowered)["s"] == expected


def test_kept_nodes_compute_in_fp32_between_casts() -> None:
    lowered, kept = _lower(two_layers(), nodes=("middle",))
    types = _types(lowered)
    middle = next(node for node in lowered.graph.node if node.name == "middle")
    assert {types[name] for name in [*middle.input, *middle.output]} == {TensorProto.FLOAT}
    assert kept.reasons == {"middle": "named by the recipe"}


def test_no_rounding_between_two_kept_nodes() -> None:
    """1e5 does not fit FP16: it must pass from one kept node to the next untouched."""
    nodes = [
        helper.make_node("Mul", ["x", "big"], ["a"], "up"),
        helper.make_node("Mul", ["a", "small"], ["b"], "down"),
        helper.make_node("Relu", ["b"], ["y"], "relu"),
    ]
    weights = {"big": np.float32(6e4), "small": np.float32(1e-3)}
    lowered, _ = _lower(model(nodes, weights), nodes=("up", "down"))
    by_name = {node.name: node for node in lowered.graph.node}
    assert by_name["down"].input[0] == by_name["up"].output[0]
    assert np.allclose(run(lowered, X), np.maximum(X * 60, 0), rtol=1e-3)


def test_a_fully_kept_model_has_no_casts_and_the_same_values() -> None:
    original = two_layers(3.0)
    expected = run(original, X)
    lowered, _ = _lower(two_layers(3.0), ops=("MatMul", "Mul"))
    assert _casts(lowered) == []
    assert np.array_equal(run(lowered, X), expected)


def test_two_kept_readers_share_one_cast() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "relu"),
        helper.make_node("Exp", ["a"], ["b"], "exp"),
        helper.make_node("Sqrt", ["a"], ["c"], "sqrt"),
        helper.make_node("Add", ["b", "c"], ["y"], "add"),
    ]
    lowered, _ = _lower(model(nodes), nodes=("exp", "sqrt"))
    outputs = [name for node in lowered.graph.node for name in node.output]
    assert len(outputs) == len(set(outputs))


def test_weights_shared_with_a_kept_node_stay_exact_for_it() -> None:
    third = np.full(4, 1 / 3, np.float32)
    nodes = [
        helper.make_node("Add", ["x", "w"], ["a"], "kept"),
        helper.make_node("Mul", ["a", "w"], ["y"], "lowered"),
    ]
    lowered, _ = _lower(model(nodes, {"w": third}), nodes=("kept",))
    weights = _weights(lowered)
    assert np.array_equal(weights["w_fp32"], third)
    assert weights["w"].dtype == np.float16


def test_weights_out_of_range_stay_exact_and_are_listed() -> None:
    lowered, kept = _lower(two_layers(1e6))
    assert kept.out_of_range == [{"tensor": "s", "max_abs": 1e6}]
    assert kept.reasons == {"middle": "s is out of the range of fp16"}
    assert _weights(lowered)["s"] == np.float32(1e6)


def test_out_of_range_follows_values_that_are_only_moved() -> None:
    nodes = [
        helper.make_node("Identity", ["s"], ["t"], "move"),
        helper.make_node("Mul", ["x", "t"], ["y"], "use"),
    ]
    _, kept = _lower(model(nodes, {"s": np.float32(1e6)}))
    assert sorted(kept.reasons) == ["move", "use"]


def test_infinite_weights_are_no_reason() -> None:
    _, kept = _lower(two_layers(-np.inf))
    assert kept == keep.Kept({}, [])


def test_constant_nodes_lower_like_weights() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], "c", value_float=1e6),
        helper.make_node("Mul", ["x", "c"], ["y"], "mul"),
    ]
    lowered, kept = _lower(model(nodes))
    assert [item["tensor"] for item in kept.out_of_range] == ["c"]
    assert np.allclose(run(lowered, X), X * 1e6)


def test_shape_arithmetic_stays_in_fp32() -> None:
    """2049 is no FP16 number: x scaled by its own length must see the true length."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], "shape"),
        helper.make_node("Gather", ["shape", "one"], ["length"], "length"),
        helper.make_node("Cast", ["length"], ["size"], "size", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["size", "whole"], ["rest"], "rest"),
        helper.make_node("Mul", ["x", "rest"], ["y"], "scale"),
    ]
    weights = {"one": np.int64(1), "whole": np.float32(2048)}
    lowered, kept = _lower(model(nodes, weights, x=("n", 2049), y=("n", 2049)))
    assert sorted(kept.reasons) == ["rest", "size"]
    ones = np.ones((1, 2049), np.float32)
    assert np.array_equal(run(lowered, ones), ones)


def test_float_casts_of_data_are_lowered() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "floor", to=TensorProto.INT32),
        helper.make_node("Cast", ["i"], ["f"], "back", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "s"], ["y"], "mul"),
    ]
    lowered, kept = _lower(model(nodes, {"s": np.float32(2)}))
    assert kept.reasons == {}
    assert _types(lowered)["f"] == TensorProto.FLOAT16
    assert np.array_equal(run(lowered, X), np.trunc(X) * 2)


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(StageFailure) as caught:
        _lower(two_layers(), nodes=("midle",), ops=("Matmul",))
    assert caught.value.reason == "input-invalid"
    assert "no node midle (did you mean middle?)" in caught.value.message
    assert "no operator Matmul (did you mean MatMul?)" in caught.value.why


def test_bf16_raises_an_old_opset() -> None:
    nodes = [helper.make_node("Clip", ["x", "low"], ["y"], "clip")]
    lowered, _ = _lower(model(nodes, {"low": np.float32(0)}, opset=11), "bf16")
    assert graphs.opset(lowered) == 13


def test_bf16_refuses_a_model_that_brings_fp16() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "down", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["h"], ["y"], "up", to=TensorProto.FLOAT),
    ]
    with pytest.raises(StageFailure) as caught:
        _lower(model(nodes), "bf16")
    assert caught.value.reason == "precision-unsupported"


def test_operators_without_a_kernel_stay() -> None:
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up")]
    weights = {"w": np.ones((2, 2, 2, 2), np.float32)}
    build = {"x": (1, 2, 4, 4), "y": (1, 2, 5, 5)}
    _, fp16 = _lower(model(nodes, weights, **build), "fp16")  # type: ignore[arg-type]
    _, bf16 = _lower(model(nodes, weights, **build), "bf16")  # type: ignore[arg-type]
    assert (sorted(fp16.reasons), sorted(bf16.reasons)) == ([], ["up"])


def test_nothing_can_be_kept_inside_control_flow() -> None:
    inner = helper.make_graph(
        [helper.make_node("Exp", ["x"], ["z"], "inner")],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["yes"], ["y"], "if", then_branch=inner, else_branch=inner)]
    with pytest.raises(StageFailure) as caught:
        _lower(model(nodes, {"yes": np.array(True)}), nodes=("inner",))
    assert caught.value.reason == "precision-unsupported"
    assert "inner" in caught.value.message


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_same_bytes_every_time(precision: str) -> None:
    first, _ = _lower(two_layers(1e6), precision)
    second, _ = _lower(two_layers(1e6), precision)
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
