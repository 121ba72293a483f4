"""TensorRT 8.6 to 11 on the GPU that the engine is for: what the majors share. Flags go by name, never by number."""

from __future__ import annotations

import importlib
import sys
import time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cuda import Cuda
from ..protocol import StageFailure
from . import calibrate, session, timing_cache
from . import layers as network_layers
from .engine import Engine
from .loading import check_header

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..cuda import Device
    from . import Layer, Options, Request

MIB = 1 << 20
# Left free beside the workspace: weights, activations and CUDA's own needs while tactics are timed.
RESERVE_BYTES = 512 * MIB
LEAST_WORKSPACE_BYTES = 64 * MIB
AMPERE = (8, 0)
LEVELS = {"ampere_plus": "AMPERE_PLUS", "same_compute_capability": "SAME_COMPUTE_CAPABILITY"}
# An editable cache names the timings of each layer: a sealed build finds those that were written in the same way alone.
# Compiled code in the cache would make it grow where no timing was missing.
RECORDING = ("EDITABLE_TIMING_CACHE", "DISABLE_COMPILATION_CACHE")
# Said beside "could not find any implementation" when it was memory that was missing.
SHORT_OF_MEMORY = (
    "insufficient memory",
    "not enough memory",
    "requested amount of gpu memory",
    "outofmemory",
    "out of memory",
    "tactic device request",
)
CACHE_MISS = "timing cache miss"
NO_IMPLEMENTATION = "could not find any implementation"
# Less free memory than this share of the GPU's makes a failure to find a tactic one of memory.
NEARLY_FULL = 0.05


def _nothing(trt: Any, network: Any, model: str, request: Request) -> int:
    del trt, network, model, request
    return 0


