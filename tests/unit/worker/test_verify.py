"""The verify stage on small graphs: what passes, what fails, and whom it blames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from builder.worker.protocol import Job, StageFailure
from builder.worker.verify import run

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
PROFILES = [{"name": "p", "inputs": {"x": {"min": [1, 4], "opt": [2, 4], "max": [3, 4]}}}]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    yield
    os.chdir(before)


def chain(scales: list[float], kind: int = FLOAT) -> onnx.ModelProto:
    """Multiply by one constant after another; lowered graphs have casts at both ends."""
    nodes, weights, value = [], [], "x"
    if kind != FLOAT:
        nodes.append(helper.make_node("Cast", ["x"], ["x_low"], to=kind, name="x_cast"))
        value = "x_low"
    for index, scale in enumerate(scales):
        array = np.array(scale, np.float16 if kind == HALF else np.float32)
        weights.append(numpy_helper.from_array(array, f"c{index}"))
        target = "y" if kind == FLOAT and index == len(scales) - 1 else f"v{index}"
        nodes.append(helper.make_node("Mul", [value, f"c{index}"], [target], name=f"scale{index}"))
        value = target
    if kind != FLOAT:
        nodes.append(helper.make_node("Cast", [value], ["y"], to=FLOAT, name="y_cast"))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 4])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def job(model: onnx.ModelProto, lowered: onnx.ModelProto, **changes: Any) -> Job:
    onnx.save(model, "in/model.onnx")
    onnx.save(lowered, "in/lowered.onnx")
    params = {
        "precision": "fp16",
        "profiles": PROFILES,
        "engine_profiles": PROFILES,
        "inputs": {"x": {"dtype": "float32", "kind": "uniform", "seed": 0, "low": 1.0, "high": 2.0}},
        "tolerance": {"default": {"max_abs": 0.01}, "outputs": {}},
    }
    inputs = {"model": "in/model.onnx", "lowered": "in/lowered.onnx"}
    inputs |= changes.pop("files", {})
    return Job("verify", "j", inputs, params | changes)


@pytest.mark.parametrize("dtype", ["int64", "float16"])
def test_another_type_than_the_graph_has_is_a_mistake_of_the_recipe(dtype: str) -> None:
    """Not of the shape profile, as ONNX Runtime's own refusal was told; and a cast would hide it."""
    inputs = {"x": {"dtype": dtype, "kind": "uniform", "seed": 0, "low": 1.0, "high": 2.0}}
    with pytest.raises(StageFailure) as caught:
        run(job(chain([2.0]), chain([2.0], HALF), inputs=inputs))
    assert caught.value.reason == "input-invalid"
    assert caught.value.message == f"input x is float32 in the graph, the recipe says {dtype}"
    assert caught.value.fix == "dtype: float32 under inputs.x"


def test_a_faithful_graph_passes_at_every_shape() -> None:
    data = run(job(chain([2.0]), chain([2.0], HALF))).data
    assert [(case["point"], case["shapes"]["x"]) for case in data["cases"]] == [
        ("min", [1, 4]),
        ("opt", [2, 4]),
        ("max", [3, 4]),
    ]
    assert all(0 < case["outputs"]["y"]["max_abs"] < 0.01 for case in data["cases"])
    assert data["engine_verified"] is False
    assert data["engine_reason"] == "no GPU"
    assert data["reference"] == "onnxruntime-fp32"
    assert data["worst"]["metric"] == "max_abs"
    assert data["worst"]["headroom"] > 1
    assert [(item["point"], item["graph"], item["excluded_by_profile"]) for item in data["outside"]] == [
        ("above0", "agrees", True)
    ]


def test_an_overflow_names_the_node_and_what_to_keep() -> None:
    scales = [1e3, 1e3, 1e-3, 1e-3]
    with pytest.raises(StageFailure) as caught:
        run(job(chain(scales), chain(scales, HALF)))
    failure = caught.value
    assert failure.reason == "numerics-nonfinite"
    assert failure.details["node"] == "scale1"
    assert failure.details["keep_fp32"] == ["scale1", "scale2"]
    assert "keep_fp32: {nodes: [scale1, scale2]}" in failure.fix
    assert "65504" in failure.why or "6.55e+04" in failure.why


def test_a_tolerance_breach_names_output_case_and_layer() -> None:
    with pytest.raises(StageFailure) as caught:
        run(job(chain([1.0, 3.1]), chain([1.0, 3.1], HALF), tolerance={"default": {"max_abs": 1e-6}, "outputs": {}}))
    failure = caught.value
    assert failure.reason == "numerics-tolerance"
    assert "output y at p/min" in failure.message
    assert "max_abs is" in failure.message
    assert failure.details["layers"][0]["node"].startswith("scale")


