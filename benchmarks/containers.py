"""Measures what a container adds to a stage, and what images weigh; writes a Markdown table.

Usage: python benchmarks/containers.py [--rounds N] [--out FILE]. Needs a Docker Engine. The image of TensorRT-RTX
is built if it is not there; the table lists the images that fit the checkout now.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import platform
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from builder.bases import load_bases
from builder.docker_engine import DockerEngine
from builder.executors import EXECUTORS, Executor
from builder.executors.context import ExecutorContext
from builder.image_record import ImageRecord, newest_fitting, records
from builder.project import Project, find_home
from builder.stacks import Stack, load_stacks
from builder.stage import StageRequest

ROOT = Path(__file__).parent.parent
STACK = "trtrtx1.7-cuda13"


def overhead(executor: Executor, stack: Stack, model: Path, folder: Path) -> float:
    """Run one stage; return the seconds beyond those that the worker itself counts."""
    shape = {"min": [1, 64], "opt": [2, 64], "max": [4, 64]}
    params: dict[str, Any] = {"precision": "fp32", "profiles": [{"name": "p", "inputs": {"x": shape}}]}
    params["keep_fp32"] = {"nodes": [], "ops": []}
    request = StageRequest(
        job="benchmark", stage="lower", inputs={"model": model}, params=params, folder=folder, timeout_s=60.0
    )
    started = time.perf_counter()
    executor.run(stack, request)
    seconds = time.perf_counter() - started
    own: float = json.loads((folder / "result.json").read_text(encoding="utf-8"))["seconds"]
    return seconds - own


def make_model(path: Path) -> None:
    """Write a model of one matrix product."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def measure(rounds: int) -> dict[str, list[float]]:
    """Run stages with both executors in turn."""
    project, home = Project(root=ROOT), find_home()
    context = ExecutorContext(project=project, home=home, install=True, cancel=threading.Event(), listen=lambda _: None)
    stack = load_stacks(project.images)[STACK]
    executors = {name: make(context) for name, make in EXECUTORS.items()}
    found: dict[str, list[float]] = {name: [] for name in executors}
    with tempfile.TemporaryDirectory() as name:
        make_model(Path(name) / "model.onnx")
        for round_ in range(rounds + 1):
            for executor_name, executor in executors.items():
                executor.prepare(stack, home.logs / "benchmark.log")
                folder = Path(name) / "run" / f"{executor_name}{round_}" / "lower"
                seconds = overhead(executor, stack, Path(name) / "model.onnx", folder)
                if round_:  # the first one warms up
                    found[executor_name].append(seconds)
    return found


def fitting() -> list[ImageRecord]:
    """Return the images that are built and fit the checkout."""
    images = ROOT / "images"
    bases, known = load_bases(images), [record for _, record in records(find_home())]
    stacks = list(load_stacks(images).values())
    stacks += [stack.with_lock(variant) for stack in stacks for variant in stack.spec.image.locks]
    return [record for stack in stacks if (record := newest_fitting(stack, bases, known)) is not None]


def report(found: dict[str, list[float]], rounds: int) -> str:
    """Write the tables."""
    engine = DockerEngine().info().version
    lines = [
        "# Containers and images",
        "",
        f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}, Docker Engine {engine}, Linux {platform.release()}.",
        f"Python {platform.python_version()}, `python benchmarks/containers.py --rounds {rounds}`.",
        "",
        "Seconds of one stage beyond what its worker counts for itself (interpreter, container, files):",
        "",
        "| executor | median | least | most |",
        "|---|---:|---:|---:|",
    ]
    for name, seconds in found.items():
        lines.append(f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} | {max(seconds):.2f} |")
    lines += ["", "| image | base | compressed | largest layer |", "|---|---|---:|---:|"]
    for record in fitting():
        name = f"{record.stack} --lock {record.variant}" if record.variant else record.stack
        base = "stand-in" if record.standin else "pinned"
        largest = max(layer.size for layer in record.layers)
        lines.append(f"| {name} | {base} | {record.compressed_bytes / 1e6:.0f} MB | {largest / 1e6:.0f} MB |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "containers.md")
    options = parser.parse_args()
    text = report(measure(options.rounds), options.rounds)
    options.out.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
