"""Which layer is at fault: the first that overflows, or those where the error jumps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from .emulate import LOW_TYPES, emulated
from .protocol import StageFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from onnx import ModelProto, NodeProto

    from .inputs import Case
    from .protocol import Job

Arrays = dict[str, np.ndarray]
LARGEST = {"fp16": 65504.0, "bf16": 3.3895e38, "tf32": 3.4e38, "fp32": 3.4e38}
TOP = 5


def nonfinite(lowered: ModelProto, job: Job, case: Case, output: str, count: int, feeds: Arrays) -> StageFailure:
    """Name the first node whose output is not finite, and the nodes to keep in FP32."""
    low, plain = all_values(lowered, job, feeds)
    message = f"output {output} has {count} inf or NaN values at {case.name} in {job.precision}"
    for node in lowered.graph.node:
        bad = [name for name in node.output if name in low and overflows(low[name], plain.get(name))]
        if not bad:
            continue
        largest = max((largest_of(plain[name]) for name in bad if name in plain), default=float("nan"))
        chain = chain_of(lowered, node, plain, LARGEST[job.precision])
        why = (
            f"node {node.name} ({node.op_type}) is the first: its largest value is {largest:.4g} in FP32, "
            f"{job.precision} ends at {LARGEST[job.precision]:.4g}"
        )
        return StageFailure(
            "numerics-nonfinite",
            message,
            why=why,
            fix=f"keep_fp32: {{nodes: [{', '.join(chain)}]}} under precisions.{job.precision}, or use bf16",
            details={"node": node.name, "op": node.op_type, "largest": largest, "keep_fp32": chain, "case": case.name},
        )
    return StageFailure("numerics-nonfinite", message, why="no single node of the graph could be named")


def tolerance(
    lowered: ModelProto,
    job: Job,
    case: Case,
    output: str,
    breaches: list[tuple[str, float, float]],
    metrics: dict[str, Any],
    feeds: Arrays,
) -> StageFailure:
    """Name the breach and the layers where the error jumps most."""
    stated = state(breaches, metrics)
    layers = [] if job.precision == "fp32" else _jumps(lowered, job, feeds)
    why = "the graph itself differs from the reference: no low precision is involved"
    if layers:
        worst = layers[0]
        why = f"the error jumps most at {worst['node']} ({worst['op']}): {worst['before']:.2e} to {worst['after']:.2e}"
    return StageFailure(
        "numerics-tolerance",
        f"output {output} at {case.name} in {job.precision}: {stated}",
        why=why,
        fix=_fix_of_breach(job.precision, layers),
        details={"case": case.name, "output": output, "metrics": metrics, "layers": layers},
    )


def _fix_of_breach(precision: str, layers: list[dict[str, Any]]) -> str:
    if not layers:
        return ""
    # TF32 is on or off for the whole engine
    other = "build the model in fp32" if precision == "tf32" else f"keep {layers[0]['node']} in FP32"
    return f"{other}, or widen the tolerance knowingly"


def on_gpu(  # noqa: PLR0913, PLR0917  (as `tolerance`, and a way to look inside the engine)
    lowered: ModelProto,
    job: Job,
    case: Case,
    output: str,
    breaches: list[tuple[str, float, float]],
    metrics: dict[str, Any],
    feeds: Arrays,
    run_debug: Callable[[list[str]], Arrays],
) -> StageFailure:
    """Name the node at fault in an engine whose graph is within tolerance; see `blame_engine`."""
    from . import blame_engine

    finding = blame_engine.Finding(case, output, breaches, metrics, feeds)
    return blame_engine.explain(lowered, job, finding, run_debug)


def state(breaches: list[tuple[str, float, float]], metrics: dict[str, Any]) -> str:
    """Say which limits were broken, and by how much."""
    if metrics.get("shape_differs"):
        return "its shape differs from the reference's"
    return ", ".join(f"{metric} is {value:.4g}, allowed {limit:.4g}" for metric, value, limit in breaches)


def all_values(lowered: ModelProto, job: Job, feeds: Arrays) -> tuple[Arrays, Arrays]:
    """Compute every value of the graph on the CPU, by name: with the rounding of the precision, and in plain FP32."""
    rounded = emulated(lowered, job.precision)
    plain = emulated(lowered, job.precision, rounding=False)
    names = [name for node in lowered.graph.node for name in node.output if name]
    return _run_exposed(rounded, names, feeds), _run_exposed(plain, names, feeds)


def _run_exposed(model: ModelProto, names: list[str], feeds: Arrays) -> Arrays:
    from .verify import run_session, session

    present = {value.name for value in model.graph.output}
    made = {name for node in model.graph.node for name in node.output}
    for name in names:
        if name in made and name not in present:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    return run_session(session(model), feeds)


def chain_of(lowered: ModelProto, first: NodeProto, plain: Arrays, limit: float) -> list[str]:
    """Follow the values that do not fit until they do: all nodes on the way have to stay in FP32."""
    consumers: dict[str, list[NodeProto]] = {}
    for node in lowered.graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)
    chain: dict[str, None] = {}
    queue = [first]
    while queue:
        node = queue.pop(0)
        if node.name in chain:
            continue
        if node.op_type != "Cast":
            chain[node.name] = None
        for name in node.output:
            if name in plain and largest_of(plain[name]) > limit:
                queue += consumers.get(name, [])
    return list(chain)


def _jumps(lowered: ModelProto, job: Job, feeds: Arrays) -> list[dict[str, Any]]:
    low, plain = all_values(lowered, job, feeds)
    error = {name: relative(plain[name], low[name]) for name in low if name in plain and _is_float(low[name])}
    found = []
    for node in lowered.graph.node:
        after = max((error[name] for name in node.output if name in error), default=None)
        if after is None or (node.op_type == "Cast" and job.precision in LOW_TYPES):
            continue
        before = max((error[name] for name in node.input if name in error), default=0.0)
        found.append({"node": node.name, "op": node.op_type, "before": before, "after": after, "jump": after - before})
    return sorted(found, key=lambda item: -float(item["jump"]))[:TOP]


def relative(plain: np.ndarray, low: np.ndarray) -> float:
    """Return the root mean square of the difference over that of the plain values."""
    wide, narrow = plain.astype(np.float64), low.astype(np.float64)
    scale = float(np.sqrt(np.mean(wide**2))) if wide.size else 0.0
    distance = float(np.sqrt(np.mean((wide - narrow) ** 2))) if wide.size else 0.0
    return distance / scale if scale > 0 else distance


def overflows(low: np.ndarray, plain: np.ndarray | None) -> bool:
    """Say whether values are inf or NaN where the plain ones are finite."""
    if not _is_float(low) or np.isfinite(low).all():
        return False
    return plain is None or bool(np.any(np.isfinite(plain) & ~np.isfinite(low)))


def largest_of(values: np.ndarray) -> float:
    """Return the largest magnitude; 0 for what are no floats."""
    return float(np.max(np.abs(values))) if values.size and _is_float(values) else 0.0


def _is_float(values: np.ndarray) -> bool:
    return values.dtype.kind == "f"
