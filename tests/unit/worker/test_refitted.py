"""Engines that were built without their weights get them before a stage loads them; bindings only as recorded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from builder.worker import refitted
from builder.worker.protocol import Job, StageFailure
from builder.worker.refitted import REFITTED, loadable
from builder.worker.trt import Options, Request
from tests.runtime_fakes import fake_engine
from tests.surfaces import FakeTensorRT, recorded_versions
from tests.unit.worker.trt.test_classic import FakeCuda

# the releases that can refit from an ONNX file
VERSIONS = [version for version in recorded_versions() if version.startswith("1") and not version.startswith("1.")]
STRIPPED = Options(None, None, "none", version_compatible=False, strip_weights=True)
REQUEST = Request("trt10", "tensorrt", "fp32", [], ["9.0"], STRIPPED)
MODEL = b"the lowered model"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work where a stage does."""
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    (tmp_path / "in" / "lowered.onnx").write_bytes(MODEL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(refitted, "Cuda", FakeCuda)
    return tmp_path


def stripped(monkeypatch: pytest.MonkeyPatch, version: str = "10.9.0.34") -> FakeTensorRT:
    """Put a TensorRT in place, and an engine of its without weights where the stage has it."""
    trt, content = fake_engine(monkeypatch, version, flags=("STRIP_PLAN",))
    Path("in/engine.plan").write_bytes(content)
    return trt


def job(**inputs: str) -> Job:
    return Job("verify", "j", {"engine": "in/engine.plan", "lowered": "in/lowered.onnx"} | inputs, {})


def failure(wanted: Job | None = None) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        loadable(wanted or job(), REQUEST)
    return caught.value


def test_an_engine_with_weights_is_left_alone(folder: Path) -> None:
    assert loadable(job(), REQUEST._replace(options=STRIPPED._replace(strip_weights=False))) == "in/engine.plan"
    assert not (folder / REFITTED).exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_weights_are_those_of_the_lowered_model(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    trt = stripped(monkeypatch, version)
    assert loadable(job(), REQUEST) == REFITTED
    # the path is for what a large model keeps beside it
    assert trt.called("OnnxParserRefitter.refit_from_bytes") == [(MODEL, str(folder / "in/lowered.onnx"))]
    logger = next(iter(trt.called("Runtime.__init__")))[0]
    assert trt.Runtime(logger).deserialize_cuda_engine(Path("in/engine.plan").read_bytes()) is not None
    whole = trt.Runtime(logger).deserialize_cuda_engine((folder / REFITTED).read_bytes())
    assert whole.create_execution_context() is not None


def test_without_a_refit_there_is_nothing_to_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = stripped(monkeypatch)
    loadable(job(), REQUEST)
    logger = next(iter(trt.called("Runtime.__init__")))[0]
    empty = trt.Runtime(logger).deserialize_cuda_engine(Path("in/engine.plan").read_bytes())
    assert empty.create_execution_context() is None


def test_rebuilt_engines_get_theirs_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trt = stripped(monkeypatch)
    (folder / "in/rebuilt_0").write_bytes((folder / "in/engine.plan").read_bytes())
    for role in ("engine", "rebuilt_0"):
        assert loadable(job(rebuilt_0="in/rebuilt_0"), REQUEST, role) == REFITTED
    assert len(trt.called("Refitter.refit_cuda_engine")) == 2


def test_what_can_go_wrong(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert failure(Job("bench", "j", {"engine": "in/engine.plan"}, {})).reason == "weights-invalid"
    trt = stripped(monkeypatch)
    trt.scene.refit_errors = ["Error Code 2: OutOfMemory (out of memory)"]
    assert failure().reason == "out-of-memory"
    trt.scene.refit_errors, trt.scene.missing_weights = [], [f"w{index}" for index in range(7)]
    refused = failure()
    assert refused.reason == "engine-invalid"
    assert "it lacks w0, w1, w2, w3, w4 and 2 more" in refused.why
    (folder / "in/engine.plan").write_bytes(b"ftrt".ljust(0x18, b"\0") + bytes([10, 9, 0, 34]) + b"damaged")
    assert failure().reason == "engine-invalid"
    (folder / "in/engine.plan").write_bytes(b"ftrt".ljust(0x18, b"\0") + bytes([10, 3, 0, 0]))
    assert failure().reason == "engine-version"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert failure().reason == "library-missing"
    assert not (folder / REFITTED).exists()
