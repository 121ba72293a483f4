"""Reads the engine inspector's JSON, as TensorRT 8.6, 10 and 11 write it: what each layer of an engine really is."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from ..protocol import StageFailure

UNKNOWN = "UNKNOWN"
# Words of the inspector, in lower case, to the names that the types have in TensorRT's API.
TYPES = {
    "fp32": "FLOAT",
    "float": "FLOAT",
    "float32": "FLOAT",
    "fp16": "HALF",
    "half": "HALF",
    "float16": "HALF",
    "bf16": "BF16",
    "bfloat16": "BF16",
    "fp8": "FP8",
    "float8": "FP8",
    "fp4": "FP4",
    "int4": "INT4",
    "int8": "INT8",
    "uint8": "UINT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
    "boolean": "BOOL",
}
# 11 splits what 8.6 and 10 write into one text; the type alone says more than the format's description.
TYPE_KEYS = ("datatype", "format/datatype", "format")
_WORD = re.compile(r"[a-z]+[a-z0-9]*")
# Several names follow one another with a control character in between, or with nothing.
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x00-\x1f]|\[ONNX Layer: |\s*$)", re.DOTALL)
_REGION = re.compile(r"^\{?ForeignNode\[(?P<inside>.*)\]\}?\s*$", re.DOTALL)
_OTHER_PROFILE = re.compile(r" \[profile [1-9]\d*\]$")


class EngineLayer(NamedTuple):
    """One layer of an engine.

    `inputs` and `outputs` are types (FLOAT, HALF, ...; UNKNOWN where the inspector does not say), `reads` and `makes`
    the names of these tensors. `nodes` are the ONNX nodes that went into the layer. `region` holds the first and the
    last network layer of a Myelin region, whose inside the inspector of 8.6 does not show. `weights` is the type of the
    weights inside the layer, UNKNOWN without any.
    """

    name: str
    kind: str
    inputs: list[str]
    outputs: list[str]
    reads: list[str]
    makes: list[str]
    nodes: list[str]
    region: tuple[str, str] | None
    tactic: str
    weights: str


class Inspection(NamedTuple):
    """The layers of an engine in their order, and the names of the engine's inputs and outputs."""

    layers: list[EngineLayer]
    tensors: list[str]


def read(text: str) -> Inspection:
    """Read what the engine inspector says of a whole engine, in JSON, for the first shape profile.

    Raises:
        StageFailure: precision-unproven where the engine has no layer details or the text is not the inspector's.

    """
    try:
        # names of nodes are joined with raw control characters, which strict JSON forbids
        document = json.loads(text, strict=False)
        listed = document["Layers"]
        layers = [_layer(entry) for entry in listed if isinstance(entry, dict)]
        tensors = [_name(entry) for entry in document.get("Bindings", document.get("I/O Tensors", []))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(text, error) from error
    if not layers or len(layers) < len(listed):
        raise StageFailure(
            "precision-unproven",
            "the engine has no layer details",
            why="it was built with a profiling verbosity that keeps the names of its layers at most",
            fix="build it with profiling verbosity DETAILED, as enginefarm does",
            details={"layers": [entry for entry in listed if isinstance(entry, str)][:20]},
        )
    # each further shape profile has layers of its own, which end in its number
    own = [layer for layer in layers if not _OTHER_PROFILE.search(layer.name)]
    return Inspection(own, [name for name in tensors if not _OTHER_PROFILE.search(name)])


def type_of(text: str) -> str:
    """Find the type in a text like `Half`, `Row major linear FP32` or `Channel major FP16 format where C % 8 == 0`."""
    for word in _WORD.findall(text.lower()):
        if word in TYPES:
            return TYPES[word]
        if word.startswith(("fp8", "fp4")):  # FP8E4M3 and its like
            return str(word[:3].upper())
    return UNKNOWN


def _layer(entry: dict[str, Any]) -> EngineLayer:
    inputs, outputs = entry.get("Inputs") or [], entry.get("Outputs") or []
    name = str(entry["Name"])
    return EngineLayer(
        name=name,
        kind=str(entry.get("LayerType", "")),
        inputs=[_type(tensor) for tensor in inputs],
        outputs=[_type(tensor) for tensor in outputs],
        reads=[_name(tensor) for tensor in inputs],
        makes=[_name(tensor) for tensor in outputs],
        nodes=_NODE.findall(str(entry.get("Metadata") or "")),
        region=_region(name),
        tactic=str(entry.get("TacticName") or entry.get("TacticValue") or ""),
        weights=_weights(entry.get("Weights")),
    )


def _name(entry: Any) -> str:
    return str(entry["Name"]) if isinstance(entry, dict) else str(entry)


def _type(tensor: dict[str, Any]) -> str:
    told = {str(key).lower(): str(value) for key, value in tensor.items()}
    found = (type_of(told[key]) for key in TYPE_KEYS if key in told)
    return next((one for one in found if one != UNKNOWN), UNKNOWN)


def _region(name: str) -> tuple[str, str] | None:
    match = _REGION.search(name)
    if match is None:
        return None
    first, dots, last = match["inside"].partition("...")
    return (first, last if dots else first)


def _weights(entry: Any) -> str:
    has_any = isinstance(entry, dict) and entry.get("Count", 1)
    return type_of(str(entry.get("Type", ""))) if has_any else UNKNOWN


def _unreadable(text: str, error: Exception) -> StageFailure:
    return StageFailure(
        "precision-unproven",
        "the engine inspector's answer cannot be read",
        why=f"{type(error).__name__}: {error}; it begins with {text[:100]!r}",
        fix="report it with the log",
    )
