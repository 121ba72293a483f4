"""The adapters of classic TensorRT against the recorded surface of each release: flags, options, caches, failures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builder.worker.cuda import Device
from builder.worker.protocol import Profile, ShapeRange, StageFailure
from builder.worker.trt import Options, Request, Timing, classic, gpu_adapter
from tests.surfaces import FakeLayer, FakeTensor, FakeTensorRT, fake_tensorrt

FAMILY = {"8": "trt8", "10": "trt10", "11": "trt11"}
VERSIONS = ["8.6.0", "8.6.1", "10.3.0", "10.9.0.34", "10.13.3.9", "10.16.1.11", "11.3.0.99"]
PLAIN = Options(None, None, "none", version_compatible=False, strip_weights=False)
PROFILE = Profile("p", {"x": ShapeRange((1, 3), (2, 3), (4, 3))})
GIB = 1 << 30
LAYERS = [
    FakeLayer(
        "a",
        "MATRIX_MULTIPLY",
        "[ONNX Layer: a]",
        inputs=[FakeTensor("c", shape=(2, 3)), FakeTensor("w", shape=(3, 3))],
        outputs=[FakeTensor("h", shape=(2, 3))],
        more={"op0": None},
    ),
    FakeLayer("b", "ELEMENTWISE", "[ONNX Layer: b]", outputs=[FakeTensor("y")]),
]


class FakeCuda:
    """A GPU of SM 9.0 with 80 GiB, of which as much is free as a test says."""

    device = Device("NVIDIA H100", "9.0", "GPU-1", "13.0")
    free_bytes = 79 * GIB
    # by address: how much was allocated, and what was copied there
    memory_of: ClassVar[dict[int, int]] = {}
    uploads: ClassVar[list[tuple[int, np.ndarray]]] = []

    def allocate(self, size: int) -> int:
        address = 4096 * (len(self.memory_of) + 1)
        self.memory_of[address] = size
        return address

    def upload(self, address: int, array: np.ndarray) -> None:
        assert array.nbytes <= self.memory_of[address]
        self.uploads.append((address, array.copy()))

    def free(self, address: int) -> None:
        del self.memory_of[address]

    def memory(self) -> tuple[int, int]:
        return self.free_bytes, 80 * GIB


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(classic, "Cuda", FakeCuda)
    monkeypatch.setattr(FakeCuda, "free_bytes", 79 * GIB)
    monkeypatch.setattr(FakeCuda, "memory_of", {})
    monkeypatch.setattr(FakeCuda, "uploads", [])
    (tmp_path / "out").mkdir()
    half = helper.make_node("Cast", ["x"], ["c"], name="in", to=TensorProto.FLOAT16)
    nodes = [
        half,
        helper.make_node("MatMul", ["c", "w"], ["h"], name="a"),
        helper.make_node("Exp", ["f"], ["y"], name="b"),
    ]
    nodes.insert(2, helper.make_node("Cast", ["h"], ["f"], name="out", to=TensorProto.FLOAT))
    weight = helper.make_tensor("w", TensorProto.FLOAT16, [3, 3], [1.0] * 9)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    return tmp_path


def tensorrt(version: str, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    trt = fake_tensorrt(version)
    trt.scene.inputs = [FakeTensor("x", shape=(-1, 3))]
    trt.scene.layers = LAYERS
    monkeypatch.setitem(sys.modules, "fake_trt", trt)
    return trt


def request(version: str, precision: str = "fp32", options: Options = PLAIN, **changes: Any) -> Request:
    family = FAMILY[version.partition(".")[0]]
    return Request(family, "fake_trt", precision, [PROFILE], ["9.0"], options)._replace(**changes)


def build(version: str, precision: str = "fp32", options: Options = PLAIN, **changes: Any) -> dict[str, Any]:
    asked = request(version, precision, options, **changes)
    return gpu_adapter(asked.family).build(asked, "m.onnx", "out/model.plan")


def flags_set(trt: FakeTensorRT) -> set[str]:
    """Name what was set for this build, beside what every build sets for its timing cache."""
    return every_flag_set(trt) - set(classic.RECORDING)


def every_flag_set(trt: FakeTensorRT) -> set[str]:
    return {flag.name for (flag,) in trt.called("IBuilderConfig.set_flag")}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_every_release_builds_in_its_own_words(
    version: str, precision: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt(version, monkeypatch)
    facts = build(version, precision)
    weak = {"fp16": {"FP16", "PREFER_PRECISION_CONSTRAINTS"}} if version.startswith("8") else {}
    expected = {"tf32": {"TF32"}, **weak}.get(precision, set())
    assert flags_set(trt) == expected
    network = {"EXPLICIT_BATCH" if version.startswith("8") else "STRONGLY_TYPED"}
    assert set(facts["flags"]) == every_flag_set(trt) | network
    assert (here / "out/model.plan").read_bytes().startswith(b"ftrt")
    assert facts["device"] == {"name": "NVIDIA H100", "sm": "9.0", "driver_cuda": "13.0"}
    assert facts["profiles"][0]["inputs"]["x"]["max"] == [4, 3]
    assert [(layer["node"], layer["macs"]) for layer in facts["network_layers"]] == [("a", 18), ("b", None)]
    assert trt.called("IBuilderConfig.clear_flag") == [(trt.BuilderFlag.TF32,)]
    assert trt.called("IBuilderConfig.profiling_verbosity=") == [(trt.ProfilingVerbosity.DETAILED,)]


@pytest.mark.parametrize("version", [version for version in VERSIONS if not version.startswith("8")])
def test_bf16_needs_no_flag_in_a_typed_network(version: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt(version, monkeypatch)
    build(version, "bf16")
    assert flags_set(trt) == set()


def test_8_6_wishes_a_precision_for_each_layer_that_computes(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt("8.6.1", monkeypatch)
    facts = build("8.6.1", "fp16", kept_fp32=("b",))
    assert trt.called("ILayer.precision=") == [(trt.DataType.HALF,), (trt.DataType.FLOAT,)]
    assert facts["precision_constraints"] == 2


def test_8_6_leaves_the_layers_of_an_fp32_engine_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt("8.6.1", monkeypatch)
    assert build("8.6.1", "tf32", kept_fp32=("b",))["precision_constraints"] == 0
    assert trt.called("ILayer.precision=") == []


@pytest.mark.parametrize("version", VERSIONS)
def test_options_that_every_release_has(version: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt(version, monkeypatch)
    options = Options(1000, 5, "ampere_plus", version_compatible=True, strip_weights=False, refit=True)
    facts = build(version, options=options)
    assert flags_set(trt) == {"VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME", "REFIT"}
    assert trt.called("IBuilderConfig.builder_optimization_level=") == [(5,)]
    level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert trt.called("IBuilderConfig.hardware_compatibility_level=") == [(level,)]
    assert facts["workspace_bytes"] == 1000 << 20


@pytest.mark.parametrize(
    ("version", "options", "named"),
    [
        ("8.6.1", PLAIN._replace(strip_weights=True), "STRIP_PLAN"),
        ("8.6.1", PLAIN._replace(weight_streaming=True), "WEIGHT_STREAMING"),
        ("8.6.1", PLAIN._replace(hardware_compatibility="same_compute_capability"), "SAME_COMPUTE_CAPABILITY"),
        ("10.3.0", PLAIN._replace(hardware_compatibility="same_compute_capability"), "SAME_COMPUTE_CAPABILITY"),
        ("11.3.0.99", PLAIN._replace(tactic_sources=["cudnn"]), "cudnn"),
    ],
)
def test_what_a_release_lacks_is_named(
    version: str, options: Options, named: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt(version, monkeypatch)
    with pytest.raises(StageFailure) as caught:
        build(version, options=options)
    assert caught.value.reason == "option-unsupported"
    assert named in caught.value.message
    assert version in caught.value.message


@pytest.mark.parametrize("version", ["10.9.0.34", "10.16.1.11", "11.3.0.99"])
def test_options_of_later_releases(version: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt(version, monkeypatch)
    build(version, options=PLAIN._replace(strip_weights=True, hardware_compatibility="same_compute_capability"))
    # 10 has an older name for the same flag
    assert trt.called("IBuilderConfig.set_flag")[0] == (trt.BuilderFlag.STRIP_PLAN,)
    assert flags_set(trt) == {trt.BuilderFlag.STRIP_PLAN.name}
    level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY
    assert trt.called("IBuilderConfig.hardware_compatibility_level=") == [(level,)]


def test_tactic_sources_become_bits_by_name(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt("8.6.1", monkeypatch)
    build("8.6.1", options=PLAIN._replace(tactic_sources=["cublas", "jit_convolutions"]))
    wanted = 1 << int(trt.TacticSource.CUBLAS) | 1 << int(trt.TacticSource.JIT_CONVOLUTIONS)
    assert trt.called("IBuilderConfig.set_tactic_sources") == [(wanted,)]


@pytest.mark.parametrize(("sms", "compatibility", "taken"), [
    (["9.0"], "none", True),
    (["8.6"], "none", False),
    (["8.6"], "ampere_plus", True),
    (["8.6"], "same_compute_capability", False),
])  # fmt: skip
def test_the_gpu_must_be_of_the_sm(
    sms: list[str], compatibility: str, taken: bool, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt("10.9.0.34", monkeypatch)
    options = PLAIN._replace(hardware_compatibility=compatibility)
    if taken:
        assert build("10.9.0.34", options=options, sms=sms)["sms"] == ["9.0"]
        return
    with pytest.raises(StageFailure) as caught:
        build("10.9.0.34", options=options, sms=sms)
    assert caught.value.reason == "sm-mismatch"
    assert "NVIDIA H100" in caught.value.message


def test_the_workspace_is_what_is_free_at_most(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeCuda, "free_bytes", 4 * GIB)
    tensorrt("8.6.1", monkeypatch)
    assert build("8.6.1")["workspace_bytes"] == 4 * GIB - classic.RESERVE_BYTES
    assert build("8.6.1", options=PLAIN._replace(workspace_mib=9999))["workspace_bytes"] < 4 * GIB


@pytest.mark.parametrize("words", [
    "Error Code 2: OutOfMemory (Requested size was 9663676416 bytes.)",
    "Error Code 10: Could not find any implementation for node a due to insufficient memory.",
])  # fmt: skip
def test_memory_that_runs_out_is_tried_once_more_with_less(
    words: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt("8.6.1", monkeypatch)
    trt.scene.failing.append([words])
    facts = build("8.6.1", options=PLAIN._replace(workspace_mib=1000))
    assert facts["retried_with_less_memory"]
    assert facts["workspace_bytes"] == 500 << 20
    trt.scene.failing += [[words], [words]]
    with pytest.raises(StageFailure) as caught:
        build("8.6.1")
    assert caught.value.reason == "out-of-memory"


def test_no_implementation_on_a_full_gpu_is_called_out_of_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["Error Code 10: Internal Error (Could not find any implementation for node a.)"]
    trt = tensorrt("10.9.0.34", monkeypatch)
    trt.scene.failing.append(words)
    with pytest.raises(StageFailure) as caught:
        build("10.9.0.34")
    assert caught.value.reason == "build-failed"
    monkeypatch.setattr(FakeCuda, "free_bytes", GIB)
    trt.scene.failing += [words, words]
    with pytest.raises(StageFailure) as caught:
        build("10.9.0.34")
    assert caught.value.reason == "out-of-memory"
    assert "1024 of 81920 MiB are free" in caught.value.why


@pytest.mark.parametrize("version", VERSIONS)
def test_a_timing_cache_comes_out_and_goes_in_again(version: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt(version, monkeypatch)
    cold = build(version)["timing_cache"]
    assert not cold["unchanged"]
    (here / "one").write_bytes((here / "out/timing.cache").read_bytes())
    (here / "two").write_bytes(b"[others]")
    warm = build(version, timing=Timing(("one", "two")))["timing_cache"]
    assert warm["unchanged"]
    assert (here / "out/timing.cache").read_bytes() == b"[timings][others]"
    assert len(warm["read"]) == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sealed_build_takes_what_is_there_and_no_more(
    version: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt(version, monkeypatch)
    (here / "full").write_bytes(b"[timings]")
    (here / "poor").write_bytes(b"[others]")
    assert build(version, timing=Timing(("full",), sealed=True))["timing_cache"]["sealed"]
    later = {"ERROR_ON_TIMING_CACHE_MISS"} & set(trt.BuilderFlag.__members__)
    assert later <= flags_set(trt)
    with pytest.raises(StageFailure) as caught:
        build(version, timing=Timing(("poor",), sealed=True))
    assert caught.value.reason == "sealed-cache-changed"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sealed_build_reads_a_cache_of_the_kind_that_every_build_writes(
    version: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt(version, monkeypatch)
    build(version)
    written = every_flag_set(trt)
    known = set(trt.BuilderFlag.__members__)
    assert written == known & {"EDITABLE_TIMING_CACHE", "DISABLE_COMPILATION_CACHE"}
    again = tensorrt(version, monkeypatch)
    (here / "full").write_bytes(b"[timings]")
    build(version, timing=Timing(("full",), sealed=True))
    assert every_flag_set(again) - written == known & {"ERROR_ON_TIMING_CACHE_MISS"}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cache_that_tensorrt_refuses_stops_only_a_sealed_build(
    version: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt(version, monkeypatch)
    trt.scene.refuses_caches = True
    (here / "foreign").write_bytes(b"of another device")
    facts = build(version, timing=Timing(("foreign",)))
    assert "foreign" in facts["warnings"][0]
    with pytest.raises(StageFailure) as caught:
        build(version, timing=Timing(("foreign",), sealed=True))
    assert caught.value.reason == "timing-cache-invalid"
    assert "foreign" in caught.value.message


@pytest.mark.parametrize("version", VERSIONS)
def test_a_debug_engine_gives_the_values_asked_for(version: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt(version, monkeypatch)
    asked = request(version, "fp16")
    marked = gpu_adapter(asked.family).build_debug(asked, "m.onnx", "out/debug.plan", ["h", "gone"])
    assert marked == ["h"]
    assert [tensor.name for (tensor,) in trt.called("INetworkDefinition.mark_output")] == ["h"]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_inspector_is_asked_at_the_shapes_of_the_profile(
    version: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt(version, monkeypatch)
    build(version)
    trt.scene.layer_information = '{"Layers": []}'
    asked = request(version)
    assert gpu_adapter(asked.family).engine_layers(asked, "out/model.plan") == '{"Layers": []}'
    assert trt.called("IExecutionContext.set_input_shape") == [("x", (2, 3))]


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_no_engine_is_refused(version: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt(version, monkeypatch)
    asked = request(version)
    for content, reason in (
        (b"", "engine-invalid"),
        (b"ftrt".ljust(0x18, b"\0") + bytes([7, 2, 3, 4]), "engine-version"),
    ):
        (here / "bad.plan").write_bytes(content)
        with pytest.raises(StageFailure) as caught:
            gpu_adapter(asked.family).engine_layers(asked, "bad.plan")
        assert caught.value.reason == reason


@pytest.mark.parametrize("version", VERSIONS)
def test_a_node_that_the_parser_refuses_is_named(version: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt(version, monkeypatch)
    trt.scene.parse_errors = [("in", "Cast", "no such type")]
    with pytest.raises(StageFailure) as caught:
        build(version)
    assert caught.value.reason == "op-unsupported"
    assert "in (Cast): no such type" in caught.value.why
