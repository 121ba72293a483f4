"""INT8 by calibration against the recorded surface of each release: batches, caches, flags, failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builder.worker.build import run as run_stage
from builder.worker.inputs import make
from builder.worker.protocol import Job, StageFailure
from builder.worker.trt import Calibration, calibrate, gpu_adapter, read_request
from builder.worker.trt.calibrate import Source
from builder.worker.trt.session import Log
from tests.surfaces import FakeTensor, fake_tensorrt
from tests.unit.worker.trt.test_classic import FakeCuda, build, every_flag_set, flags_set, here, request, tensorrt

__all__ = ["here"]

CALIBRATED = ["8.6.0", "8.6.1", "10.3.0", "10.9.0.34", "10.13.3.9", "10.16.1.11"]
NORMAL = {"kind": "normal", "seed": 3, "mean": 0.0, "std": 1.0, "dtype": "float32"}
ENTROPY = Calibration("entropy", 4, {"x": NORMAL})


@pytest.fixture
def graph(here: Path) -> Path:
    """Write an FP32 graph, as the stage lower leaves it for int8."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("Exp", ["h"], ["y"], name="b"),
    ]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 3], [1.0] * 9)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy"]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), here / "m.onnx")
    return here


def calibrated(version: str, calibration: Calibration = ENTROPY, **changes: Any) -> dict[str, Any]:
    return build(version, "int8", calibration=calibration, **changes)