def test_a_tf32_engine_keeps_no_single_node_in_fp32() -> None:
    weight = numpy_helper.from_array(np.full((4, 4), 1 / 3, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(StageFailure) as caught:
        run(job(model, model, precision="tf32", tolerance={"default": {"max_abs": 1e-7}, "outputs": {}}))
    assert caught.value.reason == "numerics-tolerance"
    assert "product" in caught.value.why
    assert caught.value.fix == "build the model in fp32, or widen the tolerance knowingly"


def test_a_tolerance_per_output_wins_over_the_default() -> None:
    tolerance = {"default": {"max_abs": 0.0}, "outputs": {"y": {"max_abs": 0.01}}}
    assert run(job(chain([2.0]), chain([2.0], HALF), tolerance=tolerance)).data["cases"]


def test_a_graph_that_is_simply_wrong_fails_in_fp32_too() -> None:
    with pytest.raises(StageFailure) as caught:
        run(job(chain([2.0]), chain([2.5]), precision="fp32"))
    assert caught.value.reason == "numerics-tolerance"
    assert "no low precision is involved" in caught.value.why


def test_the_framework_s_own_outputs_are_the_reference() -> None:
    recorded: dict[str, Any] = {}
    for point, size in (("min", 1), ("opt", 2), ("max", 3)):
        recorded[f"p/{point}|in|x"] = np.full((size, 4), 1.5, np.float32)
        recorded[f"p/{point}|out|y"] = np.full((size, 4), 3.0, np.float32)
    np.savez("in/reference.npz", **recorded)
    data = run(job(chain([9.0]), chain([2.0], HALF), files={"reference": "in/reference.npz"})).data
    assert data["reference"] == "framework"
    assert data["outside"][0]["graph"] == "refuses"


def test_a_reference_that_is_not_finite_is_the_recipe_s_mistake() -> None:
    with pytest.raises(StageFailure) as caught:
        run(job(chain([1e38, 1e38]), chain([1.0], HALF)))
    assert caught.value.reason == "input-invalid"


def test_a_shape_that_the_graph_cannot_take_is_named() -> None:
    profiles = [{"name": "p", "inputs": {"x": {"min": [1, 4], "opt": [2, 4], "max": [3, 5]}}}]
    with pytest.raises(StageFailure) as caught:
        run(job(chain([2.0]), chain([2.0], HALF), profiles=profiles, engine_profiles=profiles))
    assert caught.value.reason == "profile-invalid"
    assert "x 3x5" in caught.value.message


def test_an_engine_that_takes_more_than_its_profile_fails() -> None:
    wide = [{"name": "p", "inputs": {"x": {"min": [1, 4], "opt": [2, 4], "max": [30, 4]}}}]
    with pytest.raises(StageFailure) as caught:
        run(job(chain([2.0]), chain([2.0], HALF), engine_profiles=wide))
    assert caught.value.reason == "profile-invalid"
    assert "4x4" in caught.value.message


def test_a_file_that_is_no_model_is_named() -> None:
    ready = job(chain([2.0]), chain([2.0]))
    Path("in/model.onnx").write_bytes(b"no model")
    with pytest.raises(StageFailure) as caught:
        run(ready)
    assert caught.value.reason == "model-invalid"


def test_a_tolerance_for_an_output_that_is_not_there_names_the_outputs() -> None:
    tolerance = {"default": {"max_abs": 0.01}, "outputs": {"yy": {"max_abs": 1.0}}}
    with pytest.raises(StageFailure, match="output yy, which the model does not have") as caught:
        run(job(chain([2.0]), chain([2.0], HALF), tolerance=tolerance))
    assert caught.value.reason == "input-invalid"
    assert caught.value.fix == "the model's outputs: y (did you mean y?)"


def test_a_source_whose_nodes_share_a_name_is_a_reference_all_the_same() -> None:
    source = chain([2.0, 3.0])
    for node in source.graph.node:
        node.name = "same"
    assert len(run(job(source, chain([2.0, 3.0], HALF))).data["cases"]) == 3


def test_int8_without_a_gpu_says_that_nothing_was_compared() -> None:
    outcome = run(job(chain([2.0]), chain([2.0]), precision="int8"))
    assert (outcome.data["engine_verified"], outcome.data["method"], outcome.data["cases"]) == (False, None, [])
    assert "int8 cannot be emulated on the CPU" in outcome.data["engine_reason"]
