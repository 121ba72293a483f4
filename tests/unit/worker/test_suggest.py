"""The search for the fewest nodes in FP32: as pure search, and on small graphs that FP16 breaks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, helper

from builder.recipe import KeepFp32
from builder.worker import low_precision, suggest, verify
from builder.worker.emulate import emulated
from builder.worker.metrics import breaches, compare
from builder.worker.protocol import Job, StageFailure
from builder.worker.suggest import find
from builder.worker.verify import run_session, session
from tests.unit.worker.graphs import model

NODES = [f"n{index}" for index in range(40)]


class Passing:
    """Passes where all of the culprits are kept; counts."""

    def __init__(self, *culprits: str) -> None:
        self.culprits = set(culprits)
        self.calls = 0

    def __call__(self, nodes: list[str]) -> dict[str, Any] | None:
        self.calls += 1
        return {"kept": len(nodes)} if self.culprits <= set(nodes) else None


@given(st.sets(st.sampled_from(NODES), max_size=5))
@settings(max_examples=60, deadline=None)
def test_exactly_the_culprits_are_found_wherever_they_rank(culprits: set[str]) -> None:
    passing = Passing(*culprits)
    found = find(NODES, passing, limit=400)
    assert found is not None
    assert set(found.nodes) == culprits
    assert found.worst == {"kept": len(culprits)}
    assert found.minimal
    assert found.trials == passing.calls


def test_a_good_ranking_needs_few_trials() -> None:
    found = find(NODES, Passing("n0", "n1"))
    assert found is not None
    # none, one, both; then each of the two alone, one of which is known
    assert (found.nodes, found.trials) == (["n0", "n1"], 4)


def test_nothing_to_keep_is_found_at_once() -> None:
    found = find(NODES, Passing())
    assert found is not None
    assert (found.nodes, found.trials, found.minimal) == ([], 1, True)


def test_what_cannot_pass_is_given_up() -> None:
    passing = Passing("no such node")
    assert find(NODES, passing) is None
    assert passing.calls == 8


def test_trials_are_limited_and_the_best_so_far_is_kept() -> None:
    passing = Passing("n3", "n17", "n30")
    found = find(NODES, passing, limit=12)
    assert passing.calls == 12
    assert found is not None
    assert not found.minimal
    assert passing.culprits <= set(found.nodes)
    assert len(found.nodes) < len(NODES)
    assert find(NODES, Passing("n39"), limit=3) is None


def test_any_of_several_sets_will_do_but_none_of_its_nodes_can_go() -> None:
    def passes(nodes: list[str]) -> dict[str, Any] | None:
        kept = set(nodes)
        return {} if kept >= {"n1", "n2"} or kept >= {"n5", "n6", "n7"} else None

    found = find(NODES, passes)
    assert found is not None
    assert (set(found.nodes), found.worst) == ({"n1", "n2"}, {})


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    yield
    os.chdir(before)


class Bench:
    """A model with its inputs and tolerance, as the verify stage holds them."""

    def __init__(self, graph: ModelProto, limit: float, precision: str = "fp16", **params: Any) -> None:
        onnx.save(graph, "in/model.onnx")
        self.precision, self.limit = precision, limit
        self.job = Job("verify", "j", {"model": "in/model.onnx"}, {"precision": precision, **params})
        self.feeds = {"x": np.random.RandomState(0).uniform(1, 2, (3, 4)).astype(np.float32)}
        self.reference = run_session(session(graph), self.feeds)["y"]

    def judge(self, lowered: ModelProto) -> dict[str, Any] | None:
        got = run_session(session(emulated(lowered, self.precision)), self.feeds)["y"]
        metrics = compare(self.reference, got)
        if metrics["nonfinite"] or breaches(metrics, {"max_rel": self.limit}):
            return None
        return {"metric": "max_rel", "value": metrics["max_rel"]}

    def advise(self) -> StageFailure:
        failure = StageFailure("numerics-tolerance", "it is off", why="so far", fix="widen", details={"case": "p/min"})
        return suggest.advise(failure, self.job, self.feeds, self.judge)

    def passes(self, nodes: list[str]) -> bool:
        """Say whether the model passes with the nodes kept, without the code under test."""
        loaded = onnx.load("in/model.onnx")
        return self.judge(low_precision.lower(loaded, self.precision, {"nodes": nodes, "ops": []})[0]) is not None


def chain(steps: list[tuple[str, float]]) -> ModelProto:
    """Chain operations with a constant: step by step, named step0, step1, ..."""
    names = ["x", *(f"t{index}" for index in range(len(steps) - 1)), "y"]
    nodes = [
        helper.make_node(operation, [names[index], f"c{index}"], [names[index + 1]], f"step{index}")
        for index, (operation, _) in enumerate(steps)
    ]
    return model(nodes, {f"c{index}": np.float32(value) for index, (_, value) in enumerate(steps)})


# Adding 3000 leaves FP16 steps of 2; taking it off again leaves the rest of it. All others lose next to nothing.
TEN = [("Mul", 1.5), ("Add", 0.5), ("Mul", 0.5), ("Add", 3000.0), ("Sub", 3000.0), *[("Mul", 1.25), ("Add", 0.25)] * 2]
TEN += [("Mul", 0.75)]


def test_two_bad_nodes_among_ten() -> None:
    bench = Bench(chain(TEN), 0.01)
    failure = bench.advise()
    suggestion = failure.details["suggestion"]
    assert sorted(suggestion["nodes"]) == ["step3", "step4"]
    assert (suggestion["share_of_nodes"], suggestion["minimal"]) == (0.2, True)
    assert suggestion["trials"] <= 6
    assert 0 < suggestion["worst_after"]["value"] < 0.01
    assert bench.passes(["step3", "step4"])
    assert not bench.passes(["step3"])
    assert not bench.passes(["step4"])
    assert (failure.reason, failure.message, failure.details["case"]) == ("numerics-tolerance", "it is off", "p/min")
    assert failure.why.startswith("so far\n")
    assert "passes with 2 of 10 nodes in FP32; with any one less it fails" in failure.why
    assert failure.fix.endswith("under precisions.fp16")


def test_two_bad_nodes_far_apart() -> None:
    # FP16 rounds 3e-8 to twice its value; behind the first such node the error hides what the second does
    tiny = [("Mul", 2.0e4), ("Mul", 3.0e-8), ("Mul", 700.0)]
    bench = Bench(chain([("Mul", 1.25), *tiny, *[("Mul", 1.25)] * 3, *tiny]), 0.01)
    suggestion = bench.advise().details["suggestion"]
    assert sorted(suggestion["nodes"]) == ["step2", "step8"]
    assert suggestion["minimal"]
    assert not bench.passes(["step2"])
    assert not bench.passes(["step8"])


def test_an_overflow_is_kept_from_where_it_begins_to_where_it_ends() -> None:
    steps = [("Mul", 1.5), ("Mul", 1e3), ("Mul", 1e3), ("Mul", 1e-3), ("Mul", 1e-3), ("Add", 0.5)]
    failure = Bench(chain(steps), 0.01).advise()
    assert sorted(failure.details["suggestion"]["nodes"]) == ["step2", "step3"]


def test_bf16_is_searched_likewise() -> None:
    suggestion = Bench(chain(TEN), 0.02, "bf16").advise().details["suggestion"]
    assert {"step3", "step4"} <= set(suggestion["nodes"])


def test_the_recipe_s_own_list_stays_in_the_snippet() -> None:
    bench = Bench(chain(TEN), 0.01, keep_fp32={"nodes": ["step0"], "ops": ["Sub"]})
    failure = bench.advise()
    assert failure.details["suggestion"]["nodes"] == ["step3"]
    assert failure.details["suggestion"]["yaml"] == "keep_fp32: {nodes: [step0, step3], ops: [Sub]}"


@pytest.mark.parametrize(
    "name", ["/head/Mul_3", "Conv@0", "12", "yes", "a, b", "a: b", "{x}", "name with 'quotes'", "größe", "@x", "-x"]
)
def test_the_snippet_is_yaml_that_a_recipe_takes(name: str) -> None:
    snippet = suggest._snippet([name, "plain"], [])
    read = KeepFp32.model_validate(yaml.safe_load(snippet)["keep_fp32"])
    assert (read.nodes, read.ops) == ([name, "plain"], [])


def test_where_the_graph_passes_nothing_is_suggested() -> None:
    failure = Bench(chain([("Mul", 2.0)]), 0.01).advise()
    assert failure.details["suggestion"]["nodes"] == []
    assert "the graph passes on the CPU as it is" in failure.why
    assert failure.fix == "widen"


def test_where_nothing_helps_it_says_so() -> None:
    failure = Bench(chain(TEN), -1.0).advise()
    assert failure.details["suggestion"]["nodes"] == []
    assert "no set of nodes to keep in FP32 was found in 80 trials" in failure.why
    assert json.dumps(failure.as_json())


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_without_low_precision_there_is_nothing_to_keep(precision: str) -> None:
    failure = Bench(chain(TEN), 0.01, precision).advise()
    assert "suggestion" not in failure.details


def test_the_verify_stage_ends_with_the_suggestion() -> None:
    graph = chain(TEN)
    onnx.save(graph, "in/model.onnx")
    onnx.save(low_precision.lower(chain(TEN), "fp16", {"nodes": [], "ops": []})[0], "in/lowered.onnx")
    profiles = [{"name": "p", "inputs": {"x": {"min": [1, 4], "opt": [2, 4], "max": [3, 4]}}}]
    params = {
        "precision": "fp16",
        "profiles": profiles,
        "engine_profiles": profiles,
        "inputs": {"x": {"dtype": "float32", "kind": "uniform", "seed": 0, "low": 1.0, "high": 2.0}},
        "tolerance": {"default": {"max_rel": 0.01}, "outputs": {}},
        "auto_fp32": True,
    }
    with pytest.raises(StageFailure) as caught:
        verify.run(Job("verify", "j", {"model": "in/model.onnx", "lowered": "in/lowered.onnx"}, params))
    assert caught.value.reason == "numerics-tolerance"
    assert sorted(caught.value.details["suggestion"]["nodes"]) == ["step3", "step4"]
    assert caught.value.details["suggestion"]["worst_after"]["headroom"] > 1
    assert caught.value.fix.startswith("keep_fp32: {nodes: [step")
