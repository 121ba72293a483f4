"""The stage baseline with ONNX Runtime on the CPU, and what happens where a package is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builder.worker import baseline, baseline_onnx, timing
from builder.worker.protocol import Job, StageFailure
from builder.worker.turn_files import Turns

WISH = {"do": "measure", "case": "p/opt", "warmup": 2, "iterations": 5}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(timing, "WARM_UP_S", 0.0)
    before = Path.cwd()
    os.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    yield
    os.chdir(before)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Give two turns and keep what is answered."""
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(Turns, "requests", lambda self: iter([WISH, WISH]))
    monkeypatch.setattr(Turns, "answer", lambda self, document: kept.append(document))
    return kept


def job(kind: str = "onnxruntime", precision: str = "fp16") -> Job:
    params = {
        "kind": kind,
        "precision": precision,
        "profiles": [{"name": "p", "inputs": {"x": {"min": [1, 4], "opt": [2, 4], "max": [3, 4]}}}],
        "points": ["opt"],
        "inputs": {"x": {"dtype": "float32", "kind": "uniform", "seed": 0, "low": 1.0, "high": 2.0}},
    }
    return Job("baseline", "tiny", {"model": "in/model"}, params)


def write_model(names: tuple[str, str] = ("one", "two")) -> None:
    nodes = [
        helper.make_node("Add", ["x", "x"], ["double"], name=names[0]),
        helper.make_node("Neg", ["double"], ["y"], name=names[1]),
    ]
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, "in/model")


def test_onnxruntime_on_the_cpu(answers: list[dict[str, Any]]) -> None:
    write_model()
    outcome = baseline.run(job())
    assert outcome.data["name"] == "onnxruntime-cpu"
    assert outcome.data["device"] == "CPU"
    # the job is FP16, the model is not
    assert outcome.data["precision"] == "fp32"
    assert outcome.data["version"]
    assert [len(one["series"]["baseline"]["wall"]) for one in answers] == [5, 5]
    assert all(value > 0 for value in answers[0]["series"]["baseline"]["wall"])
    assert "gpu" not in answers[0]["series"]["baseline"]
    with np.load("out/outputs.npz") as outputs:
        assert outputs.files == ["p/opt|y"]
        assert outputs["p/opt|y"].shape == (2, 4)
        assert (outputs["p/opt|y"] <= -2).all()


def test_equal_node_names_are_no_obstacle(answers: list[dict[str, Any]]) -> None:
    write_model(("same", "same"))
    baseline.run(job())
    assert len(answers) == 2


def test_cuda_that_does_not_come_up_is_said(answers: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    write_model()
    asked: list[Any] = []
    real = baseline_onnx._session

    def session(model: str, provider: Any) -> Any:
        asked.append(provider)
        return real(model, baseline_onnx.CPU)

    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [baseline_onnx.CUDA, baseline_onnx.CPU])
    monkeypatch.setattr(baseline_onnx, "_session", session)
    assert baseline.run(job(precision="fp32")).data["name"] == "onnxruntime-cpu"
    assert asked == [(baseline_onnx.CUDA, {"use_tf32": "0"}), baseline_onnx.CPU]


def test_model_that_onnxruntime_refuses() -> None:
    Path("in/model").write_bytes(b"no model")
    with pytest.raises(StageFailure) as caught:
        baseline.run(job())
    assert caught.value.reason == "model-invalid"


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "builder.worker.baseline_torch", raising=False)
    with pytest.raises(StageFailure) as caught:
        baseline.run(job("eager"))
    assert caught.value.reason == "library-missing"
    assert "torch" in caught.value.message
    assert not Path("turn/ready.json").exists()


@pytest.mark.parametrize(
    ("text", "reason"), [("CUDA out of memory. Tried", "out-of-memory"), ("no kernel for half", "model-invalid")]
)
def test_first_run_that_fails(monkeypatch: pytest.MonkeyPatch, text: str, reason: str) -> None:
    class Runner:
        clock = None

        def prepare(self, case: Any) -> None:
            pass

        def fetch(self) -> Any:
            raise RuntimeError(text)

    monkeypatch.setattr(baseline, "_open", lambda job: Runner())
    with pytest.raises(StageFailure) as caught:
        baseline.run(job())
    assert caught.value.reason == reason
    assert text in caught.value.why
