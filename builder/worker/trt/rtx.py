"""TensorRT-RTX: strongly typed, ahead of time for a list of SMs, on a machine that needs no GPU."""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from .. import addresses, turns
from ..protocol import StageFailure
from . import layers as network_layers
from . import session

if TYPE_CHECKING:
    from ..cuda import Cuda
    from . import Layer, Options, Request
    from .engine import Engine

ALONE = "7.5"
# In the order of their dependence, as paths where packages lie.
LIBRARIES = (
    "tensorrt_rtx_libs/libtensorrt_rtx.so.*",
    "tensorrt_rtx_libs/libtensorrt_onnxparser_rtx.so.*",
    "tensorrt_rtx_bindings/*.so",
)


def build(request: Request, model: str, engine: str) -> dict[str, Any]:
    """Build an engine for every SM asked for; the same request gives the same bytes.

    Raises:
        StageFailure: sm-unsupported, option-unsupported, op-unsupported, model-invalid, input-invalid,
            profile-invalid, out-of-memory or build-failed.

    """
    turns_taken = turns.take_turns()
    fixed = addresses.load_libraries(session.library_files(LIBRARIES))
    # Imported here: the paths that an import allocates would shift the heap of the build.
    trt = importlib.import_module(request.import_name)
    capabilities = _capabilities(trt, request.sms)
    _refuse_options(request.options)
    fixed &= addresses.draw_line(addresses.HEAP_BELOW)
    facts: dict[str, Any] = addresses.in_fresh_heap(_build, trt, request, capabilities, model, engine)
    repeatable = fixed and turns_taken
    return {"tensorrt": trt.__version__, "sms": request.sms, "repeatable": repeatable, **facts}


def _build(trt: Any, request: Request, capabilities: list[Any], model: str, engine: str) -> dict[str, Any]:
    log = session.Log(trt)
    builder = trt.Builder(log.logger)
    network = session.parse(trt, builder, log, model, _strongly_typed(trt))
    config = builder.create_builder_config()
    _set_capabilities(config, capabilities, request.sms)
    flags = _set_options(trt, config, request)
    profiles = session.add_profiles(builder, config, network, request.profiles, log)
    inputs, outputs = session.graph_inputs(network), session.graph_outputs(network)
    started = time.monotonic()
    serialized = builder.build_serialized_network(network, config)
    seconds = time.monotonic() - started
    if serialized is None:
        raise session.build_failure(log, "TensorRT could not build the engine")
    with open(engine, "wb") as file:
        file.write(serialized)
    return {
        "flags": flags,
        "inputs": [item.as_json() for item in inputs],
        "outputs": outputs,
        "profiles": profiles,
        "warnings": log.warnings,
        "build_seconds": round(seconds, 6),
    }


def layers(request: Request, model: str) -> list[Layer]:
    """Return the layers of the strongly typed network; in RTX their types are those that the engine computes in.

    Raises:
        StageFailure: op-unsupported or model-invalid.

    """
    trt = importlib.import_module(request.import_name)
    log = session.Log(trt)
    builder = trt.Builder(log.logger)
    network = session.parse(trt, builder, log, model, _strongly_typed(trt))
    return network_layers.read_layers(trt, network, request.profiles)


def load(request: Request, cuda: Cuda, engine: str) -> Engine:
    """Load an engine; TensorRT-RTX makes the GPU's own kernels now.

    Raises:
        StageFailure: as `Engine`.

    """
    # not at the top: what a build imports shifts its heap, and with it the engine's bytes
    from .engine import Engine

    trt = importlib.import_module(request.import_name)
    return Engine(trt, session.Log(trt), cuda, engine)


def _strongly_typed(trt: Any) -> int:
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _capabilities(trt: Any, sms: list[str]) -> list[Any]:
    known = {name: value for name, value in trt.ComputeCapability.__members__.items() if name.startswith("SM")}
    names = ["SM" + sm.replace(".", "") for sm in sms]
    missing = [sm for sm, name in zip(sms, names) if name not in known]
    available = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in known)
    if missing or not sms:
        raise StageFailure(
            "sm-unsupported",
            f"TensorRT-RTX {trt.__version__} cannot build for SM {', '.join(missing) or 'none'}",
            why=f"it has SM {available}",
            fix="choose a target whose SMs it has, or another stack",
        )
    if ALONE in sms and len(sms) > 1:
        raise StageFailure(
            "sm-unsupported",
            f"SM {ALONE} cannot share an engine with SM {', '.join(sm for sm in sms if sm != ALONE)}",
            why="TensorRT-RTX supports Turing only in engines of its own",
            fix=f"build SM {ALONE} as a job of its own",
        )
    return [known[name] for name in names]


def _set_capabilities(config: Any, capabilities: list[Any], sms: list[str]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        if not config.set_compute_capability(capability, index):
            raise StageFailure("sm-unsupported", f"TensorRT-RTX refuses SM {sms[index]} in the list {', '.join(sms)}")


def _refuse_options(options: Options) -> None:
    """Refuse what this family lacks, by name, rather than let a setting have no effect."""
    refused = {
        "hardware_compatibility": (
            options.hardware_compatibility != "none",
            "TensorRT-RTX has no compatibility level: the SM list says where an engine runs",
        ),
        "version_compatible": (options.version_compatible, "TensorRT-RTX ships no lean runtime"),
        "strip_weights": (options.strip_weights, "TensorRT-RTX cannot build refittable engines without a GPU"),
        "refit": (options.refit, "TensorRT-RTX cannot build refittable engines without a GPU"),
        "weight_streaming": (options.weight_streaming, "TensorRT-RTX plans memory when it makes the GPU's kernels"),
        "tactic_sources": (options.tactic_sources is not None, "TensorRT-RTX chooses no tactics ahead of time"),
    }
    for name, (asked, why) in refused.items():
        if asked:
            message = f"TensorRT-RTX does not support the build option {name}"
            fix = f"remove build.{name} from the recipe, or choose another stack"
            raise StageFailure("option-unsupported", message, why=why, fix=fix, details={"option": name})


def _set_options(trt: Any, config: Any, request: Request) -> list[str]:
    """Set flags and limits; return the names of the flags that are set, as TensorRT reads them back."""
    # TF32 is on by default, and would quietly round the multiplications of an FP32 engine.
    if request.precision == "tf32":
        config.set_flag(trt.BuilderFlag.TF32)
    else:
        config.clear_flag(trt.BuilderFlag.TF32)
    options = request.options
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]
    return ["STRONGLY_TYPED", *flags]
