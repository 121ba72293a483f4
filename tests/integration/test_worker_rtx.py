"""The worker's stages with the real TensorRT-RTX, as processes, as the farm runs them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from builder.environments import install, locate
from builder.project import find_home
from builder.stacks import load_stacks
from tests.unit.worker.graphs import branching

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
STACK = "trtrtx1.7-cuda13"
OPTIONS = {
    "workspace_mib": None,
    "optimization_level": None,
    "hardware_compatibility": "none",
    "version_compatible": False,
    "strip_weights": False,
}
AMPERE = ["8.0", "8.6"]
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def rtx_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Python of an environment with TensorRT-RTX: ENGINEFARM_TEST_RTX_PYTHON, or the farm's own environment."""
    given = os.environ.get("ENGINEFARM_TEST_RTX_PYTHON")
    if given:
        return given
    home = find_home()
    environment = locate(load_stacks(ROOT / "images")[STACK], home)
    if not environment.installed:
        install(environment, home, tmp_path_factory.mktemp("log") / "install.log", threading.Event())
    return str(environment.python)


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GLIBC_"))}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "PYTHONNOUSERSITE": "1"}


def _write_job(folder: Path, stage: str, model: Path, params: dict[str, Any]) -> None:
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    role = "model" if stage == "lower" else "lowered"
    shutil.copy(model, folder / "in" / f"{role}.onnx")
    common = {
        "family": "rtx",
        "import_name": "tensorrt_rtx_bindings",
        "sms": AMPERE,
        "options": OPTIONS,
        "keep_fp32": {"nodes": [], "ops": []},
    }
    job = {
        "protocol": 1,
        "stage": stage,
        "job": "toy",
        "inputs": {role: f"in/{role}.onnx"},
        "params": {**common, **params},
    }
    (folder / "job.json").write_text(json.dumps(job))


