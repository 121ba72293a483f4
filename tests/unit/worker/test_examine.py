from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest

from builder.worker import examine, low_precision
from builder.worker.protocol import Job, StageFailure
from builder.worker.trt import Layer
from tests.unit.worker.graphs import two_layers


def _layer(name: str, kind: str, dtype: str, macs: int | None = None) -> Layer:
    return Layer(name=f"layer {name}", node=name, kind=kind, inputs=[dtype], outputs=[dtype], macs=macs)


CONV = _layer("conv", "CONVOLUTION", "HALF", 900)
SLOW = _layer("slow", "MATRIX_MULTIPLY", "FLOAT", 100)
CAST = _layer("cast", "CAST", "FLOAT")
RELU = _layer("relu", "ACTIVATION", "FLOAT")


def _run(
    monkeypatch: pytest.MonkeyPatch,
    layers: list[Layer],
    precision: str,
    inputs: dict[str, str] | None = None,
    inspector: str = "",
    **params: Any,
) -> dict[str, Any]:
    adapter = ModuleType("adapter")
    adapter.layers = lambda request, model: layers  # type: ignore[attr-defined]
    adapter.engine_layers = lambda request, engine: inspector  # type: ignore[attr-defined]
    monkeypatch.setattr(examine, "adapter", lambda family: adapter)
    monkeypatch.setattr(examine, "gpu_adapter", lambda family: adapter)
    options = {
        "workspace_mib": None,
        "optimization_level": None,
        "hardware_compatibility": "none",
        "version_compatible": False,
        "strip_weights": False,
    }
    common = {
        "precision": precision,
        "profiles": [],
        "family": "rtx",
        "import_name": "t",
        "sms": [],
        "options": options,
    }
    return examine.run(Job("examine", "j", inputs or {"lowered": "in/l"}, {**common, **params})).data


def test_fp16_throughout(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _run(monkeypatch, [CONV, CAST, RELU], "fp16")
    assert (data["realised"], data["share"], data["share_basis"]) == ("fp16", 1.0, "macs")
    assert (data["compute_layers"], data["layers"], data["by_type"]) == (1, 3, {"HALF": 1, "FLOAT": 2})


def test_an_fp32_graph_passed_off_as_fp16_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure) as caught:
        _run(monkeypatch, [SLOW, CAST], "fp16")
    assert caught.value.reason == "precision-silent-fp32"
    assert caught.value.details["silent_fp32"] == ["layer slow"]
    assert (caught.value.details["realised"], caught.value.details["share"]) == ("fp32", 0.0)


def test_one_silent_layer_is_enough_to_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure, match="1 layers of the fp16 engine compute in FP32"):
        _run(monkeypatch, [CONV, SLOW], "fp16")


@pytest.mark.parametrize(
    "params", [{"keep_fp32": {"nodes": ["slow"], "ops": []}}, {"kept_fp32": ["slow"]}], ids=["recipe", "lower stage"]
)
def test_layers_kept_on_purpose_pass(monkeypatch: pytest.MonkeyPatch, params: dict[str, Any]) -> None:
    data = _run(monkeypatch, [CONV, SLOW], "fp16", **params)
    assert (data["realised"], data["share"]) == ("mixed", 0.9)
    assert (data["kept_fp32"], data["silent_fp32"]) == (["layer slow"], [])


def test_layers_of_a_third_type_fail_a_low_share(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure, match=r"only 0\.0 % of the bf16 engine's work is in bf16"):
        _run(monkeypatch, [CONV], "bf16")


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_fp32_lists_what_the_model_brings_in_another_type(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    data = _run(monkeypatch, [CONV, SLOW], precision)
    assert data["realised"] == "mixed"
    assert data["other_types"] == [{"layer": "layer conv", "type": "HALF"}]
    assert _run(monkeypatch, [SLOW], precision)["realised"] == precision


def test_without_matrix_layers_every_float_layer_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure) as caught:
        _run(monkeypatch, [RELU, CAST], "fp16")
    assert caught.value.details["share_basis"] == "count"
    assert _run(monkeypatch, [_layer("r", "ACTIVATION", "HALF"), CAST], "fp16")["realised"] == "fp16"


def test_without_any_float_layer_there_is_nothing_to_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run(monkeypatch, [CAST], "fp16")["share"] == 1.0


