"""The runtime gives engines that were built without weights those beside them, once they are known to be theirs."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.runtime import opening
from tests.runtime_fakes import Bench, FakeDriver, X, fake_engine, refused_by, write_folder

VERSION = "10.9.0.34"
MODEL, DATA = b"the lowered model", b"what did not fit" * 100
OPTIONS = {"hardware_compatibility": "none", "version_compatible": False, "strip_weights": True}


def told(**files: bytes) -> list[dict[str, Any]]:
    """Tell of files as a manifest does: `weights_onnx=...` is weights.onnx."""
    return [
        {"file": name.replace("_", "."), "sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in files.items()
    ]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    trt, content = fake_engine(monkeypatch, VERSION, flags=("STRIP_PLAN",))
    driver = FakeDriver(trt)
    monkeypatch.setattr(opening, "open_driver", lambda _ordinal: driver)
    made = Bench(tmp_path / "engine", trt, driver)
    write(made, content)
    return made


def write(bench: Bench, content: bytes, **changes: Any) -> None:
    parts = {"stack__tensorrt": VERSION, "build__options": OPTIONS, "engine__weights": told(weights_onnx=MODEL)}
    write_folder(bench.folder, content, **parts | changes)
    (bench.folder / "weights.onnx").write_bytes(MODEL)


def untouched(bench: Bench) -> bool:
    return bench.trt.called("Runtime.deserialize_cuda_engine") == []


def test_an_engine_is_refitted_before_it_runs(bench: Bench) -> None:
    with bench.load() as engine:
        np.testing.assert_array_equal(engine(X), X * 2)
        assert engine.checked is not None
        assert (engine.checked.content, engine.checked.weights) == (b"", b"")
    assert bench.trt.called("OnnxParserRefitter.refit_from_bytes") == [(MODEL,)]
    names = [name for name, _ in bench.trt.calls]
    order = ["Runtime.deserialize_cuda_engine", "Refitter.refit_cuda_engine", "ICudaEngine.create_execution_context"]
    assert [name for name in names if name in order][:3] == order


def test_the_bytes_that_were_hashed_are_the_bytes_that_are_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    real = open

    def spy(path: Any, *args: Any, **options: Any) -> Any:
        reads.append(Path(path).name)
        return real(path, *args, **options)

    monkeypatch.setattr("builtins.open", spy)
    bench.load().close()
    assert reads.count("weights.onnx") == 1
    assert bench.trt.called("OnnxParserRefitter.refit_from_file") == []


@pytest.mark.parametrize("content", [None, b"", MODEL[:-1], MODEL + b"!", b"The lowered model"])
def test_missing_and_changed_weights_are_refused_before_anything_is_deserialized(
    bench: Bench, content: bytes | None
) -> None:
    path = bench.folder / "weights.onnx"
    path.unlink() if content is None else path.write_bytes(content)
    refused = refused_by(bench.load)
    assert refused.code == ("EF-106" if content is None else "EF-107")
    assert untouched(bench)


@pytest.mark.parametrize("weights", [[], [{"file": "weights.onnx"}], ["weights.onnx"], 7])
def test_a_manifest_has_to_say_what_the_weights_are(bench: Bench, weights: Any) -> None:
    write(bench, (bench.folder / "model.plan").read_bytes(), engine__weights=weights)
    assert refused_by(bench.load).reason == ("file-missing" if weights == [] else "manifest-invalid")
    assert untouched(bench)


def test_a_record_of_pull_covers_the_weights_by_the_manifest(bench: Bench) -> None:
    digests = {
        f"{name.partition('.')[0]}_sha256": hashlib.sha256((bench.folder / name).read_bytes()).hexdigest()
        for name in ("manifest.json", "model.plan")
    }
    record = f'{{"engine_sha256": "{digests["model_sha256"]}", "manifest_sha256": "{digests["manifest_sha256"]}"}}'
    (bench.folder / "trust.json").write_text(record)
    bench.load(trust=None).close()
    (bench.folder / "weights.onnx").write_bytes(b"other weights")
    assert refused_by(lambda: bench.load(trust=None)).reason == "digest-mismatch"


def test_what_tensorrt_refuses_falls_back(bench: Bench) -> None:
    bench.trt.scene.missing_weights = ["conv1.weight"]
    refused = refused_by(bench.load)
    assert refused.reason == "engine-invalid"
    assert "it lacks conv1.weight" in refused.why
    engine = bench.load(lambda x: x * 5)
    np.testing.assert_array_equal(engine(X), X * 5)
    assert engine.refusal is not None


@pytest.fixture
def large(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Let the model keep weights in another file, as those over protobuf's limit do."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    files = [*told(weights_onnx=MODEL), {**told(data=DATA)[0], "file": "lowered.onnx.data"}]
    write(bench, (bench.folder / "model.plan").read_bytes(), engine__weights=files)
    (bench.folder / "lowered.onnx.data").write_bytes(DATA)
    bench.trt.scene.beside = "lowered.onnx.data"
    return bench


def test_weights_outside_the_model_are_read_from_a_checked_copy(large: Bench, tmp_path: Path) -> None:
    large.load().close()
    ((model, path),) = large.trt.called("OnnxParserRefitter.refit_from_bytes")
    assert model == MODEL
    assert Path(path).parent.parent == tmp_path / "tmp"
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", DATA[:-1]])
def test_changed_weights_outside_the_model_are_refused(large: Bench, tmp_path: Path, content: bytes | None) -> None:
    path = large.folder / "lowered.onnx.data"
    path.unlink() if content is None else path.write_bytes(content)
    assert refused_by(large.load).reason == ("file-missing" if content is None else "digest-mismatch")
    assert untouched(large)
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_full_disk_is_named(large: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builder.runtime.folder._copy", full)
    refused = refused_by(large.load)
    assert (refused.code, "TMPDIR" in refused.fix) == ("EF-305", True)
