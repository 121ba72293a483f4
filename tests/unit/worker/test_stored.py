from __future__ import annotations

from typing import Any

import pytest

from builder.worker.asked import Asked, Weight
from builder.worker.stored import own_type, uses_tf32, weigh
from builder.worker.trt.inspect import EngineLayer


def layer(inputs: list[str], outputs: list[str], **changes: Any) -> EngineLayer:
    empty = EngineLayer("l", "k", inputs, outputs, inputs, outputs, [], None, "", "UNKNOWN")
    return empty._replace(**changes)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (layer(["HALF", "HALF"], ["FLOAT"]), ("HALF", "io")),
        (layer(["INT32", "HALF"], ["HALF"]), ("HALF", "io")),
        (layer(["INT64"], ["FLOAT"]), ("FLOAT", "io")),
        (layer([], ["BF16"]), ("BF16", "io")),
        (layer(["HALF", "FLOAT"], ["HALF"], weights="HALF"), ("HALF", "weights")),
        (layer(["HALF", "FLOAT"], ["HALF"], tactic="x_gemm_f32f32_f32f32_f32_nn"), ("FLOAT", "tactic")),
        (layer(["HALF", "FLOAT"], ["HALF"]), ("HALF", "io")),
        (layer(["UNKNOWN"], ["UNKNOWN"], weights="FLOAT"), ("FLOAT", "weights")),
        (layer(["UNKNOWN"], ["HALF"]), ("HALF", "io")),
        (layer(["INT32"], ["BOOL"]), ("OPAQUE", "none")),
        (layer(["UNKNOWN"], ["UNKNOWN"], tactic="0x0000000000000005"), ("OPAQUE", "none")),
    ],
)
def test_the_type_of_a_visible_layer(given: EngineLayer, expected: tuple[str, str]) -> None:
    assert own_type(given) == expected


# Names that 8.6.0 has given on an H200, but for those of INT8, BF16 and FP8.
@pytest.mark.parametrize(
    ("tactic", "expected"),
    [
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize64x64x64_cgasize1x4x1", "HALF"),
        ("sm50_xmma_fprop_conv3d_c1_k1_f16f16_f16_f16_ndhwcktrsc_ndhwc_tilesize64x16", "HALF"),
        ("sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nchwkcrs_nchw_tilesize32x32x8_stage3", "FLOAT"),
        ("sm70_xmma_convolution_depthwiseConv_fp32fp32_trt_kernel_fp32_TR_TS", "FLOAT"),
        ("sm50_xmma_pooling_fw_4d_FP32FP32NCHW_Average_FastDiv", "FLOAT"),
        ("sm80_xmma_gemm_tf32f32_tf32f32_f32_tn_n_tilesize64x64x32", "FLOAT"),
        ("sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize64x64x64", "INT8"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_nn_n_tilesize128x128x64", "BF16"),
        ("sm90_xmma_gemm_e4m3e4m3_e4m3f32_f32_tn_n", "FP8"),
        ("sm90_something_new", "OPAQUE"),
    ],
)
def test_the_type_in_a_kernel_s_name(tactic: str, expected: str) -> None:
    assert own_type(layer(["UNKNOWN"], ["UNKNOWN"], tactic=tactic)).type == expected
    assert uses_tf32(tactic) is ("tf32" in tactic)


GRAPH = Asked(
    types={"hidden": "HALF", "seen": "HALF", "table": "HALF"},
    ops={},
    weights={"h": Weight(10_000_000, "HALF"), "s": Weight(1_000_000, "HALF"), "t": Weight(5_000_000, "HALF")},
    reads={"hidden": frozenset("h"), "seen": frozenset("s"), "table": frozenset("t")},
    tensors=[],
)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (32_000_000, "low"),  # all in FP16
        (41_999_999, "low"),  # 4 of `seen`, 10 of the table as lowered: less than 30 are left for 40
        (44_100_000, "unclear"),
        (54_000_000, "unclear"),  # FP32, unless the table is
        (64_000_000, "fp32"),  # all in FP32
    ],
)
def test_what_a_size_leaves_for_the_hidden_weights(size: int, expected: str) -> None:
    stored = weigh(GRAPH, {"seen": "FLOAT"}, ["hidden"], size, padded=False)
    assert stored.weights == expected
    assert stored.hidden_fp32_bytes == 40_000_000


def test_nothing_hidden_is_nothing_to_weigh() -> None:
    assert weigh(GRAPH, {}, [], 1, padded=False).weights == "not asked"
