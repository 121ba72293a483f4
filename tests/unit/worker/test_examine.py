from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from builder.worker import examine
from builder.worker.protocol import Job, StageFailure
from builder.worker.trt import Layer


def _layer(name: str, kind: str, dtype: str, macs: int | None = None) -> Layer:
    return Layer(name=f"layer {name}", node=name, kind=kind, inputs=[dtype], outputs=[dtype], macs=macs)


CONV = _layer("conv", "CONVOLUTION", "HALF", 900)
SLOW = _layer("slow", "MATRIX_MULTIPLY", "FLOAT", 100)
CAST = _layer("cast", "CAST", "FLOAT")
RELU = _layer("relu", "ACTIVATION", "FLOAT")


def _run(monkeypatch: pytest.MonkeyPatch, layers: list[Layer], precision: str, **params: Any) -> dict[str, Any]:
    adapter = ModuleType("adapter")
    adapter.layers = lambda request, model: layers  # type: ignore[attr-defined]
    monkeypatch.setattr(examine, "adapter", lambda family: adapter)
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
    return examine.run(Job("examine", "j", {"lowered": "in/l"}, {**common, **params})).data


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
