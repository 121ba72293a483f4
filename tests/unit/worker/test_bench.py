"""The stage bench with a GPU and an engine that only count."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from builder.worker import bench, timing
from builder.worker.bench import CudaClock, EngineBench
from builder.worker.cuda import Device
from builder.worker.protocol import Job, StageFailure
from builder.worker.turn_files import Turns

Arrays = dict[str, np.ndarray]
MIB = 1 << 20


class FakeCuda:
    """A GPU on which each run takes a tenth of a millisecond. `log` tells what was put on the stream."""

    device = Device("NVIDIA H200", "9.0", "GPU-1", "13.0")

    def __init__(self) -> None:
        self.free = 1000 * MIB
        self.now = 0.0
        self.events: list[float] = []
        self.log: list[str] = []
        self.capturing = False
        self.refuses_graphs = False
        self.graphs: list[Callable[[], None]] = []

    def memory(self) -> tuple[int, int]:
        return self.free, 2000 * MIB

    def stream(self) -> int:
        return 7

    def synchronize(self, stream: int = 0) -> None:
        self.log.append("wait")

    def event(self) -> int:
        self.events.append(0.0)
        return len(self.events) - 1

    def record(self, event: int, stream: int) -> None:
        assert stream == 7
        self.events[event] = self.now

    def elapsed_ms(self, start: int, stop: int) -> float:
        return self.events[stop] - self.events[start]

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        if self.refuses_graphs:
            raise StageFailure("build-failed", "the GPU refuses cuStreamEndCapture", why="CUDA says no")
        self.capturing = True
        enqueue()
        self.capturing = False
        self.graphs.append(enqueue)
        return len(self.graphs)

    def launch(self, graph: int, stream: int) -> None:
        assert self.graphs[graph - 1] is not None
        self.log.append("launch")
        self.now += 0.1


class FakeEngine:
    """Doubles its input."""

    inputs, outputs = ["x"], ["y"]
    num_profiles, num_layers, device_memory_bytes = 1, 42, 12 * MIB

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.prepared: list[tuple[int, dict[str, Any]]] = []
        self.values = np.zeros(0, np.float32)
        cuda.free -= 60 * MIB

    def prepare(self, profile: int, shapes: dict[str, Any]) -> None:
        self.prepared.append((profile, shapes))
        self.cuda.free -= 5 * MIB

    def feed(self, arrays: Arrays) -> None:
        self.values = arrays["x"]

    def enqueue(self, stream: int) -> None:
        assert stream == 7
        if not self.cuda.capturing:
            self.cuda.log.append("enqueue")
            self.cuda.now += 0.2

    def copy_in(self, stream: int) -> None:
        self.cuda.log.append("in")

    def copy_out(self, stream: int) -> None:
        self.cuda.log.append("out")

    def fetch(self) -> Arrays:
        return {"y": self.values * 2}


class FakeAdapter:
    """Loads fake engines."""

    def load(self, request: Any, cuda: FakeCuda, engine: str) -> FakeEngine:
        assert engine == "in/engine"
        return FakeEngine(cuda)


PROFILES = [
    {"name": "a", "inputs": {"x": {"min": [1, 4], "opt": [2, 4], "max": [3, 4]}}},
    {"name": "b", "inputs": {"x": {"min": [5, 4], "opt": [6, 4], "max": [7, 4]}}},
]
OPTIONS = {
    "workspace_mib": None,
    "optimization_level": None,
    "hardware_compatibility": "none",
    "version_compatible": False,
    "strip_weights": False,
}


def job(points: tuple[str, ...] = ("opt",)) -> Job:
    params = {
        "family": "trt8",
        "import_name": "fake_trt",
        "precision": "fp16",
        "sms": ["9.0"],
        "options": OPTIONS,
        "profiles": PROFILES,
        "points": list(points),
        "inputs": {"x": {"dtype": "float32", "kind": "normal", "seed": 0, "mean": 0.0, "std": 1.0}},
    }
    return Job("bench", "tiny", {"engine": "in/engine"}, params)


WISH = {"do": "measure", "case": "a/opt", "warmup": 4, "iterations": 10}


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    module = ModuleType("fake_trt")
    module.__dict__["__version__"] = "8.6.0"
    monkeypatch.setitem(sys.modules, "fake_trt", module)
    monkeypatch.setattr(bench, "adapter", lambda family: FakeAdapter())
    # clocks that rise at once
    monkeypatch.setattr(timing, "WARM_UP_S", 0.0)
    before = Path.cwd()
    os.chdir(tmp_path)
    yield
    os.chdir(before)


def opened(cuda: FakeCuda, points: tuple[str, ...] = ("opt",)) -> EngineBench:
    return EngineBench(job(points), cuda)  # type: ignore[arg-type]


def test_facts() -> None:
    facts = opened(FakeCuda()).facts
    assert facts["tensorrt"] == "8.6.0"
    assert facts["device"]["sm"] == "9.0"
    assert facts["cases"] == [
        {"name": "a/opt", "shapes": {"x": [2, 4]}},
        {"name": "b/opt", "shapes": {"x": [6, 4]}},
    ]
    assert (facts["context_bytes"], facts["loaded_bytes"], facts["used_bytes"]) == (12 * MIB, 60 * MIB, 70 * MIB)
    assert (facts["layers"], facts["graph"], facts["no_graph"]) == (42, True, "")


def test_one_block() -> None:
    cuda = FakeCuda()
    found = opened(cuda).measure(WISH)
    series = found["series"]
    assert {way: sorted(clocks) for way, clocks in series.items()} == {
        "graph": ["gpu", "wall"],
        "engine": ["gpu", "wall"],
        "copies": ["wall"],
    }
    assert all(len(times) == 10 for clocks in series.values() for times in clocks.values())
    assert series["graph"]["gpu"] == pytest.approx([0.1] * 10)
    assert series["engine"]["gpu"] == pytest.approx([0.2] * 10)
    assert found["warmup_runs"] == 4


def test_copies_go_round_the_graph() -> None:
    cuda = FakeCuda()
    one = opened(cuda)
    cuda.log.clear()
    one.measure({**WISH, "iterations": 1, "warmup": 0})
    assert cuda.log[-4:] == ["in", "launch", "out", "wait"]


def test_wall_waits_for_each_run_and_gpu_does_not() -> None:
    cuda = FakeCuda()
    one = opened(cuda)
    cuda.log.clear()
    one.measure({**WISH, "warmup": 0, "iterations": 3})
    text = " ".join(cuda.log)
    assert "enqueue wait enqueue wait enqueue wait enqueue enqueue enqueue wait" in text
    assert "launch wait launch wait launch wait launch launch launch wait" in text


def test_engine_that_no_graph_can_hold() -> None:
    cuda = FakeCuda()
    cuda.refuses_graphs = True
    one = opened(cuda)
    assert not one.facts["graph"]
    assert one.facts["no_graph"] == "the GPU refuses cuStreamEndCapture\nCUDA says no"
    assert sorted(one.measure(WISH)["series"]) == ["copies", "engine"]
    assert "launch" not in cuda.log


def test_graph_that_is_lost_fails() -> None:
    cuda = FakeCuda()
    one = opened(cuda)
    cuda.refuses_graphs = True
    # b/opt was in place last: a/opt is prepared anew
    with pytest.raises(StageFailure, match="cuStreamEndCapture"):
        one.measure(WISH)


def test_shapes_are_set_when_they_change() -> None:
    cuda = FakeCuda()
    one = opened(cuda, ("min", "opt", "max"))
    engine: Any = one._engine
    assert [shapes["x"] for _, shapes in engine.prepared] == [(1, 4), (2, 4), (3, 4), (5, 4), (6, 4), (7, 4)]
    assert [profile for profile, _ in engine.prepared] == [0, 0, 0, 1, 1, 1]
    for case in ("b/max", "b/max", "a/opt"):
        one.measure({**WISH, "case": case})
    assert engine.prepared[6:] == [(0, {"x": (2, 4)})]


def test_events_are_used_again() -> None:
    cuda = FakeCuda()
    clock = CudaClock(cuda, 7)  # type: ignore[arg-type]
    for _ in range(3):
        clock.mark()
        clock.mark()
        clock.wait()
    assert len(cuda.events) == 2


def test_outputs_are_compared() -> None:
    one = opened(FakeCuda())
    own = one._outputs["a/opt"]["y"]
    with open("theirs.npz", "wb") as file:  # noqa: PTH123
        np.savez(file, **{"a/opt|y": own + np.float32(0.5), "a/opt|z": own, "c/opt|y": own})
    found = one.compare({"eager": "theirs.npz"})
    assert list(found["eager"]) == ["a/opt"]
    assert list(found["eager"]["a/opt"]) == ["y"]
    assert found["eager"]["a/opt"]["y"]["mse"] == pytest.approx(0.25)


def test_an_engine_is_loaded_with_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[str] = []

    def load(request: Any, cuda: Any, path: str) -> Any:
        paths.append(path)
        raise StageFailure("engine-invalid", "enough")

    monkeypatch.setattr(bench, "adapter", lambda family: SimpleNamespace(load=load))
    monkeypatch.setattr(bench, "loadable", lambda job, request: "out/refitted.plan")
    with pytest.raises(StageFailure, match="enough"):
        bench.EngineBench(job(), FakeCuda())  # type: ignore[arg-type]
    assert paths == ["out/refitted.plan"]


def test_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "Cuda", FakeCuda)
    monkeypatch.setattr(Turns, "requests", lambda self: iter([WISH, {"do": "compare", "files": {}}]))
    answers: list[dict[str, Any]] = []
    monkeypatch.setattr(Turns, "answer", lambda self, document: answers.append(document))
    outcome = bench.run(job())
    assert Path("turn/ready.json").is_file()
    assert "series" in answers[0]
    assert answers[1] == {}
    assert outcome.data["layers"] == 42
