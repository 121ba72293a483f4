"""Stage lower: the graph as TensorRT shall see it, cleaned, with every precision written out in its types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import graph as graphs
from . import keep
from .profiles import check_profiles
from .protocol import Outcome, StageFailure

if TYPE_CHECKING:
    from onnx import ModelProto

    from .protocol import Job

LOWERED = "out/lowered.onnx"
QUANTIZED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def run(job: Job) -> Outcome:
    """Clean and lower the model.

    Raises:
        StageFailure: model-invalid, input-invalid, profile-invalid or precision-unsupported.

    """
    model = graphs.load(job.inputs["model"])
    graphs.name_nodes(model.graph)
    graphs.clean(model)
    inputs = [graphs.describe(value) for value in model.graph.input]
    check_profiles(inputs, job.profiles)
    casts = _count_casts(model)
    kept: dict[str, str] = {}
    out_of_range: list[dict[str, Any]] = []
    asked = {"nodes": list(job.params["keep_fp32"]["nodes"]), "ops": list(job.params["keep_fp32"]["ops"])}
    if job.precision in ("fp16", "bf16"):
        from . import low_precision  # onnxruntime takes a while to import, and FP32 needs none of it

        model, choice = low_precision.lower(model, job.precision, asked)
        kept, out_of_range = choice.reasons, choice.out_of_range
    elif job.precision == "int8":
        _refuse_quantized(model)
        # TensorRT quantises; of the nodes to keep it is told when the network is made
        kept = keep.named(model, asked)
    elif job.precision not in ("fp32", "tf32"):
        message = f"cannot lower to {job.precision}; known are fp32, tf32, fp16, bf16, int8"
        raise StageFailure("precision-unsupported", message)
    outputs = graphs.save(model, LOWERED)
    data = {
        "opset": graphs.opset(model),
        "nodes": len(model.graph.node),
        "casts_added": _count_casts(model) - casts,
        "kept_fp32": sorted(kept),
        "kept_reasons": kept,
        "out_of_range": out_of_range,
        "inputs": [item.as_json() for item in inputs],
        "outputs": [graphs.describe(value).as_json() for value in model.graph.output],
    }
    return Outcome(outputs, data)


def _refuse_quantized(model: ModelProto) -> None:
    found = [node for node in graphs.all_nodes(model.graph) if node.op_type in QUANTIZED]
    if found:
        raise StageFailure(
            "precision-unsupported",
            f"the model is quantised already: {found[0].name} ({found[0].op_type}), {len(found)} such nodes in all",
            why="int8 here means that TensorRT finds the ranges by calibration; this model brings its own",
            fix="ask for fp32 on a stack of TensorRT 10 or 11, which builds such nodes as they are",
        )


def _count_casts(model: ModelProto) -> int:
    return sum(node.op_type == "Cast" for node in graphs.all_nodes(model.graph))
