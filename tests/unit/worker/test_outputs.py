"""Stage `outputs`: engines that only pretend, on the inputs of every shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from builder.worker import outputs
from builder.worker.protocol import Job, StageFailure

Arrays = dict[str, np.ndarray]
TOLERANCE = {"default": {"max_abs": 0.1}, "outputs": {"loose": {"max_abs": 10.0}}}
SHAPES = {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}


class Machine:
    """Stands in for GPU, TensorRT and engines: a path to what its engine computes."""

    def __init__(self) -> None:
        self.engines: dict[str, Callable[[Arrays], Arrays]] = {}
        self.loaded: list[str] = []
        self.alive = 0
        self.most = 0

    def load(self, request: Any, cuda: Any, path: str) -> Any:
        assert request.family == "trt8"
        return Engine(self, path)


class Engine:
    def __init__(self, machine: Machine, path: str) -> None:
        self.machine, self.path = machine, path
        machine.loaded.append(path)
        machine.alive += 1
        machine.most = max(machine.most, machine.alive)

    def close(self) -> None:
        self.machine.alive -= 1

    def run(self, profile: int, feeds: Arrays) -> Arrays:
        assert profile == 0
        return self.machine.engines[self.path](feeds)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Put the pretended machine in place."""
    pretended = Machine()
    monkeypatch.setattr(outputs, "Cuda", lambda: SimpleNamespace(device=SimpleNamespace(name="NVIDIA H200")))
    monkeypatch.setattr(outputs, "adapter", lambda family: pretended)
    pretended.engines["engine.plan"] = double
    return pretended


def double(feeds: Arrays) -> Arrays:
    return {"y": feeds["x"] * 2, "loose": feeds["x"] + 1}


def off(amount: float, name: str = "y") -> Callable[[Arrays], Arrays]:
    def run(feeds: Arrays) -> Arrays:
        made = double(feeds)
        made[name] = made[name] + np.float32(amount * len(made[name]))
        return made

    return run


def job(*rebuilt: str, **inputs: str) -> Job:
    options = {"workspace_mib": None, "optimization_level": None, "hardware_compatibility": "none"}
    params = {
        "family": "trt8",
        "import_name": "tensorrt",
        "precision": "fp16",
        "sms": ["9.0"],
        "options": {**options, "version_compatible": False, "strip_weights": False},
        "profiles": [{"name": "default", "inputs": {"x": SHAPES}}],
        "inputs": {"x": {"dtype": "float32", "kind": "normal", "seed": 0, "mean": 0.0, "std": 1.0}},
        "tolerance": TOLERANCE,
    }
    files = {f"rebuilt_{index}": path for index, path in enumerate(rebuilt)}
    return Job("outputs", "job", {"engine": "engine.plan", **files, **inputs}, params)


def test_the_four_ways_that_outputs_can_compare(machine: Machine) -> None:
    machine.engines |= {"same": double, "near": off(0.01), "far": off(1.0), "loose": off(1.0, "loose")}
    outcome = outputs.run(job("same", "near", "far", "loose"))
    assert outcome.outputs == {}
    data = outcome.data
    assert data["device"] == "NVIDIA H200"
    assert data["cases"] == ["default/min", "default/opt", "default/max"]
    assert data["repeats"] is True
    same, near, far, loose = data["rebuilt"]
    assert [(one["equal"], one["within"]) for one in data["rebuilt"]] == [
        (True, True),
        (False, True),
        (False, False),
        # an output has the tolerance of its own
        (False, True),
    ]
    assert same["outputs"]["y"]["max_abs"] == 0.0
    # the worst case is the one that is reported
    assert near["outputs"]["y"]["case"] == "default/max"
    assert near["outputs"]["y"]["max_abs"] == pytest.approx(0.04, rel=1e-3)
    assert far["outputs"]["loose"]["max_abs"] == 0.0
    assert loose["outputs"]["loose"]["mse"] == pytest.approx(16.0)
    json.dumps(data)


