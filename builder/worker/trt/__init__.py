"""TensorRT adapters: one module per family, behind one Protocol and one registry."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, Protocol, cast

from ..protocol import Job, Profile, ProtocolError

# Family of a stack to the module that speaks to it.
ADAPTERS = {"rtx": "rtx"}


class Options(NamedTuple):
    """Build options of the recipe; None leaves TensorRT's own choice."""

    workspace_mib: int | None
    optimization_level: int | None
    hardware_compatibility: str
    version_compatible: bool
    strip_weights: bool


class Request(NamedTuple):
    """What is asked of TensorRT, apart from the graph."""

    family: str
    import_name: str
    precision: str
    profiles: list[Profile]
    sms: list[str]
    options: Options


class Layer(NamedTuple):
    """One layer of the network that TensorRT made of the graph.

    `node` is the ONNX node it came from, or empty. `macs` are multiply-accumulates at the opt shape of the first
    profile; None where the layer is not one that multiplies matrices, -1 where they could not be counted.
    """

    name: str
    node: str
    kind: str
    inputs: list[str]
    outputs: list[str]
    macs: int | None


class Adapter(Protocol):
    """What every family can do. Both raise StageFailure with TensorRT's own words."""

    def build(self, request: Request, model: str, engine: str) -> dict[str, Any]:
        """Build the ONNX file `model` into the file `engine` and return the facts that the build stage reports."""

    def layers(self, request: Request, model: str) -> list[Layer]:
        """Parse the ONNX file `model` as `build` does and return the layers that TensorRT sees."""


def adapter(family: str) -> Adapter:
    """Find the adapter of a stack's family.

    Raises:
        ProtocolError: no adapter has this name.

    """
    if family not in ADAPTERS:
        msg = f"unknown TensorRT family {family!r}; this worker has {', '.join(ADAPTERS)}"
        raise ProtocolError(msg)
    return cast("Adapter", importlib.import_module(f".{ADAPTERS[family]}", __name__))


def read_request(job: Job) -> Request:
    """Read what the build and examine stages ask of TensorRT."""
    params, options = job.params, job.params["options"]
    return Request(
        family=params["family"],
        import_name=params["import_name"],
        precision=job.precision,
        profiles=job.profiles,
        sms=list(params["sms"]),
        options=Options(
            workspace_mib=options["workspace_mib"],
            optimization_level=options["optimization_level"],
            hardware_compatibility=options["hardware_compatibility"],
            version_compatible=options["version_compatible"],
            strip_weights=options["strip_weights"],
        ),
    )
