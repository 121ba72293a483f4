"""In what precision engines really compute, told from what the inspector said of real and of documented ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builder.worker.asked import Asked, Weight
from builder.worker.realised import Verdict, Wish, judge, place
from builder.worker.trt import Layer
from builder.worker.trt.inspect import Inspection, read

DATA = Path(__file__).parents[2] / "data" / "inspector"
# Sizes of the engines that the recorded files are of.
FP16_BYTES, FP32_BYTES = 29_521_892, 56_356_268


def inspection(name: str) -> Inspection:
    return read((DATA / name).read_text(encoding="utf-8"))


def layer(name: str, kind: str = "MATRIX_MULTIPLY", macs: int | None = 100) -> Layer:
    """Return a layer of the network as 8.6 parses it: every float is FLOAT there."""
    return Layer(
        name=name, node="" if name.startswith("(") else name, kind=kind, inputs=["FLOAT"], outputs=["FLOAT"], macs=macs
    )


def other(name: str, kind: str = "ELEMENTWISE") -> Layer:
    return layer(name, kind, None)


def asked(weights: dict[str, int], types: dict[str, str] | None = None, kind: str = "HALF") -> Asked:
    """Return a graph whose nodes each read one weight of so many values; `types` where a node is not like the rest."""
    chosen = {**dict.fromkeys(weights, kind), **(types or {})}
    return Asked(
        types=chosen,
        ops=dict.fromkeys(chosen, "MatMul"),
        weights={f"w {node}": Weight(count, chosen[node]) for node, count in weights.items() if count},
        reads={node: frozenset({f"w {node}"}) for node, count in weights.items() if count},
        tensors=[],
    )


def wish(size: int | None = FP16_BYTES, precision: str = "fp16", **changes: Any) -> Wish:
    return Wish(precision, frozenset(changes.pop("allowed", ())), frozenset(changes.pop("must", ())), size, **changes)


# Vocos as the parser makes it: weights first, and each block of two products inside a region of its own.
CONVS = ["/backbone/embed/Conv", "/backbone/convnext.0/dwconv/Conv", "/backbone/convnext.7/dwconv/Conv"]
PRODUCTS = {"/backbone/pwconv1/MatMul": 6_000_000, "/backbone/pwconv2/MatMul": 6_600_000, "/head/out/MatMul": 525_312}
VOCOS = [
    other("backbone.embed.bias", "CONSTANT"),
    other("backbone.norm.weight", "CONSTANT"),
    other("Identity_76", "IDENTITY"),
    other("Identity_35", "IDENTITY"),
    other("graph_input_cast0", "CAST"),
    layer(CONVS[0], "CONVOLUTION", 358_400),
    other("(Unnamed Layer* 75) [Shuffle]", "SHUFFLE"),
    layer(CONVS[1], "CONVOLUTION", 3_584),
    layer("/backbone/pwconv1/MatMul", macs=6_000_000),
    layer("/backbone/pwconv2/MatMul", macs=6_600_000),
    other("(Unnamed Layer* 115) [Shuffle]", "SHUFFLE"),
    layer(CONVS[2], "CONVOLUTION", 3_584),
    layer("/head/out/MatMul", macs=525_312),
    other("/head/Slice", "SLICE"),
    other("/head/Slice_1", "SLICE"),
    other("/head/Sin", "UNARY"),
    other("graph_output_cast1", "CAST"),
]
GRAPH = asked({CONVS[0]: 358_400, CONVS[1]: 3_584, CONVS[2]: 3_584, **PRODUCTS})


def vocos(name: str, size: int | None) -> Verdict:
    return judge(VOCOS, inspection(name), GRAPH, wish(size))


def test_an_fp16_engine_is_proven_by_its_weights_alone() -> None:
    verdict = vocos("8.6-vocos-fp16.json", FP16_BYTES)
    data = verdict.data
    assert verdict.reason == ""
    assert (data["source"], data["requested"], data["realised"]) == ("inspector", "fp16", "fp16")
    assert (data["share"], data["share_basis"], data["opaque_share"]) == (1.0, "macs", 0.0)
    assert (data["compute_layers"], data["compute_in_requested"]) == (6, 6)
    assert data["evidence"]["basis"] == {"weights": 3, "engine-size": 3}
    assert data["evidence"]["weights"] == "low"
    assert 0.5 < data["evidence"]["ratio"] < 0.6
    assert data["by_kind"] == {
        "CONVOLUTION": {"requested": {"HALF": 3}, "realised": {"HALF": 3}},
        "MATRIX_MULTIPLY": {"requested": {"HALF": 3}, "realised": {"HALF": 3}},
    }
    assert (data["silent_fp32"], data["chosen_fp32"], data["opaque"], data["lost_fp32"]) == ([], [], [], [])


def test_an_fp32_engine_passed_off_as_fp16_fails() -> None:
    verdict = vocos("8.6-vocos-fp32.json", FP32_BYTES)
    assert verdict.reason == "precision-silent-fp32"
    assert (verdict.data["realised"], verdict.data["share"]) == ("fp32", 0.0)
    assert set(verdict.data["silent_fp32"]) == {*CONVS, *PRODUCTS}
    assert verdict.data["evidence"]["weights"] == "fp32"
    assert verdict.data["by_kind"]["MATRIX_MULTIPLY"] == {"requested": {"HALF": 3}, "realised": {"FLOAT": 3}}


def test_with_shapes_the_types_are_there() -> None:
    data = vocos("8.6-vocos-fp16-shapes.json", FP16_BYTES).data
    assert (data["realised"], data["evidence"]["basis"]) == ("fp16", {"io": 3, "region-io": 3})
    verdict = vocos("8.6-vocos-fp32-shapes.json", FP32_BYTES)
    assert verdict.reason == "precision-silent-fp32"
    assert verdict.data["evidence"]["basis"] == {"io": 3, "engine-size": 3}


def test_weights_in_fp32_disprove_regions_that_exchange_fp16() -> None:
    verdict = vocos("8.6-vocos-fp16-shapes.json", FP32_BYTES)
    assert verdict.reason == "precision-silent-fp32"
    assert verdict.data["silent_fp32"] == list(PRODUCTS)
    assert verdict.data["realised"] == "mixed"


def test_each_layer_is_in_the_region_that_ends_soonest_after_it() -> None:
    placed = {item.layer.name: item.engine for item in place(VOCOS, inspection("8.6-vocos-fp16.json"), GRAPH)}

    def region(name: str) -> tuple[str, str] | None:
        engine = placed[name]
        assert engine is not None
        return engine.region

    assert region("/backbone/pwconv1/MatMul") == ("Identity_76", "(Unnamed Layer* 115) [Shuffle]")
    assert region("/head/out/MatMul") == ("Identity_35", "/head/Slice_1")
    sine = placed["/head/Sin"]
    assert sine is not None
    assert sine.name == "PWN(/head/Sin)"


def engine(*entries: dict[str, Any], tensors: tuple[str, ...] = ("x", "y")) -> Inspection:
    return read(json.dumps({"Layers": list(entries), "Bindings": list(tensors)}))


def entry(name: str, kind: str, inputs: dict[str, str], outputs: dict[str, str], **more: Any) -> dict[str, Any]:
    def tensors(types: dict[str, str]) -> list[dict[str, str]]:
        return [{"Name": tensor, "Format/Datatype": text} for tensor, text in types.items()]

    return {"Name": name, "LayerType": kind, "Inputs": tensors(inputs), "Outputs": tensors(outputs), **more}


ONE_REGION = engine(entry("{ForeignNode[a...c]}", "Myelin", {"x": "Float"}, {"y": "Float"}))
BLOCK = [layer("a"), other("b"), layer("c")]


def test_a_region_between_fp32_inputs_and_outputs_is_judged_by_its_weights() -> None:
    graph = asked({"a": 10_000_000, "c": 10_000_000})
    verdict = judge(BLOCK, ONE_REGION, graph, wish(42_000_000))
    assert (verdict.reason, verdict.data["realised"]) == ("", "fp16")
    assert verdict.data["evidence"]["basis"] == {"engine-size": 2}
    verdict = judge(BLOCK, ONE_REGION, graph, wish(82_000_000))
    assert (verdict.reason, verdict.data["realised"]) == ("precision-silent-fp32", "fp32")


@pytest.mark.parametrize(
    ("values", "size", "says"),
    [(10_000, 30_000, "unclear"), (10_000_000, None, "absent"), (2_000_000, 16_000_000, "unclear")],
    ids=["too few weights", "stripped", "kernels could be that large"],
)
def test_what_cannot_be_told_is_neither_proven_nor_failed(values: int, size: int | None, says: str) -> None:
    verdict = judge(BLOCK, ONE_REGION, asked({"a": values, "c": values}), wish(size))
    assert (verdict.reason, verdict.data["realised"]) == ("", "unproven")
    assert (verdict.data["share"], verdict.data["opaque_share"]) == (0.0, 1.0)
    assert verdict.data["opaque"] == [{"layer": name, "in": "{ForeignNode[a...c]}"} for name in ("a", "c")]
    assert verdict.data["evidence"]["weights"] == says


def test_a_file_with_other_large_things_in_it_is_no_proof_of_fp32() -> None:
    graph = asked({"a": 10_000_000, "c": 10_000_000})
    assert judge(BLOCK, ONE_REGION, graph, wish(82_000_000, padded=True)).data["realised"] == "unproven"


def test_weights_of_visible_layers_do_not_speak_for_hidden_ones() -> None:
    conv = entry("conv", "CaskConvolution", {"t": "Half"}, {"u": "Half"}, Metadata="[ONNX Layer: conv]")
    region = entry("{ForeignNode[a...c]}", "Myelin", {"x": "Float"}, {"y": "Float"})
    layers = [layer("conv", "CONVOLUTION", 900), *BLOCK]
    # most weights are the convolution's: the file is small, and yet has room for the others in FP32
    graph = asked({"conv": 50_000_000, "a": 5_000_000, "c": 5_000_000})
    verdict = judge(layers, engine(conv, region), graph, wish(141_000_000))
    assert verdict.data["evidence"]["weights"] == "fp32"
    assert verdict.data["chosen_fp32"] == ["a", "c"]
    verdict = judge(layers, engine(conv, region), graph, wish(122_000_000))
    assert verdict.data["evidence"]["weights"] == "low"


def test_a_region_of_fp16_does_not_speak_for_another() -> None:
    half = entry("{ForeignNode[a...b]}", "Myelin", {"t": "Half"}, {"u": "Half"})
    single = entry("{ForeignNode[c...d]}", "Myelin", {"u": "Float"}, {"v": "Float"})
    layers = [layer("a"), other("b"), layer("c"), other("d")]
    graph = asked({"a": 20_000_000, "c": 2_000_000})
    data = judge(layers, engine(half, single), graph, wish(49_000_000)).data
    assert (data["realised"], data["chosen_fp32"]) == ("mixed", ["c"])
    assert data["evidence"]["basis"] == {"region-io": 2}
    data = judge(layers, engine(half, single), graph, wish(45_000_000)).data
    assert (data["realised"], data["evidence"]["basis"]) == ("fp16", {"region-io": 1, "engine-size": 1})


BLOCK_10 = [
    other("/norm1/LayerNormalization", "NORMALIZATION"),
    layer("/attn/qkv/MatMul", macs=450),
    layer("/attn/MatMul", macs=50),
    other("/attn/Softmax", "SOFTMAX"),
    layer("/attn/MatMul_1", macs=50),
    layer("/mlp/fc1/MatMul", macs=600),
    layer("/mlp/fc2/MatMul", macs=600),
]
GRAPH_10 = asked(
    {"/attn/qkv/MatMul": 1_769_472, "/mlp/fc1/MatMul": 2_359_296, "/mlp/fc2/MatMul": 2_359_296},
    {"/norm1/LayerNormalization": "HALF", "/attn/MatMul": "HALF", "/attn/Softmax": "HALF", "/attn/MatMul_1": "HALF"},
)


def test_10_a_layer_that_tensorrt_left_in_fp32_is_listed() -> None:
    verdict = judge(BLOCK_10, inspection("10-block-mixed.json"), GRAPH_10, wish())
    assert verdict.reason == ""
    assert verdict.data["realised"] == "mixed"
    assert verdict.data["share"] == pytest.approx(1150 / 1750, abs=1e-6)
    assert (verdict.data["chosen_fp32"], verdict.data["silent_fp32"]) == (["/mlp/fc1/MatMul"], [])
    assert verdict.data["evidence"]["basis"] == {"io": 5}


def test_10_the_same_layer_kept_on_purpose() -> None:
    kept = wish(allowed=["/mlp/fc1/MatMul"], must=["/mlp/fc1/MatMul"])
    data = judge(BLOCK_10, inspection("10-block-mixed.json"), GRAPH_10, kept).data
    assert (data["kept_fp32"], data["chosen_fp32"], data["lost_fp32"]) == (["/mlp/fc1/MatMul"], [], [])


def test_fp32_in_the_lowered_graph_that_nobody_asked_for_fails() -> None:
    graph = GRAPH_10._replace(types={**GRAPH_10.types, "/mlp/fc1/MatMul": "FLOAT"})
    verdict = judge(BLOCK_10, inspection("10-block-mixed.json"), graph, wish())
    assert (verdict.reason, verdict.data["silent_fp32"]) == ("precision-silent-fp32", ["/mlp/fc1/MatMul"])


def test_less_than_half_of_the_work_fails() -> None:
    layers = [one._replace(macs=9000) if one.name == "/mlp/fc1/MatMul" else one for one in BLOCK_10]
    verdict = judge(layers, inspection("10-block-mixed.json"), GRAPH_10, wish())
    assert (verdict.reason, verdict.data["silent_fp32"]) == ("precision-silent-fp32", ["/mlp/fc1/MatMul"])
    # what was kept on purpose does not count
    kept = wish(allowed=["/mlp/fc1/MatMul"])
    assert judge(layers, inspection("10-block-mixed.json"), GRAPH_10, kept).reason == ""


def test_an_engine_with_everything_kept_is_not_what_it_is_called() -> None:
    single = engine(entry("a", "gemm", {"x": "Float"}, {"y": "Float"}))
    verdict = judge([layer("a")], single, asked({"a": 10}), wish(allowed=["a"], must=["a"]))
    assert (verdict.reason, verdict.data["kept_fp32"]) == ("precision-silent-fp32", ["a"])


@pytest.mark.parametrize("node", ["/attn/Softmax", "/attn/qkv/MatMul"])
def test_a_kept_node_in_low_precision_is_lost(node: str) -> None:
    kept = wish(allowed=[node], must=[node])
    verdict = judge(BLOCK_10, inspection("11-block-fp16.json"), GRAPH_10, kept)
    assert (verdict.reason, verdict.data["lost_fp32"]) == ("precision-lost-fp32", [node])


def test_a_node_that_only_the_converter_kept_may_run_in_low_precision() -> None:
    verdict = judge(BLOCK_10, inspection("11-block-fp16.json"), GRAPH_10, wish(allowed=["/attn/Softmax"]))
    assert (verdict.reason, verdict.data["relaxed_fp32"]) == ("", ["/attn/Softmax"])


def test_a_kept_node_inside_a_region_shows_nothing() -> None:
    half = engine(entry("{ForeignNode[a...c]}", "Myelin", {"t": "Half"}, {"u": "Half"}))
    verdict = judge(BLOCK, half, asked({"a": 10, "c": 10}), wish(allowed=["c"], must=["c"]))
    assert (verdict.reason, verdict.data["lost_fp32"]) == ("", [])
    assert [item["layer"] for item in verdict.data["opaque"]] == ["c"]


def test_11_all_in_fp16() -> None:
    data = judge(BLOCK_10, inspection("11-block-fp16.json"), GRAPH_10, wish()).data
    assert (data["realised"], data["share"], data["evidence"]["basis"]) == ("fp16", 1.0, {"io": 5})


def test_an_fp32_engine_is_fp32_even_where_nothing_shows_but_its_inputs_and_outputs() -> None:
    verdict = judge(BLOCK, ONE_REGION, asked({"a": 10, "c": 10}, kind="FLOAT"), wish(100, "fp32"))
    assert (verdict.reason, verdict.data["realised"], verdict.data["share"]) == ("", "fp32", 1.0)
    assert verdict.data["evidence"]["weights"] == "not asked"


def test_kernels_that_round_to_tf32_are_listed() -> None:
    tactic = "sm80_xmma_gemm_tf32f32_tf32f32_f32_tn_n_tilesize64x64x32"
    rounding = engine(entry("a", "MatrixMultiply", {"x": "Float"}, {"y": "Float"}, TacticName=tactic))
    assert judge([layer("a")], rounding, asked({"a": 10}, kind="FLOAT"), wish(None, "tf32")).data["tf32_layers"] == [
        "a"
    ]


def test_types_that_nobody_asked_for_are_listed() -> None:
    quantised = engine(
        entry("a", "gemm", {"x": "Int8"}, {"y": "Int8"}), entry("c", "gemm", {"y": "Half"}, {"z": "Half"})
    )
    verdict = judge(BLOCK, quantised, asked({"a": 10, "c": 10}), wish())
    assert verdict.data["other_types"] == [{"layer": "a", "type": "INT8"}]
    assert (verdict.reason, verdict.data["realised"]) == ("", "mixed")


def test_fused_names_are_taken_apart_at_their_joints() -> None:
    tactic = "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc"
    fused = engine(
        entry("Conv@1 + Relu@0", "CaskConvolution", {"x": "N/A due to dynamic shapes"}, {"t": ""}, TacticName=tactic),
        entry("PWN(PWN(Add@3), Mul@1)", "PointWiseV2", {"t": "Float"}, {"u": "Float"}),
        entry("Conv@12 || Conv@13", "CaskConvolution", {"u": "Half"}, {"v": "Half", "w": "Half"}),
    )
    names = ["Conv@1", "Relu@0", "Add@3", "Mul@1", "Conv@12", "Conv@13", "Conv@2"]
    found = {item.layer.name: item for item in place([layer(name) for name in names], fused, asked({}))}
    assert [found[name].engine.name if found[name].engine else None for name in names] == [  # type: ignore[union-attr]
        "Conv@1 + Relu@0",
        "Conv@1 + Relu@0",
        "PWN(PWN(Add@3), Mul@1)",
        "PWN(PWN(Add@3), Mul@1)",
        "Conv@12 || Conv@13",
        "Conv@12 || Conv@13",
        None,
    ]
    assert (found["Conv@1"].type, found["Conv@1"].basis) == ("HALF", "tactic")
    assert (found["Conv@2"].type, found["Conv@2"].basis) == ("OPAQUE", "none")


def test_a_region_may_begin_with_a_fused_name_or_be_one_layer() -> None:
    first = entry("{ForeignNode[a + (Unnamed Layer* 1) [Shuffle]...c]}", "Myelin", {"t": "Half"}, {"u": "Half"})
    second = entry("{ForeignNode[d]}", "Myelin", {"u": "Half"}, {"v": "Half"})
    layers = [layer("a"), other("(Unnamed Layer* 1) [Shuffle]", "SHUFFLE"), layer("c"), layer("d"), layer("e")]
    placed = place(layers, engine(first, second), asked({}))
    assert [item.engine.name if item.engine else None for item in placed] == [first["Name"]] * 3 + [
        second["Name"],
        None,
    ]


CONVS_INT8 = [layer(name, "CONVOLUTION", macs) for name, macs in (("c1", 100), ("c2", 300), ("c3", 100), ("c4", 500))]
GRAPH_INT8 = asked({"c1": 1_000, "c2": 3_000, "c3": 1_000, "c4": 5_000}, kind="FLOAT")


def conv(name: str, kind: str) -> dict[str, Any]:
    described = f"Row major {kind} format"
    return entry(name, "CaskConvolution", {f"to {name}": described}, {f"of {name}": described})


def in_int8(kinds: str, **changes: Any) -> Verdict:
    """Judge an INT8 engine of four convolutions, each Int8, Half or Float."""
    made = engine(*(conv(f"c{number}", kind) for number, kind in enumerate(kinds.split(), 1)))
    return judge(CONVS_INT8, made, GRAPH_INT8, wish(9_000, "int8", **changes))


def test_int8_lists_what_tensorrt_took_instead() -> None:
    verdict = in_int8("INT8 INT8 Half Float")
    data = verdict.data
    assert (verdict.reason, data["realised"], data["share"], data["share_basis"]) == ("", "mixed", 0.4, "macs")
    assert (data["chosen_fp16"], data["chosen_fp32"]) == (["c3"], ["c4"])
    assert (data["silent_fp32"], data["other_types"], data["kept_fp32"]) == ([], [], [])
    assert data["by_kind"]["CONVOLUTION"] == {
        "requested": {"INT8": 4},
        "realised": {"INT8": 2, "HALF": 1, "FLOAT": 1},
    }


def test_all_int8() -> None:
    verdict = in_int8("INT8 INT8 INT8 INT8")
    assert (verdict.reason, verdict.data["realised"], verdict.data["share"]) == ("", "int8", 1.0)


@pytest.mark.parametrize("kinds", ["Half Half Half Half", "Float Float Float Float", "Half Float Half Float"])
def test_an_int8_engine_without_int8_fails(kinds: str) -> None:
    verdict = in_int8(kinds)
    assert verdict.reason == "precision-silent-fp32"
    assert len(verdict.data["chosen_fp16"]) + len(verdict.data["chosen_fp32"]) == 4


def test_a_node_kept_from_int8() -> None:
    verdict = in_int8("INT8 INT8 Half Float", allowed=["c4"], must=["c4"])
    assert (verdict.reason, verdict.data["kept_fp32"], verdict.data["chosen_fp32"]) == ("", ["c4"], [])
    for low in ("INT8", "Half"):
        verdict = in_int8(f"INT8 INT8 Half {low}", allowed=["c4"], must=["c4"])
        assert (verdict.reason, verdict.data["lost_fp32"]) == ("precision-lost-fp32", ["c4"])


def test_a_small_file_proves_no_int8() -> None:
    graph = asked({"a": 10_000_000, "c": 10_000_000}, kind="FLOAT")
    verdict = judge(BLOCK, ONE_REGION, graph, wish(21_000_000, "int8"))
    assert (verdict.reason, verdict.data["realised"]) == ("", "unproven")
    assert [one["layer"] for one in verdict.data["opaque"]] == ["a", "c"]
    # what is as large as in FP32 is not INT8
    assert judge(BLOCK, ONE_REGION, graph, wish(82_000_000, "int8")).reason == "precision-silent-fp32"


def test_fp16_engines_have_chosen_nothing_in_fp16() -> None:
    assert vocos("8.6-vocos-fp16.json", FP16_BYTES).data["chosen_fp16"] == []
