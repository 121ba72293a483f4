"""The command `trtexec` on the project's own recipes and stacks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from builder.cli import main
from builder.manifest import LoweredPart
from builder.store import Store
from tests.artifacts import add
from tests.engines import manifest

JOB = "tiny-mlp-fp32-trt8.6-cuda12.0-sm90"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty home and this project."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ENGINEFARM_PROJECT", str(Path(__file__).parents[3]))
    return tmp_path / "home"


def test_notes_are_comments_and_commands_are_quoted(capsys: pytest.CaptureFixture[str]) -> None:
    job = "ppocrv4-rec-fp16-trt8.6-cuda12.0-sm90"
    assert main(["trtexec", job]) == 0
    *notes, build, timing = capsys.readouterr().out.splitlines()
    assert all(note.startswith("# ") for note in notes)
    assert notes[0] == "# trtexec of TensorRT 8.6.1, on a GPU of SM 9.0"
    assert "enginefarm build --keep --recipe ppocrv4-rec " in notes[-1]
    assert build.startswith(f"trtexec --onnx=lowered.onnx --saveEngine={job}.plan --minShapes=x:1x3x48x32 ")
    assert "'--layerPrecisions=*:fp16'" in build
    assert timing.startswith(f"trtexec --loadEngine={job}.plan --shapes=x:1x3x48x320 ")


def test_json_and_another_lock(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trtexec", JOB, "--lock", "8.6.0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["job"] == JOB
    assert found["notes"][0].startswith("trtexec of TensorRT 8.6.0,")
    assert found["notes"][-1].endswith("--lock 8.6.0")
    assert [command[0] for command in found["commands"]] == ["trtexec", "trtexec"]


def test_a_graph_that_was_kept_is_named(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for age, run in enumerate(("kept-b", "kept-a")):
        path = home / "work" / run / JOB / "lower" / "out" / "lowered.onnx"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1000 - age, 1000 - age))
    assert main(["trtexec", JOB, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["commands"][0][1] == f"--onnx={home}/work/kept-b/{JOB}/lower/out/lowered.onnx"
    assert not any("--keep" in note for note in found["notes"])
    assert main(["trtexec", JOB, "--onnx", "mine.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["commands"][0][1] == "--onnx=mine.onnx"


def test_what_lowering_kept_is_read_from_the_store(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = "ppocrv4-rec-fp16-trt8.6-cuda12.0-sm90"
    lowered = LoweredPart(sha256="0" * 64, size=1, detail={"kept_fp32": ["softmax_11"]})
    text = manifest(job=job, lowered=lowered).to_json()
    add(Store(home / "store"), name=job, files={"model.plan": b"engine", "manifest.json": text.encode()})
    assert main(["trtexec", job]) == 0
    assert "'--layerPrecisions=*:fp16,softmax_11:fp32'" in capsys.readouterr().out


def test_unknown_job(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trtexec", JOB + "0"]) != 0
    assert f"did you mean {JOB}" in capsys.readouterr().err