class Classic(NamedTuple):
    """The adapter of a major: what it says otherwise than the others, as data.

    `network_flags` and `precision_flags` name flags, `own_network_flags` those of precisions whose networks are made
    otherwise; of `recording`, set in every build, and `sealing`, those count that the release has. `constrain` tells a
    network that was parsed which layers compute in which precision and returns how many it told.
    """

    network_flags: tuple[str, ...]
    precision_flags: dict[str, tuple[str, ...]]
    recording: tuple[str, ...] = ()
    sealing: tuple[str, ...] = ()
    constrain: Callable[[Any, Any, str, Request], int] = _nothing
    own_network_flags: Mapping[str, tuple[str, ...]] = MappingProxyType({})

    def build(self, request: Request, model: str, engine: str) -> dict[str, Any]:
        """Build an engine on the GPU of this process.

        The workspace never exceeds what is free; where memory runs out the build is tried once more with half of it.

        Raises:
            StageFailure: gpu-needed, sm-mismatch, option-unsupported, op-unsupported, model-invalid, input-invalid,
                profile-invalid, precision-unsupported, timing-cache-invalid, sealed-cache-changed, library-missing,
                out-of-memory, build-failed.

        """
        cuda = Cuda()
        _check_device(request, cuda.device)
        parts = _open(self, request, model, cuda)
        inputs, outputs = session.graph_inputs(parts.network), session.graph_outputs(parts.network)
        free, total = cuda.memory()
        asked = request.options.workspace_mib
        attempt = _attempt(
            parts, max(min(asked * MIB if asked else total, free - RESERVE_BYTES), LEAST_WORKSPACE_BYTES)
        )
        retried = attempt.serialized is None and _is_memory(parts.log, cuda)
        if retried:
            half = max(attempt.workspace_bytes // 2, LEAST_WORKSPACE_BYTES)
            sys.stderr.write(f"warning: out of GPU memory; once more with a workspace of {half // MIB} MiB\n")
            parts.log.errors.clear()
            attempt = _attempt(parts, half)
        if attempt.serialized is None:
            raise _failure(parts, cuda, attempt.workspace_bytes, sealed=request.timing.sealed)
        with open(engine, "wb") as file:
            file.write(attempt.serialized)
        calibrated = parts.calibration.save(parts.log) if parts.calibration is not None else None
        _close(parts)
        return {
            "tensorrt": parts.trt.__version__,
            "sms": [cuda.device.sm],
            "device": {"name": cuda.device.name, "sm": cuda.device.sm, "driver_cuda": cuda.device.driver_cuda},
            "repeatable": False,
            "flags": [*self._network_flags(parts.trt, request.precision), *_flags_read_back(parts.trt, parts.config)],
            "inputs": [item.as_json() for item in inputs],
            "outputs": outputs,
            "profiles": parts.profiles,
            "warnings": parts.log.warnings,
            "build_seconds": round(attempt.seconds, 6),
            "precision_constraints": parts.told,
            "workspace_bytes": attempt.workspace_bytes,
            "gpu_free_bytes": free,
            "retried_with_less_memory": retried,
            "network_layers": [layer._asdict() for layer in _layers(parts, request)],
            "calibration": calibrated,
            "timing_cache": timing_cache.save_timing(parts.trt, parts.config, request, parts.timing),
        }

    def layers(self, request: Request, model: str) -> list[Layer]:
        """Return the layers of the parsed network. Before TensorRT 10 their types say nothing.

        Raises:
            StageFailure: gpu-needed, op-unsupported or model-invalid.

        """
        Cuda()
        trt, log = _load(request)
        bits = self.network_bits(trt, request.precision)
        network = session.parse(trt, _builder(trt, log), log, model, bits)
        return network_layers.read_layers(trt, network, request.profiles)

    def engine_layers(self, request: Request, engine: str) -> str:
        """Return what the inspector says of an engine's layers at the opt shapes of the first profile, as JSON text.

        Raises:
            StageFailure: as `Engine`.

        """
        shapes = {name: ranges.opt for name, ranges in request.profiles[0].inputs.items()}
        return self.load(request, Cuda(), engine).layer_information(0, shapes)

    def load(self, request: Request, cuda: Cuda, engine: str) -> Engine:
        """Load an engine to run it.

        Raises:
            StageFailure: as `Engine`.

        """
        trt, log = _load(request)
        check_header(trt, engine, version_compatible=request.options.version_compatible)
        return Engine(trt, log, cuda, engine)

    def build_debug(self, request: Request, model: str, engine: str, tensors: list[str]) -> list[str]:
        """Build an engine that gives the named values, too; return those that TensorRT still knows by these names.

        More outputs mean fewer fusions: the engine is like the one it stands for, not the same.

        Raises:
            StageFailure: as `build`.

        """
        cuda = Cuda()
        parts = _open(self, request, model, cuda)
        wanted, marked = set(tensors), []
        for layer in (parts.network.get_layer(index) for index in range(parts.network.num_layers)):
            for tensor in (layer.get_output(index) for index in range(layer.num_outputs)):
                if tensor is not None and tensor.name in wanted and not tensor.is_network_output:
                    parts.network.mark_output(tensor)
                    marked.append(str(tensor.name))
        serialized = parts.builder.build_serialized_network(parts.network, parts.config)
        if serialized is None:
            raise _failure(parts, cuda, 0, sealed=False)
        _close(parts)
        with open(engine, "wb") as file:
            file.write(serialized)
        return marked

    def _network_flags(self, trt: Any, precision: str) -> list[str]:
        names = self.own_network_flags.get(precision, self.network_flags)
        return [name for name in names if name in trt.NetworkDefinitionCreationFlag.__members__]

    def network_bits(self, trt: Any, precision: str) -> int:
        """Return the creation flags of a precision's networks as TensorRT wants them.

        Raises:
            StageFailure: precision-unsupported.

        """
        if precision not in self.precision_flags:
            has = ", ".join(self.precision_flags)
            what = f"TensorRT {trt.__version__} is not asked for {precision} here"
            raise StageFailure("precision-unsupported", what, fix=f"ask for {has}, or choose another stack")
        bits = 0
        for name in self._network_flags(trt, precision):
            bits |= 1 << int(trt.NetworkDefinitionCreationFlag.__members__[name])
        return bits


class Parts(NamedTuple):
    """Everything a build needs, ready. `timing`: the timing cache as TensorRT writes it when nothing was added."""

    trt: Any
    log: session.Log
    builder: Any
    network: Any
    config: Any
    profiles: list[dict[str, Any]]
    told: int
    timing: bytes
    calibration: calibrate.Source | None


class Attempt(NamedTuple):
    """One call of the builder."""

    serialized: Any
    seconds: float
    workspace_bytes: int


def _load(request: Request) -> tuple[Any, session.Log]:
    try:
        trt = importlib.import_module(request.import_name)
    except ImportError as error:
        fix = "build the image of the stack again"
        raise StageFailure("library-missing", "TensorRT does not load", why=str(error), fix=fix) from error
    log = session.Log(trt)
    _plugins(trt, log)
    return trt, log


def _plugins(trt: Any, log: session.Log) -> None:
    register = getattr(trt, "init_libnvinfer_plugins", None)
    if register is not None:
        register(log.logger, "")


def _layers(parts: Parts, request: Request) -> list[Layer]:
    # after the build: counting the work changes the shapes of the network's inputs
    return network_layers.read_layers(parts.trt, parts.network, request.profiles)


def _builder(trt: Any, log: session.Log) -> Any:
    try:
        return trt.Builder(log.logger)
    except TypeError as error:  # the bindings' way of saying that TensorRT gave nothing
        raise session.build_failure(log, "TensorRT could not make a builder") from error


def _open(major: Classic, request: Request, model: str, cuda: Cuda) -> Parts:
    trt, log = _load(request)
    builder = _builder(trt, log)
    network = session.parse(trt, builder, log, model, major.network_bits(trt, request.precision))
    told = major.constrain(trt, network, model, request)
    config = builder.create_builder_config()
    profiles = session.add_profiles(builder, config, network, request.profiles, log)
    _set_flags(trt, config, [*major.precision_flags[request.precision], *_option_flags(request.options)])
    _set_options(trt, config, request)
    # 8.6 has none of these: there the cache's bytes tell afterwards
    known = trt.BuilderFlag.__members__
    asked = [*major.recording, *(major.sealing if request.timing.sealed else ())]
    for flag in (known[name] for name in asked if name in known):
        config.set_flag(flag)
    timing = timing_cache.load_timing(config, request, log)
    calibration = calibrate.attach(trt, builder, network, config, cuda, request)
    return Parts(trt, log, builder, network, config, profiles, told, timing, calibration)


def _close(parts: Parts) -> None:
    if parts.calibration is not None:
        parts.calibration.free()


def _check_device(request: Request, device: Device) -> None:
    asked, level = request.sms, request.options.hardware_compatibility
    number = tuple(int(part) for part in device.sm.split("."))
    if device.sm in asked or (level == "ampere_plus" and number >= AMPERE):
        return
    raise StageFailure(
        "sm-mismatch",
        f"the engine is for SM {', '.join(asked)}, this GPU ({device.name}) has SM {device.sm}",
        why="classic TensorRT tunes on the GPU that the engine is for",
        fix="build on such a GPU, or with hardware_compatibility: ampere_plus for all from SM 8.0",
    )


def _option_flags(options: Options) -> list[str]:
    asked = {
        # what reads such an engine brings its own runtime: none is put inside, so loading never runs foreign code
        "VERSION_COMPATIBLE": options.version_compatible,
        "EXCLUDE_LEAN_RUNTIME": options.version_compatible,
        "STRIP_PLAN": options.strip_weights,
        "REFIT": options.refit,
        "WEIGHT_STREAMING": options.weight_streaming,
    }
    return [name for name, wanted in asked.items() if wanted]


def _set_flags(trt: Any, config: Any, names: list[str]) -> None:
    # TF32 is on by default and would quietly round the products of an FP32 engine
    config.clear_flag(trt.BuilderFlag.TF32)
    for name in names:
        flag = trt.BuilderFlag.__members__.get(name)
        if flag is None:
            raise _lacks(trt, f"the builder flag {name}")
        config.set_flag(flag)


def _set_options(trt: Any, config: Any, request: Request) -> None:
    options = request.options
    # without it the inspector gives names of layers only, and nothing could be proven
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware_compatibility != "none":
        name = LEVELS[options.hardware_compatibility]
        level = trt.HardwareCompatibilityLevel.__members__.get(name)
        if level is None:
            raise _lacks(trt, f"the hardware compatibility level {name}")
        config.hardware_compatibility_level = level
    if options.tactic_sources is not None:
        mask = 0
        for source in options.tactic_sources:
            member = trt.TacticSource.__members__.get(source.upper())
            if member is None:
                raise _lacks(trt, f"the tactic source {source}")
            mask |= 1 << int(member)
        if not config.set_tactic_sources(mask):
            raise _lacks(trt, f"this set of tactic sources: {', '.join(options.tactic_sources) or 'none'}")
    monitor = _monitor(trt)
    if monitor is not None:
        config.progress_monitor = monitor


def _lacks(trt: Any, what: str) -> StageFailure:
    fix = "drop it from the recipe, or choose another stack"
    return StageFailure("option-unsupported", f"TensorRT {trt.__version__} does not have {what}", fix=fix)


def _monitor(trt: Any) -> Any:
    """Name the builder's phases in the log as they begin, where TensorRT tells them (since 9.1)."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                sys.stderr.write(f"phase: {phase_name} ({num_steps} steps)\n")

        def step_complete(self, phase_name: str, step: int) -> bool:  # noqa: ARG002  # TensorRT's signature
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


def _attempt(parts: Parts, workspace_bytes: int) -> Attempt:
    parts.config.set_memory_pool_limit(parts.trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    started = time.monotonic()
    serialized = parts.builder.build_serialized_network(parts.network, parts.config)
    return Attempt(serialized, time.monotonic() - started, workspace_bytes)


def _is_memory(log: session.Log, cuda: Cuda) -> bool:
    said = "\n".join([*log.errors, *log.warnings]).lower()
    if any(text in said for text in SHORT_OF_MEMORY):
        return True
    free, total = cuda.memory()
    return NO_IMPLEMENTATION in said and free < total * NEARLY_FULL


def _failure(parts: Parts, cuda: Cuda, workspace_bytes: int, *, sealed: bool) -> StageFailure:
    if parts.calibration is not None and parts.calibration.failure is not None:
        return parts.calibration.failure
    log = parts.log
    failure = session.build_failure(log, "TensorRT could not build the engine")
    if sealed and CACHE_MISS in failure.why.lower():
        return timing_cache.changed(failure.why)
    if failure.reason == "build-failed" and _is_memory(log, cuda):
        free, total = cuda.memory()
        room = f"{free // MIB} of {total // MIB} MiB are free, the workspace was {workspace_bytes // MIB} MiB"
        why = f"{failure.why}\n{room}"
        fix = "end other programs on the GPU, or use smaller maximum shapes"
        return StageFailure("out-of-memory", "the GPU has too little free memory", why=why, fix=fix)
    return failure


def _flags_read_back(trt: Any, config: Any) -> list[str]:
    # 10 has an older name beside STRIP_PLAN
    return [name for name, flag in trt.BuilderFlag.__members__.items() if name == flag.name and config.get_flag(flag)]
