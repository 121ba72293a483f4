from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from builder.worker import lower
from builder.worker.protocol import Job, StageFailure
from tests.unit.worker.graphs import two_layers


def _job(precision: str, width: int = 4) -> Job:
    shapes = {"min": [1, width], "opt": [2, width], "max": [8, width]}
    params: dict[str, Any] = {
        "precision": precision,
        "profiles": [{"name": "default", "inputs": {"x": shapes}}],
        "keep_fp32": {"nodes": [], "ops": []},
    }
    return Job("lower", "toy", {"model": "in/model.onnx"}, params)


@pytest.fixture(autouse=True)
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in" / "model.onnx").write_bytes(two_layers(1e6).SerializeToString())
    return tmp_path


def test_fp32_keeps_the_types_and_counts_no_casts(stage: Path) -> None:
    outcome = lower.run(_job("fp32"))
    assert outcome.outputs == {"lowered": "out/lowered.onnx"}
    assert onnx.load(stage / "out" / "lowered.onnx").graph == two_layers(1e6).graph
    assert (outcome.data["casts_added"], outcome.data["kept_fp32"], outcome.data["out_of_range"]) == (0, [], [])
    assert outcome.data["inputs"] == [{"name": "x", "dtype": "float32", "shape": [-1, 4]}]


def test_fp16_reports_what_it_kept_and_why(stage: Path) -> None:
    data = lower.run(_job("fp16")).data
    assert data["kept_fp32"] == ["middle"]
    assert data["kept_reasons"] == {"middle": "s is out of the range of fp16"}
    assert data["out_of_range"] == [{"tensor": "s", "max_abs": 1e6}]
    assert data["casts_added"] == 4
    assert data["outputs"] == [{"name": "y", "dtype": "float32", "shape": [-1, 4]}]


def test_profiles_are_checked_first(stage: Path) -> None:
    with pytest.raises(StageFailure) as caught:
        lower.run(_job("fp16", width=5))
    assert caught.value.reason == "profile-invalid"
    assert not (stage / "out" / "lowered.onnx").exists()


def test_the_input_is_never_written(stage: Path) -> None:
    before = (stage / "in" / "model.onnx").read_bytes()
    lower.run(_job("bf16"))
    assert (stage / "in" / "model.onnx").read_bytes() == before


def test_an_unknown_precision_is_refused(stage: Path) -> None:
    with pytest.raises(StageFailure) as caught:
        lower.run(_job("fp8"))
    assert caught.value.reason == "precision-unsupported"


def test_int8_stays_fp32_for_tensorrt_to_quantise(stage: Path) -> None:
    data = lower.run(_job("int8")).data
    assert onnx.load(stage / "out" / "lowered.onnx").graph == two_layers(1e6).graph
    assert (data["casts_added"], data["kept_fp32"], data["out_of_range"]) == (0, [], [])


def test_int8_says_which_nodes_are_kept(stage: Path) -> None:
    job = _job("int8")
    job.params["keep_fp32"] = {"nodes": ["middle"], "ops": ["MatMul"]}
    assert lower.run(job).data["kept_reasons"] == {
        "first": "operator MatMul named by the recipe",
        "last": "operator MatMul named by the recipe",
        "middle": "named by the recipe",
    }
    job.params["keep_fp32"] = {"nodes": ["midle"], "ops": []}
    with pytest.raises(StageFailure, match="no node midle") as caught:
        lower.run(job)
    assert caught.value.reason == "input-invalid"


def test_int8_of_a_model_that_is_quantised_already_is_refused(stage: Path) -> None:
    model = two_layers()
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.1])
    zero = helper.make_tensor("zero", TensorProto.INT8, [], [0])
    model.graph.initializer.extend([scale, zero])
    quantize = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize")
    back = helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dequantized"], name="back")
    model.graph.node[0].input[0] = "dequantized"
    nodes = [quantize, back, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    (stage / "in" / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(StageFailure, match="quantised already: quantize") as caught:
        lower.run(_job("int8"))
    assert caught.value.reason == "precision-unsupported"
    assert "fp32" in caught.value.fix
    # there it stays as it is
    lower.run(_job("fp32"))
    kept = onnx.load(stage / "out" / "lowered.onnx").graph.node
    assert [node.op_type for node in kept][:2] == ["QuantizeLinear", "DequantizeLinear"]
