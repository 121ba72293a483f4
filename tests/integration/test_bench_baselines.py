"""Baselines as processes, on the CPU: they take turns, give their outputs, die, and are found out."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from builder.bench_baselines import run_baseline
from builder.bench_players import Player
from builder.errors import EnginefarmError, Reason
from builder.stage import StageRequest
from builder.worker.inputs import make

pytestmark = pytest.mark.integration

MODEL = """
import torch

class Scale(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        return {"y": self.linear(x), "z": x * 2}

def build():
    return Scale()
"""
PARAMS: dict[str, Any] = {
    "profiles": [{"name": "p", "inputs": {"x": {"min": [1, 4], "opt": [2, 4], "max": [3, 4]}}}],
    "points": ["min", "opt"],
    "inputs": {"x": {"dtype": "float32", "kind": "uniform", "seed": 0, "low": 1.0, "high": 2.0}},
    "entry": "model.py:build",
    "weights": {"kind": "seeded", "seed": 3},
    "export": {"input_names": ["x"], "output_names": ["y", "z"]},
}
WISH = {"do": "measure", "case": "p/opt", "warmup": 2, "iterations": 20}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Write a recipe's folder with a small model."""
    folder = tmp_path / "recipe"
    folder.mkdir()
    (folder / "model.py").write_text(MODEL, encoding="utf-8")
    return folder


def start(folder: Path, python: Path, kind: str, inputs: dict[str, Path], precision: str = "fp32") -> Player:
    """Make a baseline's player."""
    stop = threading.Event()
    request = StageRequest(
        job="tiny",
        stage="baseline",
        inputs=inputs,
        params={**PARAMS, "kind": kind, "precision": precision},
        folder=folder / kind,
        timeout_s=300,
    )
    return Player(kind, request, lambda: run_baseline(python, request, stop), stop, threading.Event())


def onnx_model(folder: Path) -> Path:
    """Write a small ONNX model."""
    node = helper.make_node("Add", ["x", "x"], ["y"], name="double")
    shapes = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([node], "g", shapes[:1], shapes[1:])
    path = folder / "blob"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def outputs(player: Player) -> dict[str, np.ndarray]:
    """Read what a baseline gave."""
    with np.load(player.request.folder / "out" / "outputs.npz") as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def torch_python(export_environment: Path) -> Path:
    """Name a Python with PyTorch for the CPU."""
    return export_environment


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16", "int8"])
def test_eager_on_the_cpu(tmp_path: Path, torch_python: Path, recipe: Path, precision: str) -> None:
    player = start(tmp_path, torch_python, "eager", {"recipe_dir": recipe}, precision)
    facts = player.begin(120)
    assert facts["name"] == "eager-cpu"
    # PyTorch has no int8 of its own
    assert facts["precision"] == {"int8": "fp16"}.get(precision, precision)
    answer = player.play(WISH, 60)
    assert len(answer["series"]["baseline"]["wall"]) == 20
    assert "gpu" not in answer["series"]["baseline"]
    assert player.end().max_rss_bytes > 0
    made = outputs(player)
    assert sorted(made) == ["p/min|y", "p/min|z", "p/opt|y", "p/opt|z"]
    assert made["p/opt|z"].shape == (2, 4)
    fed = make(PARAMS["inputs"]["x"], (2, 4), "x", "p/opt")
    assert np.allclose(made["p/opt|z"], fed * 2, rtol=1e-6 if precision.endswith("32") else 1e-2)


def test_compiled_model_gives_the_same(tmp_path: Path, torch_python: Path, recipe: Path) -> None:
    eager = start(tmp_path, torch_python, "eager", {"recipe_dir": recipe})
    compiled = start(tmp_path, torch_python, "compile", {"recipe_dir": recipe})
    eager.begin(120)
    facts = compiled.begin(300)
    assert facts["name"] == "compile-cpu"
    assert facts["settings"] == ["torch.compile mode=reduce-overhead dynamic=False"]
    assert compiled.play(WISH, 60)["series"]["baseline"]["wall"]
    compiled.end()
    eager.end()
    for name, values in outputs(eager).items():
        assert np.allclose(values, outputs(compiled)[name], atol=1e-6)


def test_onnxruntime_on_the_cpu(tmp_path: Path) -> None:
    player = start(tmp_path, Path(sys.executable), "onnxruntime", {"model": onnx_model(tmp_path)})
    assert player.begin(120)["name"] == "onnxruntime-cpu"
    assert [len(player.play(WISH, 60)["series"]["baseline"]["wall"]) for _ in range(2)] == [20, 20]
    player.end()
    fed = make(PARAMS["inputs"]["x"], (2, 4), "x", "p/opt")
    assert np.array_equal(outputs(player)["p/opt|y"], fed * 2)


def test_python_without_torch(tmp_path: Path, recipe: Path) -> None:
    player = start(tmp_path, Path(sys.executable), "eager", {"recipe_dir": recipe})
    with pytest.raises(EnginefarmError) as caught:
        player.begin(60)
    assert caught.value.reason is Reason.LIBRARY_MISSING
    assert "torch" in caught.value.what


def test_no_python_at_all(tmp_path: Path, recipe: Path) -> None:
    player = start(tmp_path, tmp_path / "nowhere", "eager", {"recipe_dir": recipe})
    with pytest.raises(EnginefarmError) as caught:
        player.begin(60)
    assert caught.value.reason is Reason.ENVIRONMENT_MISSING


def test_model_that_kills_its_process(tmp_path: Path, torch_python: Path, recipe: Path) -> None:
    (recipe / "model.py").write_text("import os\n\ndef build():\n    os.kill(os.getpid(), 9)\n", encoding="utf-8")
    player = start(tmp_path, torch_python, "eager", {"recipe_dir": recipe})
    with pytest.raises(EnginefarmError) as caught:
        player.begin(60)
    assert caught.value.reason is Reason.WORKER_DIED


def test_model_that_hangs_is_killed(tmp_path: Path, torch_python: Path, recipe: Path) -> None:
    (recipe / "model.py").write_text("import time\n\ndef build():\n    time.sleep(600)\n", encoding="utf-8")
    player = start(tmp_path, torch_python, "eager", {"recipe_dir": recipe})
    with pytest.raises(EnginefarmError) as caught:
        player.begin(8)
    assert caught.value.reason is Reason.STAGE_TIMEOUT
    player.abort()
    assert not player._thread.is_alive()
