"""Canonical ONNX: the same model gives the same bytes on every machine and path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx

from .graph import PROTOBUF_LIMIT_BYTES, graphs
from .protocol import StageFailure

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

    from .protocol import Profile


def write(exported: str, settings: dict[str, Any], profiles: list[Profile], path: str) -> None:
    """Clean what an exporter wrote, check it against the recipe and write it.

    Raises:
        StageFailure: export-failed.

    """
    model = onnx.load(exported)
    clean(model)
    _check_names(model, settings)
    _check_axes(model, settings, profiles)
    try:
        onnx.checker.check_model(exported, full_check=True)
    except Exception as error:  # the checker's errors share no base class
        raise StageFailure("export-failed", "the exporter wrote an invalid model", why=str(error)[:2000]) from error
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > PROTOBUF_LIMIT_BYTES:
        location = path.rpartition("/")[2] + ".data"
        onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=1024)
        return
    with open(path, "wb") as file:
        file.write(model.SerializeToString(deterministic=True))


def clean(model: ModelProto) -> None:
    """Drop what does not change the result: stack traces, paths, comments, inferred shapes."""
    model.doc_string = ""
    del model.metadata_props[:]
    for graph in graphs(model.graph):
        graph.doc_string = ""
        del graph.metadata_props[:]
        del graph.value_info[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
        for value in [*graph.input, *graph.output]:
            value.doc_string = ""
            del value.metadata_props[:]
        for tensor in graph.initializer:
            tensor.doc_string = ""
            del tensor.metadata_props[:]
    for function in model.functions:
        function.doc_string = ""
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def _check_names(model: ModelProto, settings: dict[str, Any]) -> None:
    for kind, values in (("input", model.graph.input), ("output", model.graph.output)):
        have, want = [value.name for value in values], settings[f"{kind}_names"]
        if have != want:
            raise StageFailure(
                "export-failed",
                f"the exported graph has {kind}s {have}, the recipe says {want}",
                why="an input that the model does not use disappears at export" if kind == "input" else "",
                fix=f"correct export.{kind}_names",
            )


def _check_axes(model: ModelProto, settings: dict[str, Any], profiles: list[Profile]) -> None:
    fixed = {value.name: _fixed(value) for value in model.graph.input}
    for profile in profiles:
        for name, ranges in profile.inputs.items():
            for axis, (low, high) in enumerate(zip(ranges.min, ranges.max)):
                size = fixed[name].get(axis)
                if size is None or low == high == size:
                    continue
                declared = str(axis) in {str(item) for item in settings["dynamic_axes"].get(name, {})}
                raise StageFailure(
                    "export-failed",
                    f"axis {axis} of input {name} is fixed at {size} in the exported graph, but shape profile "
                    f"{profile.name} wants {low} to {high}",
                    why="the exporter specialised it to the example input" if declared else "it is not in dynamic_axes",
                    fix="do not turn sizes into Python numbers in the model"
                    if declared
                    else f"add export.dynamic_axes: {{{name}: {{{axis}: size}}}}",
                )


def _fixed(value: ValueInfoProto) -> dict[int, int]:
    dims = value.type.tensor_type.shape.dim
    return {axis: dim.dim_value for axis, dim in enumerate(dims) if dim.WhichOneof("value") == "dim_value"}
