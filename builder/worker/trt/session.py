"""The part of TensorRT's Python API that is the same in every family: log, parser, shape profiles, layers."""

from __future__ import annotations

import glob
import importlib
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, Any

from ..profiles import GraphInput, check_profiles
from ..protocol import StageFailure

if TYPE_CHECKING:
    from ..protocol import Profile

DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}
OUT_OF_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "cannot allocate memory", "failed to allocate")
BAD_PROFILE = (
    "optimization profile",
    "contradictory ioptimizationprofile",
    "input dimensions with this name have different",
    "broadcast dimensions must be conformable",
    "and profile",
    "but profile",
    "in profile",
    "profile has",
    "violate shape constraints",
)
# 8.6 and 10: "optimization profile is missing values for shape input"; later "... for shape input tensor s"
SHAPE_INPUT = "missing values for shape input"
WARNING = 2
NO_KERNEL = re.compile(r"Cannot compile operation '(?P<node>[^']+)' for (?P<target>[^:]+): (?P<why>[^.]+)\.")
NO_TYPE = "because the model contains hw-specific datatypes"
# Said by every build without a driver, or with one and no GPU for the process; never the cause of a failure.
NOISE = (
    "cudaerror 35",
    "cudaerror 100",
    "thread context has not been set",
    "parameter check failed, condition: profile->isvalid",
)


class Log:
    """What TensorRT said: warnings and errors go to stderr and are kept for the result."""

    def __init__(self, trt: Any) -> None:
        self.warnings: list[str] = []
        self.errors: list[str] = []
        self.logger = _logger(trt, self)

    def note(self, severity: int, message: str) -> None:
        """Keep one message; `severity` counts from 0 (internal error) over 1 (error) to 2 (warning)."""
        sys.stderr.write(f"{'warning' if severity == WARNING else 'error'}: {message}\n")
        (self.warnings if severity == WARNING else self.errors).append(message)

    @property
    def causes(self) -> list[str]:
        """Errors that can be the cause of a failure."""
        return [text for text in self.errors if not any(noise in text.lower() for noise in NOISE)]


def _logger(trt: Any, log: Log) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = int(severity)
            if level <= WARNING:  # most calls are chatter of higher levels, some 10 000 in a build
                log.note(level, message)

    return Logger()


def library_files(patterns: tuple[str, ...]) -> list[str]:
    """Find the files of packages that are not imported yet; what is not there is left out."""
    found = []
    for pattern in patterns:
        spec = importlib.util.find_spec(pattern.partition("/")[0])
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            found += sorted(glob.glob(os.path.join(glob.escape(folder), pattern.partition("/")[2])))
    return found


def build_failure(log: Log, message: str) -> StageFailure:
    """Turn what TensorRT said into a failure with the reason that fits."""
    why = "\n".join(dict.fromkeys(log.causes or log.errors)) or "TensorRT gave no reason"
    said = why.lower()
    details = {"errors": log.errors, "warnings": log.warnings}
    if any(text in said for text in OUT_OF_MEMORY):
        fix = "lower -j or the workspace, or use smaller maximum shapes"
        return StageFailure("out-of-memory", message, why=why, fix=fix, details=details)
    if SHAPE_INPUT in said:
        fix = "export the model so that its shapes follow from the shapes of its inputs, not from an input's values"
        what = "the values of an input decide shapes, which no shape profile of a recipe can bound"
        return StageFailure("op-unsupported", what, why=why, fix=fix, details=details)
    if any(text in said for text in BAD_PROFILE):
        fix = "change the shape profile to shapes that the graph can compute"
        return StageFailure("profile-invalid", message, why=why, fix=fix, details=details)
    if NO_TYPE in said:
        fix = "choose another precision or target"
        return StageFailure(
            "precision-unsupported", "a GPU of the list lacks this precision", why=why, fix=fix, details=details
        )
    refused = list(NO_KERNEL.finditer(why))
    if refused:
        first = refused[0]
        text = f"TensorRT cannot compile node {first['node']} for {first['target']}: {first['why']}"
        nodes = [{"node": match["node"], "op": "", "error": match["why"]} for match in refused]
        fix = "choose another precision, target or stack for this model"
        return StageFailure("op-unsupported", text, why=why, fix=fix, details={**details, "nodes": nodes})
    fix = "raise build.workspace_mib" if "workspace limit" in said else "read TensorRT's message"
    return StageFailure("build-failed", message, why=why, fix=fix, details=details)


