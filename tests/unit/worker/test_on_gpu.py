"""Engines that verification builds to look inside, around a GPU that only pretends."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from builder.worker import on_gpu
from builder.worker.inputs import Case
from builder.worker.protocol import Job, StageFailure
from builder.worker.trt import Options, Request

CASE = Case("p", "opt", {"x": (2,)})
FEEDS = {"x": np.zeros(2, np.float32)}


class FakeEngine:
    outputs = ("y",)

    def __init__(self, machine: Machine, path: str) -> None:
        self.machine, self.path = machine, path
        machine.open.append(path)

    def run(self, profile: int, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert (profile, feeds) == (0, FEEDS)
        if self.machine.failing:
            raise StageFailure("out-of-memory", "the GPU has no more memory")
        return {"y": np.ones(2, np.float32)}

    def close(self) -> None:
        self.machine.open.remove(self.path)


class Machine:
    """Stands in for GPU and adapter; `open`: files of the engines that are loaded."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self.built: list[list[str]] = []
        self.failing = False

    def load(self, request: Any, cuda: Any, path: str) -> FakeEngine:
        return FakeEngine(self, path)

    def build_debug(self, request: Any, model: str, engine: str, tensors: list[str]) -> list[str]:
        # nobody would refit it
        assert not request.options.strip_weights
        self.built.append(tensors)
        return tensors


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Put the pretended machine in place."""
    made = Machine()
    device = SimpleNamespace(name="NVIDIA H200", sm="9.0")
    monkeypatch.setattr(on_gpu, "Cuda", lambda: SimpleNamespace(device=device))
    monkeypatch.setattr(on_gpu, "adapter", lambda family: made)
    monkeypatch.setattr(on_gpu, "gpu_adapter", lambda family: made)
    options = Options(None, None, "none", version_compatible=False, strip_weights=True)
    monkeypatch.setattr(on_gpu, "loadable", lambda job, request: f"{job.inputs['engine']} refitted")
    monkeypatch.setattr(on_gpu, "read_request", lambda job: Request("trt8", "tensorrt", "fp16", [], [], options))
    return made


@pytest.mark.parametrize("failing", [False, True])
def test_an_engine_to_look_into_does_not_stay_in_memory(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, *, failing: bool
) -> None:
    profiles = [{"name": "p", "inputs": {"x": {"min": [1], "opt": [2], "max": [4]}}}]
    params = {"precision": "fp32", "profiles": profiles, "tolerance": {"default": {"max_abs": 1.0}, "outputs": {}}}
    job = Job("verify", "j", {"engine": "in/engine.plan", "lowered": "in/lowered.onnx"}, params)
    seen: list[str] = []

    def explain(lowered: Any, job: Job, finding: Any, run_debug: Any) -> None:
        for tensors in (["a"], ["b", "c"]):
            machine.failing = failing
            try:
                assert sorted(run_debug(tensors)) == ["y"]
            except StageFailure as failure:
                seen.append(failure.reason)

    same = {"y": np.zeros(2, np.float32)}
    graph: Any = None
    monkeypatch.setattr(on_gpu, "explain", explain)
    monkeypatch.setattr(on_gpu, "emulated", lambda *_, **__: None)
    monkeypatch.setattr(on_gpu, "session", lambda model: None)
    monkeypatch.setattr(on_gpu, "run_session", lambda opened, feeds: same)
    candidate = on_gpu.OnGpu(job, graph)
    assert candidate.blame(CASE, "y", {"max_abs": 2.0, "nonfinite": 0}, FEEDS) is None
    assert machine.built == [["a"], ["b", "c"]]
    assert seen == ["out-of-memory"] * 2 * failing
    # the engine that is verified stays
    assert machine.open == ["in/engine.plan refitted"]
