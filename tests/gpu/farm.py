"""A farm that builds on this machine's GPU with TensorRT 8.6.0, in its image: through Docker or unpacked (rootfs)."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import EnginefarmError
from builder.executors import EXECUTORS
from builder.executors.context import ExecutorContext
from builder.gpu import visible_gpus
from builder.project import Home, Project
from builder.recipe import BuildOptions
from builder.stacks import load_stacks
from builder.stage import StageRequest
from tests.integration.farm import Farm

STACK, LOCK = "trt8.6-cuda12.0", "8.6.0"
# classic TensorRT takes seconds to make a builder, and tunes for many more
TIMEOUT_S = 900


@dataclass(frozen=True)
class GpuFarm(Farm):
    """A farm for the SM of this machine's first GPU."""

    target: str = ""

    def tune(self, *arguments: str, code: int = 0, target: str | None = None, **environ: str) -> dict[str, Any]:
        """Build with TensorRT 8.6.0 and return the report; the exit code must be as said."""
        chosen = ["--stack", STACK, "--lock", LOCK, "--target", target or self.target]
        process = self.start("build", "--json", *chosen, *arguments, **environ)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, err
        document: dict[str, Any] = json.loads(out) if out.strip() else {}
        return document | {"stderr": err}

    def load_directly(self, engine: Path) -> str:
        """Give a file to the stage that runs engines, without what the farm checks before; return its reason."""
        project, home = Project(root=self.project), Home(root=self.home)
        stack = load_stacks(project.images)[STACK].with_lock(LOCK)
        context = ExecutorContext(
            project=project, home=home, install=False, cancel=threading.Event(), listen=lambda _: None
        )
        executor = EXECUTORS[self.executor](context)
        request = StageRequest(
            job="bad",
            stage="examine",
            inputs={"engine": engine, "lowered": next(self.project.glob("recipes/*/model.onnx"))},
            params={
                "precision": "fp32",
                "profiles": [{"name": "p", "inputs": {"x": {"min": [1, 8], "opt": [2, 8], "max": [4, 8]}}}],
                "family": stack.build.family,
                "import_name": stack.build.import_name,
                "sms": [visible_gpus(os.environ)[0].sm],
                "options": BuildOptions().model_dump(mode="json"),
                "engine_layers": True,
            },
            folder=self.home / "work" / "direct" / "bad" / "examine",
            timeout_s=TIMEOUT_S,
            gpu=visible_gpus(os.environ)[0].uuid,
        )
        try:
            executor.run(stack, request)
        except EnginefarmError as error:
            return error.reason.value.slug
        return "taken"