@pytest.fixture
def stage(rtx_python: str, tmp_path: Path) -> Run:
    """Run one stage in a folder of its own; return result.json."""
    count = iter(range(1000))

    def run(stage: str, model: Path, folder: str = "", **params: Any) -> dict[str, Any]:
        where = tmp_path / (folder or f"{stage}{next(count)}")
        _write_job(where, stage, model, params)
        done = subprocess.run(
            [rtx_python, "-m", "builder.worker", str(where)],
            cwd=where,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        result: dict[str, Any] = json.loads((where / "result.json").read_text())
        return {**result, "folder": where}

    return run


def _profile(name: str, low: Sequence[int], best: Sequence[int], high: Sequence[int]) -> list[dict[str, Any]]:
    return [{"name": "default", "inputs": {name: {"min": list(low), "opt": list(best), "max": list(high)}}}]


PROFILES = _profile("x", (1, 8, 8, 8), (1, 8, 16, 16), (2, 8, 32, 32))


def _save(path: Path, nodes: list[NodeProto], weights: dict[str, Any], dims: Sequence[int | str | None]) -> Path:
    """Write a model with FP32 input x and output y, both of the rank of `dims`."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, dims)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * len(dims))],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def convolutions(tmp_path: Path) -> Path:
    """Two convolutions with a resize by computed sizes: shape arithmetic is what TensorRT orders by pointers."""
    random = np.random.RandomState(0)
    weights = {
        "w1": random.randn(8, 8, 3, 3).astype(np.float32),
        "w2": random.randn(8, 8, 3, 3).astype(np.float32),
        "roi": np.array([], np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Resize", ["a", "roi", "scales"], ["b"], "resize", mode="nearest"),
        helper.make_node("Relu", ["b"], ["c"], "relu"),
        helper.make_node("Conv", ["c", "w2"], ["y"], "conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
    ]
    return _save(tmp_path / "model.onnx", nodes, weights, ["n", 8, "?", "?"])


def _lower(stage: Run, model: Path, precision: str, profiles: Sequence[Any] = PROFILES) -> tuple[Path, dict[str, Any]]:
    result = stage("lower", model, precision=precision, profiles=profiles)
    assert result["status"] == "ok", result["error"]
    return Path(result["folder"]) / "out" / "lowered.onnx", result["data"]


def _engine(result: dict[str, Any]) -> str:
    assert result["status"] == "ok", result["error"]
    return hashlib.sha256((Path(result["folder"]) / "out" / "model.plan").read_bytes()).hexdigest()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_the_same_bytes_in_folders_of_other_lengths(stage: Run, convolutions: Path, precision: str) -> None:
    lowered, data = _lower(stage, convolutions, precision)
    params = {"precision": precision, "profiles": PROFILES}
    examined = stage("examine", lowered, kept_fp32=data["kept_fp32"], **params)
    assert examined["data"]["realised"] == precision, examined["error"]
    assert (examined["data"]["compute_layers"], examined["data"]["share_basis"]) == (2, "macs")
    first = stage("build", lowered, folder="a", **params)
    second = stage("build", lowered, folder="b" * 100 + "/" + "c" * 100, **params)
    assert _engine(first) == _engine(second)
    assert first["data"]["repeatable"]
    assert first["data"]["profiles"] == PROFILES
    assert ("TF32" in first["data"]["flags"]) == (precision == "tf32")


@pytest.mark.parametrize("sms", [["7.5"], ["8.9"], ["12.0"]], ids=lambda sms: sms[0])
def test_every_generation(stage: Run, convolutions: Path, sms: list[str]) -> None:
    lowered, _ = _lower(stage, convolutions, "fp16")
    result = stage("build", lowered, precision="fp16", profiles=PROFILES, sms=sms)
    assert result["status"] == "ok", result["error"]
    assert result["data"]["sms"] == sms


def test_turing_has_no_bf16(stage: Run, convolutions: Path) -> None:
    lowered, _ = _lower(stage, convolutions, "bf16")
    error = stage("build", lowered, precision="bf16", profiles=PROFILES, sms=["7.5"])["error"]
    assert error["reason"] == "precision-unsupported"


def test_an_fp32_graph_passed_off_as_fp16_fails(stage: Run, convolutions: Path) -> None:
    lowered, _ = _lower(stage, convolutions, "fp32")
    error = stage("examine", lowered, precision="fp16", profiles=PROFILES)["error"]
    assert error["reason"] == "precision-silent-fp32"
    assert error["details"]["silent_fp32"] == ["conv1", "conv2"]


def test_a_kept_convolution_is_listed_and_passes(stage: Run, convolutions: Path) -> None:
    keep = {"nodes": ["conv2"], "ops": []}
    lowered = stage("lower", convolutions, precision="fp16", profiles=PROFILES, keep_fp32=keep)
    path = Path(lowered["folder"]) / "out" / "lowered.onnx"
    data = stage("examine", path, precision="fp16", profiles=PROFILES, kept_fp32=lowered["data"]["kept_fp32"])["data"]
    assert (data["realised"], data["kept_fp32"]) == ("mixed", ["conv2"])
    assert data["share"] == pytest.approx(0.5)


def test_a_node_that_tensorrt_refuses_is_named(stage: Run, tmp_path: Path) -> None:
    nodes = [helper.make_node("BitShift", ["i", "i"], ["j"], "shift_it", direction="LEFT")]
    nodes = [
        helper.make_node("Cast", ["x"], ["i"], "cast", to=TensorProto.UINT32),
        *nodes,
        helper.make_node("Cast", ["j"], ["y"], "back", to=TensorProto.FLOAT),
    ]
    path = _save(tmp_path / "model.onnx", nodes, {}, ["n", 4])
    profiles = _profile("x", (1, 4), (1, 4), (2, 4))
    error = stage("build", path, precision="fp32", profiles=profiles)["error"]
    assert error["reason"] == "op-unsupported"
    assert {"shift_it", "cast"} & {item["node"] for item in error["details"]["nodes"]}


def test_a_profile_that_the_graph_cannot_compute(stage: Run, tmp_path: Path) -> None:
    """Both axes are dynamic to ONNX; only TensorRT sees that 3 and 5 channels cannot be added."""
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], "add")]
    path = _save(tmp_path / "model.onnx", nodes, {"w": np.ones(5, np.float32)}, ["n", "c"])
    profiles = _profile("x", (1, 3), (1, 3), (1, 3))
    error = stage("build", path, precision="fp32", profiles=profiles)["error"]
    assert error["reason"] == "profile-invalid"
    assert error["details"]["errors"]


def test_fixed_channels(stage: Run, convolutions: Path) -> None:
    profiles = _profile("x", (1, 4, 8, 8), (1, 4, 8, 8), (1, 4, 8, 8))
    error = stage("build", convolutions, precision="fp32", profiles=profiles)["error"]
    assert (error["reason"], error["details"]["problems"][0]["axis"]) == ("profile-invalid", 1)


@pytest.mark.parametrize(
    ("params", "reason"),
    [
        ({"sms": ["7.5", "8.6"]}, "sm-unsupported"),
        ({"sms": ["9.0"]}, "sm-unsupported"),
        ({"options": {**OPTIONS, "strip_weights": True}}, "option-unsupported"),
        ({"options": {**OPTIONS, "version_compatible": True}}, "option-unsupported"),
    ],
)
def test_what_rtx_lacks(stage: Run, convolutions: Path, params: dict[str, Any], reason: str) -> None:
    assert stage("build", convolutions, precision="fp32", profiles=PROFILES, **params)["error"]["reason"] == reason


def test_a_static_model(stage: Run, tmp_path: Path) -> None:
    path = _save(tmp_path / "model.onnx", [helper.make_node("Relu", ["x"], ["y"], "relu")], {}, [1, 4])
    result = stage("build", path, precision="fp32", profiles=_profile("x", (1, 4), (1, 4), (1, 4)))
    assert result["status"] == "ok", result["error"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_model_with_branches(stage: Run, tmp_path: Path, precision: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(branching(), path)
    profiles = _profile("x", (1, 4), (2, 4), (4, 4))
    lowered, data = _lower(stage, path, precision, profiles)
    examined = stage("examine", lowered, precision=precision, profiles=profiles, kept_fp32=data["kept_fp32"])
    assert examined["data"]["realised"] == precision, examined["error"]
    assert _engine(stage("build", lowered, precision=precision, profiles=profiles))


def test_a_worker_whose_farm_is_gone_already_does_nothing(rtx_python: str, convolutions: Path, tmp_path: Path) -> None:
    _write_job(tmp_path / "late", "build", convolutions, {"precision": "fp32", "profiles": PROFILES})
    command = [rtx_python, "-m", "builder.worker", str(tmp_path / "late")]
    # the first process is not this one's
    done = subprocess.run(command, env=_environment() | {"ENGINEFARM_FARM": "0000000001"}, check=False)
    assert done.returncode == 1
    assert not list((tmp_path / "late" / "out").iterdir())
    done = subprocess.run(command, env=_environment() | {"ENGINEFARM_FARM": f"{os.getpid():010}"}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "late" / "result.json").exists()


def test_a_worker_dies_with_its_farm(rtx_python: str, convolutions: Path, tmp_path: Path) -> None:
    """The parent is killed while its worker waits; the worker must be gone soon after."""
    where = tmp_path / "orphan"
    _write_job(where, "build", convolutions, {"precision": "fp32", "profiles": PROFILES})
    (where / "job.json").unlink()
    os.mkfifo(where / "job.json")  # the worker waits here for ever
    script = (
        "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); time.sleep(99)"
    )
    parent = subprocess.Popen(
        [rtx_python, "-c", script, rtx_python, "-m", "builder.worker", str(where)],
        env=_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    time.sleep(1)  # past the start of Python, into the wait
    os.kill(worker, 0)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        if "Z" in Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]:
            return
        time.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlived its farm")
