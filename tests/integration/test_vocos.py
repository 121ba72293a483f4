"""The Vocos recipe: the published architecture, exported faithfully, the same bytes every time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from builder.fetch import Fetcher
from builder.models import export_params
from builder.recipe_file import load_recipe
from tests.integration.farm import ROOT, shared_home

pytestmark = pytest.mark.integration

FOLDER = ROOT / "recipes" / "vocos-decoder"
VOCOS_WHEEL = "0ac13eaef68596074301e912d781399b3defa4b4ca60b6bc52c8a4b9209ca235"


def export(python: Path, folder: Path, changes: dict[str, Any] | None = None, source: Path = FOLDER) -> dict[str, Any]:
    """Run the export stage as the farm does."""
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    shutil.copytree(source, folder / "in" / "recipe_dir")
    params = export_params(load_recipe(FOLDER / "recipe.yaml")) | (changes or {})
    job = {"protocol": 1, "stage": "export", "job": "j", "inputs": {"recipe_dir": "in/recipe_dir"}, "params": params}
    (folder / "job.json").write_text(json.dumps(job))
    env = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "PATH": os.environ["PATH"], "HOME": str(folder)}
    done = subprocess.run(
        [python, "-m", "builder.worker", folder], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.fixture(scope="module")
def exported(export_environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of one export."""
    folder = tmp_path_factory.mktemp("export")
    result = export(export_environment, folder / "stage")
    assert result["status"] == "ok", result["error"]
    assert result["data"]["parameters"] == 13_531_650
    return folder / "stage"


def test_the_decoder_is_the_published_one(export_environment: Path, tmp_path: Path) -> None:
    fetcher = Fetcher(shared_home(), threading.Event())
    wheel = fetcher._wheel("vocos==0.1.0", VOCOS_WHEEL)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    script = Path(__file__).with_name("compare_vocos.py")
    done = subprocess.run(
        [export_environment, script, tmp_path, FOLDER / "model.py"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["recipe"] == found["published"]
    assert "backbone.convnext.7.gamma" in found["recipe"]
    assert found["recipe"]["head.istft.window"] == [1024]
    assert found["shape"] == [1, 513, 80]
    assert found["difference"] <= 1e-5 * found["largest"]


@pytest.mark.parametrize("frames", [64, 128, 256, 512])
def test_onnx_gives_what_pytorch_gives(exported: Path, frames: int) -> None:
    points = {64: "min", 128: "also0", 256: "opt", 512: "max"}
    session = ort.InferenceSession(exported / "out" / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(exported / "out" / "reference.npz") as reference:
        case = f"frames/{points[frames]}"
        mel = reference[f"{case}|in|mel"]
        assert mel.shape == (1, 100, frames)
        for name, values in zip(("real", "imag"), session.run(["real", "imag"], {"mel": mel}), strict=True):
            wanted = reference[f"{case}|out|{name}"]
            assert wanted.shape == (1, 513, frames)
            assert np.mean((values - wanted) ** 2) < 1e-7
            assert np.abs(wanted).max() > 0.1


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_two_exports_are_equal_bit_for_bit(exporter: str, export_environment: Path, tmp_path: Path) -> None:
    settings = export_params(load_recipe(FOLDER / "recipe.yaml"))["export"] | {"exporter": exporter}
    settings["opset"] = 18 if exporter == "dynamo" else 17
    made = []
    for folder in (tmp_path / "a", tmp_path / "another path" / "b"):
        result = export(export_environment, folder, {"export": settings})
        assert result["status"] == "ok", result["error"]
        made.append([(folder / "out" / name).read_bytes() for name in ("model.onnx", "reference.npz")])
    assert made[0] == made[1]
    assert str(tmp_path).encode() not in made[0][0]


MISTAKES = {
    "no such function": ("def build(", "def built(", "export-failed", "did you mean built"),
    "an exception": ("    return VocosDecoder()", "    raise ValueError('no luck')", "export-failed", "model.py:"),
    "not a module": ("    return VocosDecoder()", "    return 7", "export-failed", "int"),
    "one output": (
        "magnitude * torch.cos(phase), magnitude * torch.sin(phase)",
        "magnitude",
        "export-failed",
        "1 outputs",
    ),
    "not a number": ("torch.exp(log_magnitude)", "torch.log(-log_magnitude.abs())", "input-invalid", "inf or NaN"),
}


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_mistakes_in_a_model_are_named(mistake: str, export_environment: Path, tmp_path: Path) -> None:
    old, new, reason, text = MISTAKES[mistake]
    source = tmp_path / "source"
    shutil.copytree(FOLDER, source)
    code = (source / "model.py").read_text()
    assert old in code
    (source / "model.py").write_text(code.replace(old, new, 1))
    error = export(export_environment, tmp_path / "stage", source=source)["error"]
    assert error["reason"] == reason
    assert text in json.dumps(error)


def test_an_axis_that_is_not_dynamic_is_named(export_environment: Path, tmp_path: Path) -> None:
    settings = export_params(load_recipe(FOLDER / "recipe.yaml"))["export"] | {"dynamic_axes": {}}
    error = export(export_environment, tmp_path / "stage", {"export": settings})["error"]
    assert error["reason"] == "export-failed"
    assert "axis 2 of input mel is fixed at 256" in error["message"]
    assert "dynamic_axes" in error["fix"]


def test_weights_that_do_not_fit_are_named(export_environment: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    weights = tmp_path / "weights.bin"
    script = "import sys, torch; torch.save({'backbone.other': torch.zeros(1)}, sys.argv[1])"
    subprocess.run([export_environment, "-c", script, weights], check=True)
    (stage / "in").mkdir(parents=True)
    (stage / "out").mkdir()
    shutil.copytree(FOLDER, stage / "in" / "recipe_dir")
    shutil.copy(weights, stage / "in" / "weights.bin")
    params = export_params(load_recipe(FOLDER / "recipe.yaml")) | {
        "weights": {"kind": "pretrained", "sha256": "00" * 32}
    }
    inputs = {"recipe_dir": "in/recipe_dir", "weights": "in/weights.bin"}
    job = {"protocol": 1, "stage": "export", "job": "j", "inputs": inputs, "params": params}
    (stage / "job.json").write_text(json.dumps(job))
    env = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    subprocess.run([export_environment, "-m", "builder.worker", stage], env=env, capture_output=True, check=True)
    error = json.loads((stage / "result.json").read_text())["error"]
    assert error["reason"] == "weights-invalid"
    assert "backbone.embed.weight" in error["why"]
    assert "backbone.other" in error["why"]
