"""A farm for tests: projects with toy recipes, and one set of installed environments for all of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import NodeProto, TensorProto, helper, numpy_helper

from builder.bases import load_bases
from builder.docker_engine import DockerEngine
from builder.environments import install, locate
from builder.image_record import ImageRecord
from builder.images import ImageBuilder
from builder.project import Home, Project
from builder.stacks import load_stacks

ROOT = Path(__file__).parents[2]
FLOAT = TensorProto.FLOAT


@dataclass(frozen=True)
class Farm:
    """A project of its own and a home whose environments are shared."""

    project: Path
    home: Path
    executor: str = "local"

    def start(self, *arguments: str, **environ: str) -> subprocess.Popen[str]:
        """Start `enginefarm`."""
        dropped = {"CI", "FORCE_COLOR", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "COLUMNS"}
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        own = {"ENGINEFARM_HOME": str(self.home), "ENGINEFARM_EXECUTOR": self.executor, "PYTHONPATH": path}
        env = {**kept, **own, **environ}
        command = [sys.executable, "-c", "import sys; from builder.cli import main; sys.exit(main())", *arguments]
        return subprocess.Popen(
            command, cwd=self.project, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `enginefarm` to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=600)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def build(self, *arguments: str, code: int = 0, **environ: str) -> list[dict[str, Any]]:
        """Build for Ampere and return the jobs of the report; the exit code must be as said."""
        process = self.start("build", "--target", "ampere", "--json", *arguments, **environ)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, err
        jobs: list[dict[str, Any]] = json.loads(out)["jobs"]
        return jobs

    def recipe(self, name: str, model: onnx.ModelProto, shapes: dict[str, Any], **changes: Any) -> Path:
        """Write a recipe around an ONNX model."""
        folder = self.project / "recipes" / name
        folder.mkdir(parents=True, exist_ok=True)
        content = model.SerializeToString(deterministic=True)
        (folder / "model.onnx").write_bytes(content)
        document: dict[str, Any] = {
            "name": name,
            "description": "a toy",
            "licence": "MIT",
            "source": {"kind": "onnx", "path": "model.onnx", "sha256": hashlib.sha256(content).hexdigest()},
            "profiles": [{"inputs": shapes}],
            "precisions": {"fp16": {"tolerance": {"default": {"max_abs": 0.05}}}},
            "inputs": {key: {"values": {"kind": "uniform", "low": 0.5, "high": 1.0}} for key in shapes},
        }
        path = folder / "recipe.yaml"
        path.write_text(yaml.safe_dump(document | changes), encoding="utf-8")
        return path


def shared_home() -> Home:
    """Return the home whose environments all tests share: ENGINEFARM_TEST_HOME, or one below the user's cache."""
    given = os.environ.get("ENGINEFARM_TEST_HOME")
    return Home(root=Path(given) if given else Path("~/.cache/enginefarm-tests").expanduser())


def installed(stack: str, log: Path) -> Path:
    """Return the Python of a stack's environment, installed once for all tests."""
    environment = locate(load_stacks(ROOT / "images")[stack], shared_home())
    install(environment, shared_home(), log, threading.Event())
    return environment.python


def build_image(stack: str) -> ImageRecord:
    """Return a stack's image, built once for all tests."""
    project = Project(root=ROOT)
    builder = ImageBuilder(
        project=project,
        home=shared_home(),
        bases=load_bases(project.images),
        engine=DockerEngine(),
        listen=lambda _: None,
        cancel=threading.Event(),
    )
    return builder.build(load_stacks(project.images)[stack])


def share_environments(home: Path) -> None:
    """Let a home use the shared environments, fetched files, base images and records of images."""
    home.mkdir(parents=True, exist_ok=True)
    for name in ("envs", "fetch", "bases", "images"):
        target = shared_home().root / name
        target.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(target)


def graph(
    nodes: list[NodeProto], weights: dict[str, Any], shape: list[Any], out: list[Any] | None = None
) -> onnx.ModelProto:
    """Make a model from input x to output y."""
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, shape if out is None else out)],
        [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()],
    )
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(made, opset_imports=domains, ir_version=8)


def product(width: int = 8, seed: int = 0) -> onnx.ModelProto:
    """Make one matrix product."""
    weight = np.random.RandomState(seed).randn(width, width) / width
    return graph([helper.make_node("MatMul", ["x", "w"], ["y"], name="product")], {"w": weight}, ["n", width])


def shapes(low: int = 1, best: int = 2, high: int = 4, width: int = 8) -> dict[str, Any]:
    """Make the shape profile of `product`."""
    return {"x": {"min": [low, width], "opt": [best, width], "max": [high, width]}}
