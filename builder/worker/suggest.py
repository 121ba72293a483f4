"""The fewest nodes to keep in FP32 so that a low precision passes: found on the CPU, where it is emulated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from onnx import ModelProto

from . import blame, low_precision
from . import graph as graphs
from .emulate import LOW_TYPES
from .protocol import StageFailure

if TYPE_CHECKING:
    from onnx import NodeProto

    from .protocol import Job

Arrays = dict[str, np.ndarray]
# The metric closest to its limit where all cases pass with a set of nodes in FP32; None where one does not.
Passes = Callable[[list[str]], "dict[str, Any] | None"]
# The same for a lowered model.
Judge = Callable[[ModelProto], "dict[str, Any] | None"]
TRIALS = 80
# Where a result is off, the rounding of what it was computed from is as likely to blame: the rank that its makers get.
PASSED_UP = 0.5
# Names that YAML reads as texts without quotes.
_PLAIN = re.compile(r"^[A-Za-z_/][A-Za-z0-9_./@-]*$")
_WORDS = frozenset({"false", "n", "no", "null", "off", "on", "true", "y", "yes"})


class Found(NamedTuple):
    """Nodes that pass in FP32, and the metric closest to its limit then.

    `minimal`: without any single one of them it does not pass. That is no proof that no smaller set would.
    """

    nodes: list[str]
    worst: dict[str, Any]
    trials: int
    minimal: bool


def advise(failure: StageFailure, job: Job, feeds: Arrays, judge: Judge) -> StageFailure:
    """Add to a failed verification which nodes to keep in FP32; it stays a failure.

    `feeds` are the inputs of the case that failed. `judge` verifies another lowering of the model at all cases: it
    returns the metric closest to its limit, None where one is beyond it.
    """
    if job.precision not in LOW_TYPES:
        return failure
    lowering = _Lowering(job)
    ranking = _rank(lowering, feeds)
    found = find(ranking, lambda nodes: lowering.judged(nodes, judge))
    if found is None or not found.nodes:
        why = f"no set of nodes to keep in FP32 was found in {TRIALS} trials"
        if found is not None:
            why = "the graph passes on the CPU as it is: keeping more nodes in FP32 is no remedy that shows there"
        return _with(failure, {"nodes": [], "why": why}, why, failure.fix)
    snippet = _snippet([*lowering.asked["nodes"], *found.nodes], lowering.asked["ops"])
    suggestion = {
        "nodes": found.nodes,
        "share_of_nodes": round(len(found.nodes) / len(ranking), 4),
        "trials": found.trials,
        "minimal": found.minimal,
        "worst_after": found.worst,
        "yaml": snippet,
    }
    least = "with any one less it fails" if found.minimal else f"fewer may do: {found.trials} trials were spent"
    why = f"on the CPU it passes with {len(found.nodes)} of {len(ranking)} nodes in FP32; {least}"
    return _with(failure, suggestion, why, f"{snippet} under precisions.{job.precision}")


def find(ranking: list[str], passes: Passes, limit: int = TRIALS) -> Found | None:
    """Find few nodes that pass: the shortest beginning of the ranking that does, then without whatever can go.

    Returns:
        None where all trials are spent, or the whole ranking does not pass, before any set did. No nodes where none
        need to be kept.

    """
    trials = _Trials(passes, limit)
    minimal = False
    try:
        beginning = trials.beginning(ranking)
        if beginning is not None:
            # the least promising go first, in case the trials end before all were tried
            trials.thin(beginning[::-1])
            minimal = True
    except _Spent:
        pass
    if trials.best is None:
        return None
    worst = trials.seen[frozenset(trials.best)] or {}
    return Found(sorted(trials.best, key=ranking.index), worst, trials.count, minimal)


def _rank(lowering: _Lowering, feeds: Arrays) -> list[str]:
    """Order the nodes that are in low precision by what keeping them in FP32 promises.

    First those that make or read values beyond the format's range, in the order of the graph; then by how much the
    error grows at a node, or at one that reads from it.
    """
    beyond = lowering.measured(feeds, []).beyond
    measured = lowering.measured(feeds, beyond)
    rest = sorted(measured.scores.items(), key=lambda item: -item[1])
    return [*beyond, *(name for name, _ in rest if name not in beyond)]


class _Spent(Exception):  # noqa: N818  (the search ends, nothing went wrong)
    """All trials are used up."""


class _Trials:
    """Tries sets of nodes, each once; `best` is the smallest that passed."""

    def __init__(self, passes: Passes, limit: int) -> None:
        self.passes, self.limit = passes, limit
        self.seen: dict[frozenset[str], dict[str, Any] | None] = {}
        self.best: list[str] | None = None

    @property
    def count(self) -> int:
        return len(self.seen)

    def good(self, nodes: list[str]) -> bool:
        key = frozenset(nodes)
        if key not in self.seen:
            if self.count == self.limit:
                raise _Spent
            self.seen[key] = self.passes(nodes)
        is_good = self.seen[key] is not None
        if is_good and (self.best is None or len(nodes) < len(self.best)):
            self.best = nodes
        return is_good

    def beginning(self, ranking: list[str]) -> list[str] | None:
        """Find the shortest beginning that passes, taking it that every longer one does too."""
        if self.good([]):
            return []
        low, high = 0, 1
        while not self.good(ranking[:high]):
            if high >= len(ranking):
                return None
            low, high = high, min(2 * high, len(ranking))
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.good(ranking[:middle]) else (middle, high)
        return ranking[:high]

    def thin(self, nodes: list[str]) -> None:
        """Drop parts as long as it passes: halves first, single nodes last, until none of them can go."""
        chunk = max(len(nodes) // 2, 1)
        while True:
            before = len(nodes)
            place = 0
            while place < len(nodes):
                fewer = nodes[:place] + nodes[place + chunk :]
                if self.good(fewer):
                    nodes = fewer
                else:
                    place += chunk
            if chunk == 1 and len(nodes) == before:
                return
            chunk = max(chunk // 2, 1)


class _Measured(NamedTuple):
    """Nodes with values beyond the format's range, and all others with how much the error grows at them."""

    beyond: list[str]
    scores: dict[str, float]