def test_one_engine_at_a_time(machine: Machine) -> None:
    machine.engines |= {"one": double, "two": double}
    outputs.run(job("one", "two"))
    assert machine.loaded == ["engine.plan", "one", "two"]
    assert machine.most == 1


def test_order_is_that_of_numbers(machine: Machine) -> None:
    names = [f"engine-{number}" for number in range(12)]
    machine.engines |= dict.fromkeys(names, double)
    outputs.run(job(*names))
    assert machine.loaded[1:] == names


def test_an_engine_that_does_not_repeat_itself(machine: Machine) -> None:
    calls: list[int] = []

    def moody(feeds: Arrays) -> Arrays:
        calls.append(1)
        return {"y": feeds["x"] + np.float32(len(calls) * 1e-4), "loose": feeds["x"]}

    machine.engines |= {"engine.plan": moody, "again": moody}
    data = outputs.run(job("again")).data
    assert data["repeats"] is False
    assert (data["rebuilt"][0]["equal"], data["rebuilt"][0]["within"]) == (False, True)


@pytest.mark.parametrize(("value", "equal", "within"), [(np.nan, True, True), (np.inf, True, True)])
def test_equal_infinities_are_equal(machine: Machine, value: float, equal: bool, within: bool) -> None:
    def run(feeds: Arrays) -> Arrays:
        return {"y": np.full_like(feeds["x"], value), "loose": feeds["x"]}

    machine.engines |= {"engine.plan": run, "again": run}
    (one,) = outputs.run(job("again")).data["rebuilt"]
    assert (one["equal"], one["within"]) == (equal, within)


def test_a_value_that_is_not_finite_in_the_rebuilt_one_only(machine: Machine) -> None:
    def run(feeds: Arrays) -> Arrays:
        made = double(feeds)
        made["y"][0, 0] = np.nan
        return made

    machine.engines["broken"] = run
    (one,) = outputs.run(job("broken")).data["rebuilt"]
    assert (one["equal"], one["within"]) == (False, False)
    assert one["outputs"]["y"]["max_abs"] is None
    assert one["outputs"]["y"]["nonfinite"] == 1


@pytest.mark.parametrize("other", [lambda x: x[:1], lambda x: x.astype(np.float16)])
def test_another_shape_or_type_is_not_equal(machine: Machine, other: Callable[[np.ndarray], np.ndarray]) -> None:
    def run(feeds: Arrays) -> Arrays:
        return {**double(feeds), "y": other(feeds["x"] * 2)}

    machine.engines["other"] = run
    (one,) = outputs.run(job("other")).data["rebuilt"]
    assert one["equal"] is False


def test_recorded_inputs_are_used(machine: Machine, tmp_path: Path) -> None:
    seen: list[float] = []

    def run(feeds: Arrays) -> Arrays:
        seen.append(float(feeds["x"][0, 0]))
        return double(feeds)

    machine.engines["engine.plan"] = run
    recorded: dict[str, Any] = {
        f"default/{point}|{role}|{name}": np.full((1, 3), number, np.float32)
        for number, point in enumerate(("min", "opt", "max", "above0"))
        for role, name in (("in", "x"), ("out", "y"))
    }
    path = tmp_path / "reference.npz"
    np.savez(path, **recorded)
    outputs.run(job(reference=str(path)))
    assert seen == [0.0, 1.0, 2.0, 0.0, 1.0, 2.0]


def test_a_case_without_recorded_inputs(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    recorded: dict[str, Any] = {"default/min|in|x": np.zeros((1, 3), np.float32)}
    np.savez(path, **recorded)
    with pytest.raises(StageFailure, match="default/opt") as caught:
        outputs.run(job(reference=str(path)))
    assert caught.value.reason == "input-invalid"


def test_each_engine_is_loaded_with_its_weights(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "loadable", lambda job, request, role="engine": f"{job.inputs[role]} refitted")
    machine.engines = {"engine.plan refitted": double, "one refitted": double}
    assert outputs.run(job("one")).data["rebuilt"][0]["equal"] is True
    assert machine.loaded == ["engine.plan refitted", "one refitted"]
