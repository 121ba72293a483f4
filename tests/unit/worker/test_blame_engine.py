"""Finding the node at fault inside an engine, with an engine that is made up: the graph itself plus one fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from builder.worker import blame, low_precision
from builder.worker.emulate import emulated
from builder.worker.inputs import Case
from builder.worker.metrics import breaches, compare
from builder.worker.protocol import Job, StageFailure
from tests.unit.worker.graphs import model

Arrays = dict[str, np.ndarray]
CASE = Case("p", "opt", {"x": (2, 4)})
FEEDS = {"x": np.random.RandomState(0).uniform(1, 2, (2, 4)).astype(np.float32)}
LIMITS = {"max_abs": 0.05}


def chain(count: int) -> ModelProto:
    names = ["x", *(f"t{index}" for index in range(count - 1)), "y"]
    nodes = [
        helper.make_node("Mul", [names[index], f"c{index}"], [names[index + 1]], f"scale{index}")
        for index in range(count)
    ]
    values = np.random.RandomState(1).uniform(0.9, 1.1, count).astype(np.float32)
    return model(nodes, {f"c{index}": value for index, value in enumerate(values)})


def lower(graph: ModelProto, precision: str) -> ModelProto:
    if precision not in ("fp16", "bf16"):
        return graph
    return low_precision.lower(graph, precision, {"nodes": [], "ops": []})[0]


class FakeEngine:
    """Runs the emulated graph with another operation put behind the value of one node; counts the engines."""

    def __init__(self, lowered: ModelProto, precision: str, node: str, fault: float = 2.0) -> None:
        self.model = emulated(lowered, precision)
        names = {item.name: item for item in lowered.graph.node}
        self.value, self.fault = names[node].output[0], fault
        self.asked: list[list[str]] = []
        # values that TensorRT does not know, and from how many outputs on the fault is gone
        self.unknown: set[str] = set()
        self.gone_from = 1000

    def __call__(self, tensors: list[str]) -> Arrays:
        self.asked.append(tensors)
        broken = onnx.ModelProto()
        broken.CopyFrom(self.model)
        if len(tensors) < self.gone_from:
            self._break(broken)
        got = blame._run_exposed(broken, tensors, FEEDS)
        return {name: values for name, values in got.items() if name not in self.unknown}

    def _break(self, broken: ModelProto) -> None:
        nodes = []
        for node in broken.graph.node:
            if self.value in node.output:
                node.output[list(node.output).index(self.value)] = "__right"
                nodes += [node, helper.make_node("Mul", ["__right", "__fault"], [self.value], "fault")]
            else:
                nodes.append(node)
        del broken.graph.node[:]
        broken.graph.node.extend(nodes)
        broken.graph.initializer.append(numpy_helper.from_array(np.float32(self.fault), "__fault"))


def explain(
    lowered: ModelProto, precision: str, run: Callable[[list[str]], Arrays], limits: dict[str, float] = LIMITS
) -> StageFailure:
    params = {"precision": precision, "tolerance": {"default": limits, "outputs": {}}}
    plain = blame._run_exposed(emulated(lowered, precision, rounding=False), [], FEEDS)["y"]
    try:
        got = run([])["y"]
    except StageFailure:
        got = plain * 3
    metrics = compare(plain, got)
    found = breaches(metrics, limits)
    return blame.on_gpu(lowered, Job("verify", "j", {}, params), CASE, "y", found, metrics, FEEDS, run)


@pytest.mark.parametrize("precision", ["fp16", "fp32", "tf32", "bf16"])
@pytest.mark.parametrize("place", [0, 1, 37, 98, 99])
def test_the_node_is_found_in_a_chain(precision: str, place: int) -> None:
    lowered = lower(chain(100), precision)
    engine = FakeEngine(lowered, precision, f"scale{place}")
    failure = explain(lowered, precision, engine, {"max_abs": 0.5})
    assert failure.reason == "numerics-tolerance"
    assert (failure.details["node"], failure.details["op"]) == (f"scale{place}", "Mul")
    assert failure.details["not_cleared"] == []
    assert failure.details["layers"][0]["after"] > 0.9
    assert failure.details["layers"][0]["before"] < 0.1
    assert "output y at p/opt" in failure.message
    assert "max_abs is" in failure.message
    assert f"the error jumps at scale{place} (Mul)" in failure.why
    assert "which TensorRT fuses less" in failure.why
    # the first run gave the metrics
    assert failure.details["debug_engines"] == len(engine.asked) - 1 <= 6
    assert all(len(tensors) <= 6 for tensors in engine.asked)


def test_the_remedy_fits_the_precision() -> None:
    half, single = lower(chain(8), "fp16"), chain(8)
    assert "keep_fp32: {nodes: [scale3]}" in explain(half, "fp16", FakeEngine(half, "fp16", "scale3")).fix
    fix = explain(single, "fp32", FakeEngine(single, "fp32", "scale3")).fix
    assert "keep_fp32" not in fix
    assert "optimization_level" in fix


def test_a_fault_in_one_of_two_branches() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["left0"], "left in"),
        helper.make_node("Neg", ["x"], ["right0"], "neg"),
    ]
    nodes += [
        helper.make_node("Mul", [f"{side}{index}", "c"], [f"{side}{index + 1}"], f"{side} node {index}")
        for side in ("left", "right")
        for index in range(20)
    ]
    nodes.append(helper.make_node("Sub", ["left20", "right20"], ["y"], "join"))
    graph = model(nodes, {"c": np.float32(1.01)})
    for name in ("left node 7", "right node 7", "join"):
        failure = explain(graph, "fp32", FakeEngine(graph, "fp32", name))
        assert (failure.details["node"], failure.details["not_cleared"]) == (name, [])


def test_the_first_value_that_is_not_finite() -> None:
    lowered = lower(chain(50), "fp16")
    failure = explain(lowered, "fp16", FakeEngine(lowered, "fp16", "scale20", fault=float("inf")))
    assert failure.reason == "numerics-nonfinite"
    assert failure.message == "output y at p/opt in fp16 has 8 inf or NaN values"
    assert failure.details["node"] == "scale20"
    assert failure.details["layers"] == [
        {"node": "scale20", "op": "Mul", "before": pytest.approx(0, abs=1e-2), "after": None}
    ]
    assert "scale20 (Mul) is the first that is not finite" in failure.why


def test_a_fault_that_goes_away_with_many_outputs_is_looked_for_with_one() -> None:
    graph = chain(16)
    engine = FakeEngine(graph, "fp32", "scale5")
    engine.gone_from = 2
    failure = explain(graph, "fp32", engine)
    assert failure.details["node"] == "scale5"
    assert [len(tensors) for tensors in engine.asked[1:]] == [6, 1, 1, 1, 1]


def test_a_fault_that_goes_away_with_any_output_is_a_fusion_s() -> None:
    graph = chain(16)
    engine = FakeEngine(graph, "fp32", "scale5")
    engine.gone_from = 1
    failure = explain(graph, "fp32", engine)
    assert (failure.details["layers"], failure.details["debug_engines"]) == ([], 2)
    assert "node" not in failure.details
    assert "the fault is gone as soon as inner values are outputs" in failure.why


def test_values_that_tensorrt_does_not_know_leave_suspects() -> None:
    graph = chain(12)
    engine = FakeEngine(graph, "fp32", "scale5")
    engine.unknown = {"t4", "t5", "t6"}
    failure = explain(graph, "fp32", engine)
    assert failure.details["node"] == "scale7"
    assert failure.details["not_cleared"] == ["scale4", "scale5", "scale6"]
    assert "so it may be one of 3 nodes before it" in failure.why


def test_an_error_that_grows_evenly_has_no_single_node() -> None:
    lowered = lower(chain(40), "fp16")
    exact = emulated(lowered, "fp16")

    def run(tensors: list[str]) -> Arrays:
        return blame._run_exposed(onnx.ModelProto.FromString(exact.SerializeToString()), tensors, FEEDS)

    failure = explain(lowered, "fp16", run, {"max_abs": 1e-9})
    assert failure.reason == "numerics-tolerance"
    assert "no single node could be named: the error grows from node to node" in failure.why


def test_an_engine_that_cannot_be_built_ends_the_search() -> None:
    def run(tensors: list[str]) -> Arrays:
        raise StageFailure("build-failed", "TensorRT could not build the engine")

    failure = explain(chain(4), "fp32", run)
    assert failure.reason == "numerics-tolerance"
    assert "a debug engine could not be built: TensorRT could not build the engine" in failure.why


def test_few_engines_are_built_whatever_the_size() -> None:
    graph = chain(900)
    engine = FakeEngine(graph, "fp32", "scale411")
    failure: Any = explain(graph, "fp32", engine)
    assert failure.details["node"] == "scale411"
    assert failure.details["debug_engines"] <= 5
