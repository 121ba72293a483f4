"""Which node is at fault where an engine breaks the tolerance and its graph does not: TensorRT made the difference.

Engines are built with some values in between as outputs, and these are compared with the same values in FP32. Each such
engine narrows the search, as bisection of a history does: a value that is right clears all that it was computed from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import blame
from .emulate import LOW_TYPES
from .graph import used_names
from .metrics import breaches, compare
from .protocol import StageFailure

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from .inputs import Case
    from .protocol import Job

Arrays = dict[str, np.ndarray]
RunDebug = Callable[[list[str]], Arrays]
# Values looked at in one engine, and engines built at most. Every further output takes fusions from the engine.
HANDFUL, BUILDS = 6, 6
# A value is at fault from this share of the output's error, if that is also this many times what rounding explains.
SHARE_OF_ERROR, TIMES_EXPECTED = 0.25, 2.0
NOTE = "seen in engines that also give inner values, which TensorRT fuses less than the engine itself"


class Finding(NamedTuple):
    """What to explain: the output that fails at a case, the limits it breaks, its metrics and the inputs."""

    case: Case
    output: str
    breaches: list[tuple[str, float, float]]
    metrics: dict[str, Any]
    feeds: Arrays


class Trail(NamedTuple):
    """What the search came to.

    The node at fault, the relative errors up to it, the nodes before it that were not cleared, the
    number of engines built, and what stopped the search; empty where it came to its end.
    """

    culprit: NodeProto | None
    errors: dict[str, float]
    open: list[str]
    builds: int
    stopped: str


def explain(lowered: ModelProto, job: Job, finding: Finding, run_debug: RunDebug) -> StageFailure:
    """Find the node at fault; `run_debug` runs an engine that also gives the named values, as far as TensorRT can.

    The failure's reason is numerics-nonfinite or numerics-tolerance, whatever the search finds.
    """
    trail = _Search(lowered, job, finding).run(run_debug)
    node, nonfinite = trail.culprit, finding.metrics["nonfinite"]
    details: dict[str, Any] = {
        "case": finding.case.name,
        "output": finding.output,
        "metrics": finding.metrics,
        "debug_engines": trail.builds,
        "not_cleared": trail.open,
        "layers": [],
    }
    if node is not None:
        before = max((error for name, error in trail.errors.items() if name != node.name), default=0.0)
        after = trail.errors[node.name]
        # JSON knows no infinity
        errors = {"before": before, "after": after if np.isfinite(after) else None}
        details.update(node=node.name, op=node.op_type, layers=[{"node": node.name, "op": node.op_type, **errors}])
    where = f"output {finding.output} at {finding.case.name} in {job.precision}"
    said = f"{where} has {nonfinite} inf or NaN values" if nonfinite else f"{where}: {_stated(finding)}"
    return StageFailure(
        "numerics-nonfinite" if nonfinite else "numerics-tolerance",
        said,
        why=_why(trail, nonfinite=bool(nonfinite)),
        fix=_fix(node, job.precision),
        details=details,
    )


def _stated(finding: Finding) -> str:
    return blame.state(finding.breaches, finding.metrics)


def _why(trail: Trail, *, nonfinite: bool) -> str:
    begin = "the graph is within tolerance on the CPU, the engine is not"
    if trail.culprit is None:
        return f"{begin}; no single node could be named: {trail.stopped} ({trail.builds} debug engines, {NOTE})"
    name = f"{trail.culprit.name} ({trail.culprit.op_type})"
    what = f"{name} is the first that is not finite" if nonfinite else f"the error jumps at {name}"
    if not nonfinite:
        what += f", to {trail.errors[trail.culprit.name]:.2e}"
    rest = f"; {trail.stopped}, so it may be one of {len(trail.open)} nodes before it" if trail.open else ""
    return f"{begin}: {what}, {NOTE}{rest}"


def _fix(node: NodeProto | None, precision: str) -> str:
    other = "try another stack or a lower build.optimization_level"
    if node is not None and precision in (*LOW_TYPES, "int8"):
        return f"keep_fp32: {{nodes: [{node.name}]}} under precisions.{precision}, or {other}"
    return other


class _Search:
    """Suspects are places in `nodes`: those that give floats, in topological order, without casts."""

    def __init__(self, lowered: ModelProto, job: Job, finding: Finding) -> None:
        self.low, self.plain = blame.all_values(lowered, job, finding.feeds)
        self.finding = finding
        self.limits = job.params["tolerance"]["outputs"].get(finding.output, job.params["tolerance"]["default"])
        self.nodes: list[NodeProto] = []
        self.tensors: list[str] = []
        self.parents: list[set[int]] = []
        # which suspects a value comes from, through casts and whatever else is no suspect
        sources: dict[str, set[int]] = {}
        for node in lowered.graph.node:
            before = {place for name in used_names(node) for place in sources.get(name, ())}
            value = next((name for name in node.output if name in self.plain and _is_float(self.plain[name])), None)
            if value is not None and node.op_type != "Cast":
                self.nodes.append(node)
                self.tensors.append(value)
                self.parents.append(before)
                before = {len(self.nodes) - 1}
            sources.update((name, before) for name in node.output)
        self.suspects = self._origins(sources.get(finding.output, set()))

    def run(self, run_debug: RunDebug) -> Trail:
        errors: dict[int, float] = {}
        culprit: int | None = None
        silent: set[int] = set()
        handful, builds, stopped = HANDFUL, 0, ""
        while not stopped:
            unseen = sorted(self.suspects - silent - {culprit})
            if not unseen:
                break
            if builds == BUILDS:
                stopped = f"the search ended after {builds} debug engines"
                break
            chosen = _spread(unseen, handful)
            builds += 1
            try:
                got = run_debug([self.tensors[place] for place in chosen])
            except StageFailure as failure:
                stopped = f"a debug engine could not be built: {failure.message}"
                break
            measured = [place for place in chosen if self._fits(place, got)]
            silent.update(set(chosen) - set(measured))
            if self._is_right(got):
                stopped = "the fault is gone as soon as inner values are outputs, so it lies in a fusion of nodes"
                if handful > 1:
                    handful, stopped = 1, ""
                continue
            errors.update((place, self._error(place, got)) for place in measured)
            bad = [place for place in measured if self._is_bad(place, got)]
            if bad:
                culprit = bad[0]
                self.suspects &= self._origins({culprit})
            for place in measured:
                if place not in bad:
                    self.suspects -= self._origins({place})
        return self._trail(culprit, errors, builds, stopped)

    def _trail(self, culprit: int | None, errors: dict[int, float], builds: int, stopped: str) -> Trail:
        rest = [self.nodes[place].name for place in sorted(self.suspects - {culprit})]
        if culprit is None and not stopped:
            stopped = "the error grows from node to node" if errors else "TensorRT gives none of the inner values"
        elif rest and not stopped:
            stopped = "TensorRT does not give their values"
        node = self.nodes[culprit] if culprit is not None else None
        last = len(self.nodes) if culprit is None else culprit
        by_name = {self.nodes[place].name: error for place, error in errors.items() if place <= last}
        return Trail(node, by_name, rest, builds, stopped)

    def _origins(self, places: set[int]) -> set[int]:
        found: set[int] = set()
        queue = list(places)
        while queue:
            place = queue.pop()
            if place not in found:
                found.add(place)
                queue += self.parents[place]
        return found

    def _fits(self, place: int, got: Arrays) -> bool:
        name = self.tensors[place]
        return name in got and got[name].shape == self.plain[name].shape

    def _is_right(self, got: Arrays) -> bool:
        output = self.finding.output
        metrics = compare(self.plain[output], got[output])
        return not metrics["nonfinite"] and not breaches(metrics, self.limits)

    def _error(self, place: int, got: Arrays) -> float:
        name = self.tensors[place]
        error = blame.relative(self.plain[name], got[name])
        return error if np.isfinite(error) else float("inf")

    def _is_bad(self, place: int, got: Arrays) -> bool:
        name, output = self.tensors[place], self.finding.output
        if self.finding.metrics["nonfinite"]:
            return blame.overflows(got[name], self.plain[name])
        same_shape = self.plain[output].shape == got[output].shape
        whole = blame.relative(self.plain[output], got[output]) if same_shape else 0.0
        expected = blame.relative(self.plain[name], self.low[name])
        error = self._error(place, got)
        return error > 0 and error >= max(SHARE_OF_ERROR * whole, TIMES_EXPECTED * expected)


def _spread(places: list[int], count: int) -> list[int]:
    """Pick some places at equal distances, the last among them; the one in the middle if there is to be one only."""
    if count == 1:
        return [places[len(places) // 2]]
    step = max(len(places) / count, 1.0)
    return sorted({places[len(places) - 1 - int(number * step)] for number in range(min(count, len(places)))})


def _is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f"
