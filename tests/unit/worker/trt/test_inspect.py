"""What the engine inspector of each major says, read from recorded and documented answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.worker.protocol import StageFailure
from builder.worker.trt import inspect
from builder.worker.trt.inspect import EngineLayer, read, type_of

DATA = Path(__file__).parents[3] / "data" / "inspector"


def layers(name: str) -> dict[str, EngineLayer]:
    return {layer.name: layer for layer in read((DATA / name).read_text(encoding="utf-8")).layers}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Float", "FLOAT"),
        ("Half", "HALF"),
        ("BFloat16", "BF16"),
        ("Row major linear FP32", "FLOAT"),
        ("Row major linear FP32 format (kLINEAR)", "FLOAT"),
        ("Row major linear BF16 format", "BF16"),
        ("Channel major FP16 format where C % 8 == 0", "HALF"),
        ("Channel major FP16 format where C % 8 == 0 and H Stride % 32 == 0", "HALF"),
        ("Two wide channel vectorized row major FP16 format", "HALF"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "INT8"),
        ("Row major INT8 format", "INT8"),
        ("Row major linear INT32", "INT32"),
        ("Int64", "INT64"),
        ("Bool", "BOOL"),
        ("FP8", "FP8"),
        ("FP8E4M3", "FP8"),
        ("N/A due to dynamic shapes", "UNKNOWN"),
        ("", "UNKNOWN"),
    ],
)
def test_every_wording_of_a_type(text: str, expected: str) -> None:
    assert type_of(text) == expected


def test_8_6_without_shapes_says_no_types_but_of_weights() -> None:
    found = layers("8.6-vocos-fp16.json")
    conv = found["/backbone/embed/Conv"]
    assert (conv.kind, conv.inputs, conv.outputs, conv.weights) == ("CaskConvolution", ["UNKNOWN"], ["UNKNOWN"], "HALF")
    assert conv.nodes == ["/backbone/embed/Conv"]
    assert conv.tactic.startswith("sm90_xmma_fprop_implicit_gemm_f16f16")
    assert conv.region is None
    assert found["PWN(/head/Sin)"].weights == "UNKNOWN"


def test_8_6_names_the_ends_of_regions_and_what_they_exchange() -> None:
    found = layers("8.6-vocos-fp16.json")
    assert [layer.region for layer in found.values() if layer.region] == [
        ("backbone.norm.weight", "(Unnamed Layer* 75) [Shuffle]"),
        ("Identity_76", "(Unnamed Layer* 115) [Shuffle]"),
        ("Identity_35", "/head/Slice_1"),
        ("/head/Slice", "graph_output_cast1"),
    ]
    last = found["{ForeignNode[/head/Slice...graph_output_cast1]}"]
    assert (last.reads[0], last.makes) == ("/head/Transpose_output_0", ["real", "imag"])


def test_8_6_joins_nodes_with_control_characters() -> None:
    text = (DATA / "8.6-cls.json").read_text(encoding="utf-8")
    assert "\x1e" in text
    assert layers("8.6-cls.json")["Conv@1 + BatchNormalization@1 + Relu@0"].nodes == [
        "Conv@1",
        "BatchNormalization@1",
        "Relu@0",
    ]
    assert read(text).tensors == ["x", "save_infer_model/scale_0.tmp_1"]


def test_8_6_with_shapes_words_types_as_formats() -> None:
    conv = layers("8.6-vocos-fp16-shapes.json")["/backbone/embed/Conv"]
    assert (conv.inputs, conv.outputs) == (["HALF"], ["HALF"])
    assert layers("8.6-vocos-fp32-shapes.json")["/backbone/embed/Conv"].inputs == ["FLOAT"]


def test_10_shows_the_kernels_of_a_region() -> None:
    found = layers("10-block-mixed.json")
    attention = found["_gemm_mha_v2_myl0_2"]
    assert (attention.kind, attention.inputs) == ("kgen", ["HALF", "HALF"])
    assert attention.nodes == ["/attn/MatMul", "/attn/Softmax", "/attn/MatMul_1"]
    # a copy for a region is no region
    assert [layer.region for layer in found.values()] == [None] * len(found)


def test_11_has_other_keys() -> None:
    inspection = read((DATA / "11-block-fp16.json").read_text(encoding="utf-8"))
    assert inspection.tensors == ["tokens", "features"]
    gemm = next(layer for layer in inspection.layers if layer.name == "/mlp/fc2/MatMul_myl0_5")
    assert (gemm.inputs, gemm.outputs) == (["HALF", "HALF"], ["FLOAT"])
    assert gemm.nodes == ["/mlp/fc2/MatMul", "/mlp/Add"]


def test_11_s_format_serves_where_there_is_no_type() -> None:
    tensor = {"Name": "x", "Format": "Row major linear FP16 format (kLINEAR)"}
    text = json.dumps({"Layers": [{"Name": "a", "LayerType": "kgen", "Inputs": [tensor], "Outputs": []}]})
    assert read(text).layers[0].inputs == ["HALF"]


def test_names_of_nodes_may_hold_brackets() -> None:
    metadata = "[ONNX Layer: /blocks[0]/MatMul][ONNX Layer: /blocks[1]/Add]"
    text = json.dumps({"Layers": [{"Name": "a", "LayerType": "gemm", "Metadata": metadata}], "Bindings": []})
    assert read(text).layers[0].nodes == ["/blocks[0]/MatMul", "/blocks[1]/Add"]


def test_further_shape_profiles_are_left_out() -> None:
    names = ["conv", "conv [profile 1]", "relu [profile 0]"]
    document = {"Layers": [{"Name": name} for name in names], "Bindings": ["x", "y", "x [profile 1]", "y [profile 1]"]}
    inspection = read(json.dumps(document))
    assert [layer.name for layer in inspection.layers] == ["conv", "relu [profile 0]"]
    assert inspection.tensors == ["x", "y"]


@pytest.mark.parametrize(
    "text",
    [
        (DATA / "10-names-only.json").read_text(encoding="utf-8"),
        '{"Layers": [], "Bindings": ["x"]}',
    ],
    ids=["names", "none"],
)
def test_an_engine_without_details_is_refused(text: str) -> None:
    with pytest.raises(StageFailure, match="the engine has no layer details") as caught:
        inspect.read(text)
    assert caught.value.reason == "precision-unproven"
    assert "DETAILED" in caught.value.fix


@pytest.mark.parametrize("text", ["", "{", "[]", '{"Layers": 3}', '{"Layers": [{"LayerType": "x"}]}'])
def test_what_is_no_inspector_s_answer_is_refused(text: str) -> None:
    with pytest.raises(StageFailure, match="cannot be read") as caught:
        inspect.read(text)
    assert caught.value.reason == "precision-unproven"
