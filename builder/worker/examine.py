"""Stage examine: what precision do the layers really compute in? Read from TensorRT's network, or from the engine."""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from .protocol import Outcome, StageFailure
from .refitted import loadable
from .trt import Layer, adapter, gpu_adapter, read_request

if TYPE_CHECKING:
    from .protocol import Job
    from .realised import Wish

# Precision asked for to the type that its layers must have.
WANTED = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "INT8"}
NAMES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8"}
# They move, make or convert values and compute with none.
MOVES = frozenset(
    {
        "ASSERTION",
        "CAST",
        "CONCATENATION",
        "CONDITION",
        "CONDITIONAL_INPUT",
        "CONDITIONAL_OUTPUT",
        "CONSTANT",
        "DEQUANTIZE",
        "DYNAMIC_QUANTIZE",
        "GATHER",
        "IDENTITY",
        "ITERATOR",
        "LOOP_OUTPUT",
        "NON_ZERO",
        "ONE_HOT",
        "PADDING",
        "QUANTIZE",
        "RECURRENCE",
        "REVERSE_SEQUENCE",
        "SCATTER",
        "SHAPE",
        "SHUFFLE",
        "SLICE",
        "SQUEEZE",
        "TRIP_LIMIT",
        "UNSQUEEZE",
    }
)
# Why the lower stage kept a node, where it is that the converter, or one TensorRT, cannot lower it: nothing is lost if
# another one computes it in low precision all the same.
NEEDLESS = ("is not lowered", "kernel for")
# Below this share of the work in the precision asked for, the engine is not what it is called.
ENOUGH = 0.5


class Share(NamedTuple):
    """How much of the work runs in the precision asked for."""

    value: float
    basis: str


def run(job: Job) -> Outcome:
    """Compare the precision asked for with the types of the layers.

    `mixed` is no failure by itself: nodes kept in FP32 on purpose, and layers that the model brings in another type,
    are listed and stay. Only FP32 that nobody asked for in an FP16 or BF16 engine fails, and an INT8 engine without any
    INT8: there TensorRT chooses layer by layer. With `engine_layers` in the job, the engine itself is judged: the types
    in TensorRT's network are only what it may do.

    Raises:
        StageFailure: precision-silent-fp32, naming the layers; op-unsupported or model-invalid; of an engine also
            precision-lost-fp32, precision-unproven, engine-invalid and what loading it can fail with; gpu-needed for
            INT8 without an engine.

    """
    request = read_request(job)
    by_engine = job.params.get("engine_layers") and "engine" in job.inputs
    if job.precision == "int8" and not by_engine:
        why = "TensorRT decides what is INT8 when it builds; its network says FP32 everywhere"
        raise StageFailure("gpu-needed", "only an int8 engine itself tells what it computes in", why=why)
    # read while the engine was built, where it was: making another builder takes TensorRT 8.6 some eight seconds
    known = job.params.get("network_layers")
    layers = (
        [Layer(**layer) for layer in known] if known else adapter(request.family).layers(request, job.inputs["lowered"])
    )
    if by_engine:
        text = gpu_adapter(request.family).engine_layers(request, loadable(job, request))
        return Outcome({}, _of_engine(job, layers, text))
    data = examine(layers, job.precision, _allowed(job))
    if data["silent_fp32"] or (job.precision in ("fp16", "bf16") and data["share"] < ENOUGH and not data["kept_fp32"]):
        raise _silent(data)
    return Outcome({}, data)


def _of_engine(job: Job, layers: list[Layer], text: str) -> dict[str, Any]:
    from . import asked, realised  # a stack that judges networks alone needs neither, nor onnx
    from .trt import inspect

    inspection = inspect.read(text)
    lowered = asked.read(job.inputs["lowered"])
    if inspection.tensors and set(inspection.tensors) != set(lowered.tensors):
        raise StageFailure(
            "engine-invalid",
            "the engine is not of this model: its inputs and outputs have other names",
            why=f"engine: {', '.join(inspection.tensors)}; model: {', '.join(lowered.tensors)}",
            fix="build it again",
        )
    verdict = realised.judge(layers, inspection, lowered, _wish(job, lowered.ops))
    if verdict.reason == "precision-lost-fp32":
        raise _lost(verdict.data)
    if verdict.reason:
        raise _silent(verdict.data)
    return verdict.data


def _wish(job: Job, ops: dict[str, str]) -> Wish:
    from .realised import Wish

    options = job.params["options"]
    reasons = job.params.get("kept_reasons", {})
    must = {node for node, reason in reasons.items() if not any(text in reason for text in NEEDLESS)}
    asked = job.params.get("keep_fp32", {})
    must |= {node for node, op in ops.items() if node in asked.get("nodes", []) or op in asked.get("ops", [])}
    return Wish(
        precision=job.precision,
        allowed=frozenset(_allowed(job) | must),
        must=frozenset(must),
        size=None if options["strip_weights"] else os.path.getsize(job.inputs["engine"]),
        # the file of a version compatible engine can hold a whole lean runtime
        padded=bool(options["version_compatible"]),
    )