@pytest.mark.parametrize("version", CALIBRATED)
def test_a_build_calibrates_at_the_opt_shape(version: str, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt(version, monkeypatch)
    facts = calibrated(version)
    assert flags_set(trt) == {"INT8", "FP16", "PREFER_PRECISION_CONSTRAINTS"}
    # no strong typing where it exists: there it forbids these flags
    typing = ["EXPLICIT_BATCH"] if version.startswith("8") else []
    assert facts["flags"] == [*typing, *(flag for flag in trt.BuilderFlag.__members__ if flag in every_flag_set(trt))]
    assert trt.scene.calibrated == [(1, 4, {"x": (2, 3)})]
    kind = type(trt.called("IBuilderConfig.int8_calibrator=")[0][0]).__mro__[1].__name__
    assert kind == "IInt8EntropyCalibrator2"
    cache = (graph / "out/calibration.cache").read_bytes()
    assert cache == f"TRT-{version}-IInt8EntropyCalibrator2 4 batches".encode()
    assert facts["calibration"] == {
        "method": "entropy",
        "batches": 4,
        "shapes": {"x": [2, 3]},
        "read": None,
        "reused": False,
        "bytes": len(cache),
        "sha256": facts["calibration"]["sha256"],
    }
    # what calibration took is given back
    assert FakeCuda.memory_of == {}


def test_batches_differ_and_repeat_with_the_seed(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt("8.6.1", monkeypatch)
    calibrated("8.6.1")
    first = [array for _, array in FakeCuda.uploads]
    assert [array.shape for array in first] == [(2, 3)] * 4
    assert len({array.tobytes() for array in first}) == 4
    FakeCuda.uploads.clear()
    calibrated("8.6.1")
    assert [array.tobytes() for _, array in FakeCuda.uploads] == [array.tobytes() for array in first]
    FakeCuda.uploads.clear()
    calibrated("8.6.1", ENTROPY._replace(inputs={"x": {**NORMAL, "seed": 4}}))
    assert FakeCuda.uploads[0][1].tobytes() != first[0].tobytes()


def test_a_sample_file_is_read_on_from_batch_to_batch(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt("10.16.1.11", monkeypatch)
    samples = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.save(graph / "sample.npy", samples)
    spec = {"kind": "file", "path": "sample.npy", "dtype": "float32"}
    calibrated("10.16.1.11", Calibration("entropy", 3, {"x": spec}))
    fed = np.concatenate([array for _, array in FakeCuda.uploads])
    # the sixth is the first again
    np.testing.assert_array_equal(fed, np.concatenate([samples, samples[:1]]))


@pytest.mark.parametrize("batches", [1, 40])
def test_many_batches_of_a_sample_file_take_no_more_memory(
    graph: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    made: list[int] = []

    def counted(spec: Any, shape: tuple[int, ...], *more: Any) -> np.ndarray:
        made.append(shape[0])
        return make(spec, shape, *more)

    tensorrt("10.16.1.11", monkeypatch)
    samples = np.arange(15, dtype=np.float32).reshape(5, 3)
    np.save(graph / "sample.npy", samples)
    monkeypatch.setattr(calibrate, "make", counted)
    spec = {"kind": "file", "path": "sample.npy", "dtype": "float32"}
    calibrated("10.16.1.11", Calibration("entropy", batches, {"x": spec}))
    fed = np.concatenate([array for _, array in FakeCuda.uploads])
    np.testing.assert_array_equal(fed, np.take(samples, range(2 * batches), axis=0, mode="wrap"))
    # a batch at a time, of however many samples
    assert max(made) == 2


@pytest.mark.parametrize("version", CALIBRATED)
def test_minmax_is_another_calibrator(version: str, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt(version, monkeypatch)
    calibrated(version, ENTROPY._replace(method="minmax", batches=1))
    cache = (graph / "out/calibration.cache").read_bytes()
    assert cache == f"TRT-{version}-IInt8MinMaxCalibrator 1 batches".encode()


@pytest.mark.parametrize("version", CALIBRATED)
def test_a_cache_takes_the_place_of_batches(version: str, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt(version, monkeypatch)
    cold = calibrated(version)["calibration"]
    cache = (graph / "out/calibration.cache").read_bytes()
    (graph / "known").write_bytes(cache)
    FakeCuda.uploads.clear()
    warm = calibrated(version, ENTROPY._replace(cache="known"))["calibration"]
    assert warm == {**cold, "read": cold["sha256"], "reused": True}
    assert len(trt.scene.calibrated) == 1
    assert FakeCuda.uploads == []
    assert (graph / "out/calibration.cache").read_bytes() == cache


def test_a_cache_that_tensorrt_does_not_take_is_said(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt("8.6.1", monkeypatch)
    (graph / "foreign").write_bytes(b"TRT-7000")
    facts = calibrated("8.6.1", ENTROPY._replace(cache="foreign"))
    assert not facts["calibration"]["reused"]
    assert facts["calibration"]["read"] != facts["calibration"]["sha256"]
    assert facts["warnings"] == ["TensorRT did not take the calibration cache and calibrated anew"]


def test_a_second_try_does_not_calibrate_again(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt("8.6.1", monkeypatch)
    trt.scene.failing.append(["Error Code 2: OutOfMemory (Requested size was 9663676416 bytes.)"])
    facts = calibrated("8.6.1")
    assert facts["retried_with_less_memory"]
    assert len(trt.scene.calibrated) == 1
    assert not facts["calibration"]["reused"]
    assert facts["calibration"]["read"] is None


def test_calibration_that_was_cut_short_begins_anew(here: Path) -> None:
    source = Source(FakeCuda(), ENTROPY, {"x": (2, 3)}, {"x": "float32"})  # type: ignore[arg-type]
    for _ in range(2):
        # out of memory, say, before anything was written
        assert source.begin() is None
        assert source.next(["x"]) == source.next(["x"])
    fed = [array.tobytes() for _, array in FakeCuda.uploads]
    assert fed[:2] == fed[2:]
    assert fed[0] != fed[1]
    with pytest.raises(StageFailure, match="asked for no calibration"):
        source.save(Log(fake_tensorrt("8.6.1")))


@pytest.mark.parametrize("version", CALIBRATED)
def test_kept_nodes_are_told_and_no_others(version: str, graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt(version, monkeypatch)
    assert calibrated(version, kept_fp32=("b",))["precision_constraints"] == 1
    assert trt.called("ILayer.precision=") == [(trt.DataType.FLOAT,)]


def test_values_have_the_type_that_the_network_has(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # before 10 an int64 input of the graph is int32
    trt = tensorrt("8.6.1", monkeypatch)
    trt.scene.inputs = [FakeTensor("x", "INT32", shape=(-1, 3))]
    ints = {"kind": "ints", "seed": 0, "low": 0, "high": 9, "dtype": "int64"}
    calibrated("8.6.1", Calibration("entropy", 1, {"x": ints}))
    assert [array.dtype for _, array in FakeCuda.uploads] == [np.dtype(np.int32)]


def test_what_fails_in_a_batch_is_not_lost(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt("10.9.0.34", monkeypatch)
    lost = StageFailure("build-failed", "the GPU refuses cuMemcpyHtoD_v2")

    def upload(self: FakeCuda, address: int, array: np.ndarray) -> None:
        raise lost

    monkeypatch.setattr(FakeCuda, "upload", upload)
    with pytest.raises(StageFailure) as caught:
        calibrated("10.9.0.34")
    assert caught.value is lost


def test_samples_that_do_not_fit_are_refused_before_anything_is_built(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt("10.9.0.34", monkeypatch)
    np.save(graph / "sample.npy", np.zeros((2, 3, 4), np.float32))
    spec = {"kind": "file", "path": "sample.npy", "dtype": "float32"}
    with pytest.raises(StageFailure) as caught:
        calibrated("10.9.0.34", Calibration("entropy", 2, {"x": spec}))
    assert caught.value.reason == "input-invalid"
    assert trt.called("Builder.build_serialized_network") == []


@pytest.mark.parametrize("version", CALIBRATED)
def test_a_debug_engine_takes_the_ranges_of_the_engine(
    version: str, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = tensorrt(version, monkeypatch)
    calibrated(version)
    (graph / "out/calibration.cache").rename(graph / "known")
    asked = request(version, "int8", calibration=ENTROPY._replace(cache="known"))
    assert gpu_adapter(asked.family).build_debug(asked, "m.onnx", "out/debug.plan", ["h"]) == ["h"]
    assert len(trt.scene.calibrated) == 1
    assert FakeCuda.memory_of == {}


def test_11_is_not_asked_for_int8(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt("11.3.0.99", monkeypatch)
    with pytest.raises(StageFailure) as caught:
        calibrated("11.3.0.99")
    assert caught.value.reason == "precision-unsupported"
    assert "11.3.0.99" in caught.value.message
    assert trt.called("Builder.create_network") == []


@pytest.mark.parametrize("version", CALIBRATED)
def test_other_precisions_have_no_calibrator(version: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = tensorrt(version, monkeypatch)
    assert build(version, "fp16")["calibration"] is None
    assert trt.called("IBuilderConfig.int8_calibrator=") == []
    assert not (here / "out/calibration.cache").exists()


def stage(family: str, precision: str = "int8", **inputs: str) -> Job:
    """Make a job of the stage build as the farm writes it."""
    calibration = {"method": "minmax", "batches": 2, "inputs": {"x": NORMAL}}
    params: dict[str, Any] = {
        "family": family,
        "import_name": "fake_trt",
        "precision": precision,
        "profiles": [{"name": "p", "inputs": {"x": {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}}}],
        "sms": ["9.0"],
        "options": {
            "workspace_mib": None,
            "optimization_level": None,
            "hardware_compatibility": "none",
            "version_compatible": False,
            "strip_weights": False,
        },
        "calibration": calibration if precision == "int8" else None,
    }
    return Job("build", "j", {"lowered": "m.onnx", **inputs}, params)


def test_the_stage_reads_what_the_farm_says() -> None:
    asked = read_request(stage("trt8", calibration_cache="in/c"))
    assert asked.calibration == Calibration("minmax", 2, {"x": NORMAL}, "in/c")
    assert read_request(stage("trt8", "fp16", calibration_cache="in/c")).calibration is None


@pytest.mark.parametrize(("family", "version"), [("trt8", "8.6.0"), ("trt10", "10.16.1.11")])
def test_the_stage_leaves_the_cache_and_takes_it_again(
    family: str, version: str, graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensorrt(version, monkeypatch)
    outputs, data = run_stage(stage(family))
    assert outputs["calibration_cache"] == "out/calibration.cache"
    assert (data["calibration"]["method"], data["calibration"]["reused"]) == ("minmax", False)
    (graph / "known").write_bytes((graph / "out/calibration.cache").read_bytes())
    outputs, data = run_stage(stage(family, calibration_cache="known"))
    assert set(outputs) == {"engine", "timing_cache", "calibration_cache"}
    assert data["calibration"]["reused"]
    (graph / "out/calibration.cache").unlink()
    assert set(run_stage(stage(family, "fp32")).outputs) == {"engine", "timing_cache"}
