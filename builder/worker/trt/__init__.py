"""TensorRT adapters: one module per family, behind one Protocol and one registry."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from ..protocol import Job, Profile, ProtocolError

if TYPE_CHECKING:
    from ..cuda import Cuda
    from .engine import Engine

# Family of a stack to the module that speaks to it.
ADAPTERS = {"rtx": "rtx", "trt8": "trt8", "trt10": "trt10", "trt11": "trt11"}


class Options(NamedTuple):
    """Build options of the recipe; None leaves TensorRT's own choice."""

    workspace_mib: int | None
    optimization_level: int | None
    hardware_compatibility: str
    version_compatible: bool
    strip_weights: bool
    refit: bool = False
    weight_streaming: bool = False
    tactic_sources: list[str] | None = None


class Timing(NamedTuple):
    """Timing caches of a build: the files to read, and whether they must hold all that the build needs.

    `same_device`: the caches are known to come from such a GPU and driver, if not from this very board.
    """

    files: tuple[str, ...] = ()
    sealed: bool = False
    same_device: bool = False


class Calibration(NamedTuple):
    """How INT8 is calibrated: entropy or minmax, on so many batches made from `inputs`, or from a cache's file."""

    method: str
    batches: int
    inputs: dict[str, Any]
    cache: str | None = None


class Request(NamedTuple):
    """What is asked of TensorRT, apart from the graph. `kept_fp32`: nodes of the graph that must compute in FP32.

    `calibration`: only for int8.
    """

    family: str
    import_name: str
    precision: str
    profiles: list[Profile]
    sms: list[str]
    options: Options
    timing: Timing = Timing()
    kept_fp32: tuple[str, ...] = ()
    calibration: Calibration | None = None


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
    """What every family can do. All raise StageFailure with TensorRT's own words."""

    def build(self, request: Request, model: str, engine: str) -> dict[str, Any]:
        """Build the ONNX file `model` into the file `engine` and return the facts that the build stage reports."""

    def layers(self, request: Request, model: str) -> list[Layer]:
        """Parse the ONNX file `model` as `build` does and return the layers that TensorRT sees."""

    def load(self, request: Request, cuda: Cuda, engine: str) -> Engine:
        """Load an engine on a GPU, to run it."""


class GpuAdapter(Adapter, Protocol):
    """What a family can do besides where it builds on a GPU."""

    def engine_layers(self, request: Request, engine: str) -> str:
        """Return what the inspector says of the engine's layers at the opt shapes of the first profile, as JSON."""

    def build_debug(self, request: Request, model: str, engine: str, tensors: list[str]) -> list[str]:
        """Build an engine that gives the named values of the graph, too; return those that TensorRT still knows."""


def adapter(family: str) -> Adapter:
    """Find the adapter of a stack's family.

    Raises:
        ProtocolError: no adapter has this name.

    """
    if family not in ADAPTERS:
        msg = f"unknown TensorRT family {family!r}; this worker has {', '.join(ADAPTERS)}"
        raise ProtocolError(msg)
    module = importlib.import_module(f".{ADAPTERS[family]}", __name__)
    return cast("Adapter", getattr(module, "ADAPTER", module))


def gpu_adapter(family: str) -> GpuAdapter:
    """Find the adapter of a family that builds on a GPU.

    Raises:
        ProtocolError: no adapter has this name, or it needs no GPU.

    """
    found = adapter(family)
    if not hasattr(found, "engine_layers"):
        msg = f"family {family} builds without a GPU"
        raise ProtocolError(msg)
    return cast("GpuAdapter", found)


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
            refit=options.get("refit", False),
            weight_streaming=options.get("weight_streaming", False),
            tactic_sources=options.get("tactic_sources"),
        ),
        timing=Timing(
            tuple(path for name, path in sorted(job.inputs.items()) if name.startswith("timing_cache")),
            params.get("sealed", False),
            params.get("same_device", False),
        ),
        kept_fp32=tuple(params.get("kept_fp32", ())),
        calibration=_calibration(job),
    )


def _calibration(job: Job) -> Calibration | None:
    asked = job.params.get("calibration")
    if asked is None:
        return None
    return Calibration(asked["method"], asked["batches"], asked["inputs"], job.inputs.get("calibration_cache"))