def parse(trt: Any, builder: Any, log: Log, model: str, network_flags: int) -> Any:
    """Parse an ONNX file into a new network.

    Raises:
        StageFailure: op-unsupported, naming every node that TensorRT refuses; model-invalid where it names none.

    """
    network = builder.create_network(network_flags)
    parser = trt.OnnxParser(network, log.logger)
    if parser.parse_from_file(model):
        return network
    refused = [_refusal(parser.get_error(index), model) for index in range(parser.num_errors)]
    named = [item for item in refused if item["op"]]
    texts = [f"{item['node'] or 'node without a name'} ({item['op']}): {item['error']}" for item in named]
    details = {"nodes": named, "errors": log.errors or [item["error"] for item in refused]}
    if not named:
        why = "\n".join(item["error"] for item in refused) or "\n".join(log.errors)
        raise StageFailure("model-invalid", "TensorRT cannot read the graph", why=why, details=details)
    others = f" and {len(named) - 1} more" if len(named) > 1 else ""
    raise StageFailure(
        "op-unsupported",
        f"TensorRT refuses node {named[0]['node']} ({named[0]['op']}){others}",
        why="\n".join(texts),
        fix="export the model without this operator, or use a stack that has it",
        details=details,
    )


def _refusal(error: Any, model: str) -> dict[str, str]:
    if hasattr(error, "node_name"):
        return {"node": error.node_name(), "op": error.node_operator(), "error": error.desc()}
    # before TensorRT 10 an error has the node's place in the graph only
    nodes = importlib.import_module("onnx").load(model, load_external_data=False).graph.node
    index = int(error.node())
    if not 0 <= index < len(nodes):
        return {"node": "", "op": "", "error": error.desc()}
    return {"node": nodes[index].name, "op": nodes[index].op_type, "error": error.desc()}


def graph_inputs(network: Any) -> list[GraphInput]:
    """Return the network's inputs with the names of their dynamic axes."""
    tensors = [network.get_input(index) for index in range(network.num_inputs)]
    return [
        GraphInput(
            tensor.name,
            DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()),
            tuple(
                size if size >= 0 else tensor.get_dimension_name(axis) or None for axis, size in enumerate(tensor.shape)
            ),
        )
        for tensor in tensors
    ]


def graph_outputs(network: Any) -> list[dict[str, Any]]:
    """Return name, dtype and shape of the network's outputs; a dynamic axis is -1."""
    tensors = [network.get_output(index) for index in range(network.num_outputs)]
    return [
        {
            "name": tensor.name,
            "dtype": DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()),
            "shape": list(tensor.shape),
        }
        for tensor in tensors
    ]


def add_profiles(builder: Any, config: Any, network: Any, profiles: list[Profile], log: Log) -> list[dict[str, Any]]:
    """Add one optimisation profile per shape profile; return them as TensorRT reads them back.

    Raises:
        StageFailure: input-invalid or profile-invalid, with input, axis and values.

    """
    check_profiles(graph_inputs(network), profiles)
    added = []
    for profile in profiles:
        optimization = builder.create_optimization_profile()
        for name, shapes in profile.inputs.items():
            try:
                optimization.set_shape(name, shapes.min, shapes.opt, shapes.max)
            except (ValueError, TypeError, RuntimeError) as error:
                why = f"input {name}, min {shapes.min}, opt {shapes.opt}, max {shapes.max}: {error}"
                raise StageFailure("profile-invalid", f"TensorRT refuses profile {profile.name}", why=why) from error
        if config.add_optimization_profile(optimization) < 0:
            failure = build_failure(log, f"TensorRT refuses shape profile {profile.name}")
            raise StageFailure("profile-invalid", failure.message, why=failure.why, details=failure.details)
        added.append(
            {"name": profile.name, "inputs": {name: _read_back(optimization, name) for name in profile.inputs}}
        )
    return added


def _read_back(optimization: Any, name: str) -> dict[str, list[int]]:
    low, best, high = optimization.get_shape(name)
    return {"min": list(low), "opt": list(best), "max": list(high)}