def _allowed(job: Job) -> set[str]:
    """Nodes that may run in FP32: those of the recipe and those that the lower stage reported."""
    asked = job.params.get("keep_fp32", {})
    return {*asked.get("nodes", []), *job.params.get("kept_fp32", [])}


def examine(layers: list[Layer], precision: str, allowed: set[str]) -> dict[str, Any]:
    """Judge a network's layers; `allowed` holds the ONNX nodes that may compute in FP32."""
    wanted = WANTED[precision]
    computing = compute_layers(layers)
    in_wanted = [layer for layer in computing if _type(layer) == wanted]
    in_fp32 = [layer for layer in computing if _type(layer) == "FLOAT"]
    kept = [layer for layer in in_fp32 if layer.node in allowed] if wanted != "FLOAT" else []
    silent = [layer for layer in in_fp32 if layer.node not in allowed] if wanted != "FLOAT" else []
    share = share_of(in_wanted, computing)
    others = [layer for layer in computing if _type(layer) not in (wanted, "FLOAT")]
    return {
        "source": "network",
        "requested": precision,
        "realised": _realised(computing, precision),
        "layers": len(layers),
        "by_type": dict(Counter(_type(layer) for layer in layers)),
        "compute_layers": len(computing),
        "compute_in_requested": len(in_wanted),
        "share": share.value,
        "share_basis": share.basis,
        "kept_fp32": [layer.name for layer in kept],
        "silent_fp32": [layer.name for layer in silent],
        "other_types": [{"layer": layer.name, "type": _type(layer)} for layer in others],
    }


def compute_layers(layers: list[Layer]) -> list[Layer]:
    """Return the layers that multiply matrices; in a model without any, every layer that computes with floats."""
    multiplying = [layer for layer in layers if layer.macs is not None and _type(layer) in NAMES]
    return multiplying or [layer for layer in layers if layer.kind not in MOVES and _type(layer) in NAMES]


def _type(layer: Layer) -> str:
    """Type that a layer computes in: that of its first input, of its output where it has none."""
    return (layer.inputs or layer.outputs or ["NONE"])[0]


def share_of(in_wanted: list[Layer], computing: list[Layer]) -> Share:
    """Return how much of the work of all compute layers is in some of them: by multiply-adds where all are known."""
    if not computing:
        return Share(1.0, "count")
    if all(layer.macs is not None and layer.macs >= 0 for layer in computing):
        total = sum(layer.macs or 0 for layer in computing)
        if total:
            return Share(round(sum(layer.macs or 0 for layer in in_wanted) / total, 6), "macs")
    return Share(round(len(in_wanted) / len(computing), 6), "count")


def _realised(computing: list[Layer], precision: str) -> str:
    types = {_type(layer) for layer in computing}
    if not types or types == {WANTED[precision]}:
        return precision
    return NAMES[types.pop()] if len(types) == 1 else "mixed"


def _silent(data: dict[str, Any]) -> StageFailure:
    silent, precision = data["silent_fp32"], data["requested"]
    percent = round(100 * data["share"], 1)
    if precision == "int8":
        chosen = {kind: ", ".join(data[f"chosen_{kind}"]) or "none" for kind in ("fp16", "fp32")}
        return StageFailure(
            "precision-silent-fp32",
            "no layer of the int8 engine computes in INT8",
            why=f"TensorRT found nothing faster in INT8; in FP16: {chosen['fp16']}; in FP32: {chosen['fp32']}",
            fix="build this model in fp16, or with a larger opt shape",
            details=data,
        )
    return StageFailure(
        "precision-silent-fp32",
        f"{len(silent)} layers of the {precision} engine compute in FP32"
        if silent
        else f"only {percent} % of the {precision} engine's work is in {precision}",
        why=f"{percent} % of the work is in {precision}; in FP32: {', '.join(silent) or 'none'}",
        fix="name the nodes in keep_fp32 if that is meant, else correct the lowering",
        details=data,
    )


def _lost(data: dict[str, Any]) -> StageFailure:
    lost, precision = data["lost_fp32"], data["requested"]
    return StageFailure(
        "precision-lost-fp32",
        f"{len(lost)} nodes that were to stay in FP32 compute in {precision}: {', '.join(lost[:5])}",
        why="TensorRT chose a kernel of low precision for them",
        fix="report it: precision constraints were not obeyed; or keep the nodes around them in FP32, too",
        details=data,
    )