class _Lowering:
    """The model, lowered again and again with other nodes kept."""

    def __init__(self, job: Job) -> None:
        self.job = job
        asked = job.params.get("keep_fp32", {})
        self.asked = {"nodes": list(asked.get("nodes", [])), "ops": list(asked.get("ops", []))}
        self.model = graphs.load(job.inputs["model"])
        graphs.name_nodes(self.model.graph)
        graphs.clean(self.model)

    def lowered(self, nodes: list[str]) -> tuple[ModelProto, set[str]]:
        """Lower a copy with these nodes in FP32; return it with the names of all nodes that stayed there."""
        copy = ModelProto()
        copy.CopyFrom(self.model)
        asked = {"nodes": [*self.asked["nodes"], *nodes], "ops": self.asked["ops"]}
        model, kept = low_precision.lower(copy, self.job.precision, asked)
        return model, set(kept.reasons)

    def judged(self, nodes: list[str], judge: Judge) -> dict[str, Any] | None:
        """Judge the model with these nodes in FP32; a set that cannot be lowered does not pass."""
        try:
            return judge(self.lowered(nodes)[0])
        except StageFailure:
            return None

    def measured(self, feeds: Arrays, kept: list[str]) -> _Measured:
        """Run the model, with some nodes kept, in FP32 and in low precision, and compare all values."""
        model, in_fp32 = self.lowered(kept)
        low, plain = blame.all_values(model, self.job, feeds)
        limit = blame.LARGEST[self.job.precision]
        large = {name for name, values in plain.items() if blame.largest_of(values) > limit}
        error = {name: _error(plain[name], low[name]) for name in low if name in plain and low[name].dtype.kind == "f"}
        scores = _scores(model, error)
        low_nodes = [node for node in model.graph.node if node.op_type != "Cast" and node.name not in in_fp32]
        beyond = [node.name for node in low_nodes if large & {*node.input, *node.output}]
        return _Measured(beyond, {node.name: scores[node.name] for node in low_nodes if node.name in scores})


def _error(plain: np.ndarray, low: np.ndarray) -> float:
    error = blame.relative(plain, low) if np.isfinite(low).all() else 0.0
    return error if np.isfinite(error) else 0.0


def _scores(model: ModelProto, error: dict[str, float]) -> dict[str, float]:
    """Score each node that makes floats by the growth of the error, its own or passed up by its readers."""
    makers: dict[str, NodeProto] = {}
    scores: dict[str, float] = {}
    for node in model.graph.node:
        # a cast is no node of the model: what reads it reads what was cast
        source = makers.get(node.input[0]) if node.op_type == "Cast" else node
        makers.update((name, source) for name in node.output if source is not None)
        after = max((error[name] for name in node.output if name in error), default=None)
        if after is not None and node.op_type != "Cast":
            scores[node.name] = max(after - max((error.get(name, 0.0) for name in node.input), default=0.0), 0.0)
    for node in reversed(model.graph.node):
        for name in node.input if node.name in scores else []:
            if name in makers and makers[name].name in scores:
                maker = makers[name].name
                scores[maker] = max(scores[maker], PASSED_UP * scores[node.name])
    return scores


def _with(failure: StageFailure, suggestion: dict[str, Any], why: str, fix: str) -> StageFailure:
    details = {**failure.details, "suggestion": suggestion}
    return StageFailure(
        failure.reason, failure.message, why=f"{failure.why}\nauto_fp32: {why}".strip(), fix=fix, details=details
    )


def _snippet(nodes: list[str], ops: list[str]) -> str:
    """Write the recipe's list as YAML, with what it has already."""
    parts = [f"{key}: [{', '.join(map(_quoted, names))}]" for key, names in (("nodes", nodes), ("ops", ops)) if names]
    return f"keep_fp32: {{{', '.join(parts)}}}"


def _quoted(name: str) -> str:
    return name if _PLAIN.match(name) and name.lower() not in _WORDS else json.dumps(name)