def test_uncounted_layers_make_the_share_a_count(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _run(monkeypatch, [CONV, _layer("e", "EINSUM", "HALF", -1)], "fp16")
    assert (data["share"], data["share_basis"]) == (1.0, "count")


PRODUCTS = [_layer(name, "MATRIX_MULTIPLY", "FLOAT", 16) for name in ("first", "last")]


def _engine(types: dict[str, str], tensors: list[str]) -> str:
    def layer(name: str) -> dict[str, Any]:
        tensor = [{"Name": f"to {name}", "Format/Datatype": types[name]}]
        return {"Name": name, "LayerType": "gemm", "Metadata": f"[ONNX Layer: {name}]", "Inputs": tensor, "Outputs": []}

    return json.dumps({"Layers": [layer(name) for name in types], "Bindings": tensors})


def _examine_engine(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    types: dict[str, str],
    *,
    tensors: tuple[str, ...] = ("x", "y"),
    **params: Any,
) -> dict[str, Any]:
    asked = params.get("keep_fp32", {"nodes": [], "ops": []})
    lowered, _ = low_precision.lower(two_layers(), "fp16", asked)
    onnx.save(lowered, folder / "lowered.onnx")
    (folder / "engine").write_bytes(b"engine")
    inputs = {"lowered": str(folder / "lowered.onnx"), "engine": str(folder / "engine")}
    inspector = _engine(types, list(tensors))
    return _run(monkeypatch, PRODUCTS, "fp16", inputs, inspector, engine_layers=True, **params)


def test_the_engine_is_judged_where_there_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = _examine_engine(monkeypatch, tmp_path, {"first": "Half", "last": "Half"})
    assert (data["source"], data["realised"], data["share"]) == ("inspector", "fp16", 1.0)


def test_an_engine_in_fp32_fails_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match="2 layers of the fp16 engine compute in FP32") as caught:
        _examine_engine(monkeypatch, tmp_path, {"first": "Float", "last": "Float"})
    assert caught.value.reason == "precision-silent-fp32"
    assert "layer first, layer last" in caught.value.why


@pytest.mark.parametrize(
    "params",
    [
        {"keep_fp32": {"nodes": ["last"], "ops": []}},
        {"kept_fp32": ["last"], "kept_reasons": {"last": "w2 is out of the range of fp16"}},
    ],
    ids=["recipe", "lower stage"],
)
def test_a_kept_node_that_tensorrt_did_not_keep_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, params: dict[str, Any]
) -> None:
    with pytest.raises(StageFailure, match="1 nodes that were to stay in FP32 compute in fp16: last") as caught:
        _examine_engine(monkeypatch, tmp_path, {"first": "Half", "last": "Half"}, **params)
    assert caught.value.reason == "precision-lost-fp32"
    kept = _examine_engine(monkeypatch, tmp_path, {"first": "Half", "last": "Float"}, **params)
    assert kept["kept_fp32"] == ["layer last"]


def test_operators_kept_by_the_recipe_count_by_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StageFailure) as caught:
        _examine_engine(
            monkeypatch, tmp_path, {"first": "Half", "last": "Float"}, keep_fp32={"nodes": [], "ops": ["MatMul"]}
        )
    assert caught.value.details["lost_fp32"] == ["first"]


def test_what_only_the_converter_kept_may_be_lowered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reasons = {"last": "operator MatMul is not lowered"}
    data = _examine_engine(
        monkeypatch, tmp_path, {"first": "Half", "last": "Half"}, kept_fp32=["last"], kept_reasons=reasons
    )
    assert data["relaxed_fp32"] == ["last"]


def test_an_engine_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match="not of this model") as caught:
        _examine_engine(monkeypatch, tmp_path, {"first": "Half"}, tensors=("image", "y"))
    assert (caught.value.reason, caught.value.why) == ("engine-invalid", "engine: image, y; model: x, y")


def _examine_int8(monkeypatch: pytest.MonkeyPatch, folder: Path, types: dict[str, str]) -> dict[str, Any]:
    onnx.save(two_layers(), folder / "lowered.onnx")
    (folder / "engine").write_bytes(b"engine")
    inputs = {"lowered": str(folder / "lowered.onnx"), "engine": str(folder / "engine")}
    return _run(monkeypatch, PRODUCTS, "int8", inputs, _engine(types, ["x", "y"]), engine_layers=True)


def test_an_int8_engine_says_what_is_int8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = _examine_int8(monkeypatch, tmp_path, {"first": "Int8", "last": "Half"})
    assert (data["realised"], data["share"], data["chosen_fp16"]) == ("mixed", 0.5, ["layer last"])


def test_an_int8_engine_without_int8_fails_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match="no layer of the int8 engine computes in INT8") as caught:
        _examine_int8(monkeypatch, tmp_path, {"first": "Float", "last": "Half"})
    assert caught.value.reason == "precision-silent-fp32"
    assert "in FP16: layer last; in FP32: layer first" in caught.value.why


def test_int8_without_an_engine_is_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure, match="only an int8 engine itself") as caught:
        _run(monkeypatch, PRODUCTS, "int8")
    assert caught.value.reason == "gpu-needed"


def test_an_engine_without_weights_is_looked_at_with_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def refit(job: Job, request: Any) -> str:
        asked.append(job.inputs["lowered"])
        return "out/refitted.plan"

    monkeypatch.setattr(examine, "loadable", refit)
    assert _examine_engine(monkeypatch, tmp_path, {"first": "Half", "last": "Half"})["realised"] == "fp16"
    assert asked == [str(tmp_path / "lowered.onnx")]
