"""What the objects of a fake TensorRT do, as far as adapters need it; see tests/surfaces.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tests.surface_running import ERROR, RUNNING, WARNING, say

if TYPE_CHECKING:
    from tests.surfaces import FakeTensor, FakeTensorRT

VERSION_AT = 0x18


def _is_set(flags: int, flag: Any) -> bool:
    return bool(flags >> int(flag) & 1)


def _flag(self: Any, flag: Any) -> int:
    if not isinstance(flag, self._trt.BuilderFlag):
        raise TypeError(f"a BuilderFlag is needed, not {flag!r}")
    return 1 << int(flag)


def _set_flag(self: Any, flag: Any) -> None:
    self._state["flags"] = self.flags | _flag(self, flag)


def _clear_flag(self: Any, flag: Any) -> None:
    self._state["flags"] = self.flags & ~_flag(self, flag)


def _create_network(self: Any, flags: int = 0) -> Any:
    known = {int(flag) for flag in self._trt.NetworkDefinitionCreationFlag}
    if flags >> (max(known) + 1):
        raise ValueError(f"TensorRT {self._trt.__version__} knows no network flags {flags:#x}")
    return self._trt.new("INetworkDefinition", creation_flags=flags, inputs=[], layers=[], outputs=[])


def _new_config(self: Any) -> Any:
    # as TensorRT's: TF32 is on
    flags = 1 << int(self._trt.BuilderFlag.TF32)
    return self._trt.new("IBuilderConfig", flags=flags, pools={}, profiles=[], tactics=0, cache=None)


def _tensor(trt: FakeTensorRT, described: FakeTensor, *, is_input: bool = False) -> Any:
    made = trt.new(
        "ITensor",
        name=described.name,
        dtype=trt.DataType[described.dtype],
        shape=described.shape,
        is_network_input=is_input,
        is_network_output=False,
    )
    made._described = described
    return made


def _parse_from_file(self: Any, model: str) -> bool:
    del model
    trt, scene, network = self._trt, self._trt.scene, self._network
    if trt.__version__.startswith("8.") and not _is_set(
        network._state["creation_flags"], trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH
    ):
        say(trt, self._logger, ERROR, "In node -1 (importModel): INVALID_VALUE: explicit batch is needed")
        return False
    for _, operator, text in scene.parse_errors:
        say(trt, self._logger, ERROR, f"{operator}: {text}")
    if scene.parse_errors:
        return False
    state = network._state
    state["inputs"] = [_tensor(trt, one, is_input=True) for one in scene.inputs]
    state["outputs"] = [_tensor(trt, one) for one in scene.outputs]
    for output in state["outputs"]:
        output._state["is_network_output"] = True
    known = {tensor.name: tensor for tensor in [*state["inputs"], *state["outputs"]]}
    for described in scene.layers:
        tensors = {
            one.name: known.setdefault(one.name, _tensor(trt, one)) for one in [*described.inputs, *described.outputs]
        }
        layer = trt.new(
            "ILayer",
            **described.more,
            name=described.name,
            type=trt.LayerType[described.type],
            metadata=described.metadata,
            ins=[tensors[one.name] for one in described.inputs],
            outs=[tensors[one.name] for one in described.outputs],
        )
        state["layers"].append(layer)
    return True


def _init_parser(self: Any, network: Any, logger: Any) -> None:
    self._network, self._logger = network, logger


def _init_builder(self: Any, logger: Any) -> None:
    self._logger = logger


def _get_error(self: Any, index: int) -> Any:
    node, operator, text = self._trt.scene.parse_errors[index]
    return self._trt.new("ParserError", node_name=node, node_operator=operator, desc=text, index=index)


def _build(self: Any, network: Any, config: Any, *_: Any) -> bytes | None:
    trt, scene, logger = self._trt, self._trt.scene, self._logger
    for text in scene.warnings:
        say(trt, logger, WARNING, text)
    errors = [*_usage_errors(trt, network, config)] or _calibrate(trt, network, config)
    errors = scene.failing.pop(0) if scene.failing else errors
    errors = errors or _time(trt, config) or _tell(config)
    for text in errors:
        say(trt, logger, ERROR, text)
    if errors:
        return None
    version = bytes(int(part) for part in [*trt.__version__.split("."), "0"][:4])
    engine = b"ftrt".ljust(VERSION_AT, b"\0") + version + f"engine {len(trt.engines)}".encode()
    strip = trt.BuilderFlag.__members__.get("STRIP_PLAN")
    stripped = strip is not None and config.get_flag(strip)
    trt.engines[engine] = {"network": network, "profiles": list(config._state["profiles"]), "stripped": stripped}
    return engine


def _usage_errors(trt: FakeTensorRT, network: Any, config: Any) -> Iterator[str]:
    """Complain, in TensorRT's words, of flags that exist and may not be set here."""
    strong = trt.NetworkDefinitionCreationFlag.__members__.get("STRONGLY_TYPED")
    if strong is None or not _is_set(network._state["creation_flags"], strong):
        return
    for name in ("FP16", "BF16", "INT8", "FP8", "OBEY_PRECISION_CONSTRAINTS", "PREFER_PRECISION_CONSTRAINTS"):
        flag = trt.BuilderFlag.__members__.get(name)
        if flag is not None and config.get_flag(flag):
            yield (
                "IBuilder::buildSerializedNetwork: Error Code 3: API Usage Error (Parameter check failed, condition: "
                f"!config.getFlag(BuilderFlag::k{name}). )"
            )


def _calibrate(trt: FakeTensorRT, network: Any, config: Any) -> list[str]:
    """Run calibration as TensorRT does: read the cache, else ask for batches until there are none, and write it."""
    int8 = trt.BuilderFlag.__members__.get("INT8")
    if int8 is None or not config.get_flag(int8):
        return []
    calibrator, profile = config.int8_calibrator, config._state.get("calibration_profile")
    if calibrator is None:
        return ["Error Code 4: Internal Error (Calibration failure occurred with no scaling factors detected.)"]
    shapes = profile._state["shapes"] if profile is not None else {}
    names = [tensor.name for tensor in network._state["inputs"]]
    if set(shapes) != set(names):
        return ["Error Code 4: Internal Error (Calibration profile is not set for a network of dynamic shapes)"]
    kind = next(base.__name__ for base in type(calibrator).__mro__ if "_recorded" in vars(base))
    head = f"TRT-{trt.__version__}-{kind}".encode()
    known = calibrator.read_calibration_cache()
    if known is not None and bytes(known).startswith(head) and not trt.scene.refuses_caches:
        return []
    size, batches = calibrator.get_batch_size(), 0
    while True:
        addresses = calibrator.get_batch(names)
        if not addresses:
            break
        if len(addresses) != len(names) or not all(isinstance(address, int) for address in addresses):
            return ["Error Code 1: Cuda Runtime (invalid argument)"]
        batches += 1
    trt.scene.calibrated.append((size, batches, {name: shapes[name][1] for name in names}))
    calibrator.write_calibration_cache(memoryview(head + f" {batches} batches".encode()))
    return []


def _time(trt: FakeTensorRT, config: Any) -> list[str]:
    """Add to the timing cache what this build times; a build that may not is refused."""
    cache, timings = config._state["cache"], trt.scene.timings
    if cache is None or timings in cache._state["content"]:
        return []
    miss = trt.BuilderFlag.__members__.get("ERROR_ON_TIMING_CACHE_MISS")
    if miss is not None and config.get_flag(miss):
        return ["Error Code 10: Internal Error (Timing cache miss while ERROR_ON_TIMING_CACHE_MISS is set)"]
    cache._state["content"] += timings
    return []


def _tell(config: Any) -> list[str]:
    monitor = getattr(config, "progress_monitor", None)
    if monitor is None:
        return []
    monitor.phase_start("Building Engine", None, 1)
    goes_on = monitor.step_complete("Building Engine", 0)
    monitor.phase_finish("Building Engine")
    return [] if goes_on else ["the build was cancelled"]


def _create_cache(self: Any, content: Any) -> Any:
    if self._trt.scene.refuses_caches and bytes(content):
        return None
    return self._trt.new("ITimingCache", content=bytes(content))


def _set_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
    del ignore_mismatch
    self._state["cache"] = cache
    return True


def _combine(self: Any, other: Any, ignore_mismatch: bool) -> bool:
    del ignore_mismatch
    if other._state["content"] not in self._state["content"]:
        self._state["content"] += other._state["content"]
    return True


def _set_calibration_profile(self: Any, profile: Any) -> bool:
    self._state["calibration_profile"] = profile
    return True


def _set_shape(self: Any, name: str, *shapes: Any) -> None:
    low, best, high = (tuple(shape) for shape in shapes)
    if not len(low) == len(best) == len(high):
        raise ValueError(f"shapes of {name} have different ranks")
    self._state.setdefault("shapes", {})[name] = (low, best, high)


def _add_profile(self: Any, profile: Any) -> int:
    shapes = profile._state.get("shapes", {})
    if any(not a <= b <= c for low, best, high in shapes.values() for a, b, c in zip(low, best, high, strict=True)):
        return -1
    self._state["profiles"].append(shapes)
    return len(self._state["profiles"]) - 1


def _mark_output(self: Any, tensor: Any) -> None:
    tensor._state["is_network_output"] = True
    self._state["outputs"].append(tensor)


BEHAVIOUR: dict[str, Callable[..., Any]] = {
    **RUNNING,
    "ILogger.__init__": lambda _self: None,
    "Logger.__init__": lambda _self, *_: None,
    "IProgressMonitor.__init__": lambda _self: None,
    "Builder.__init__": _init_builder,
    "Builder.create_network": _create_network,
    "Builder.create_builder_config": _new_config,
    "Builder.create_optimization_profile": lambda self: self._trt.new("IOptimizationProfile"),
    "Builder.build_serialized_network": _build,
    "OnnxParser.__init__": _init_parser,
    "OnnxParser.parse_from_file": _parse_from_file,
    "OnnxParser.get_error": _get_error,
    "ParserError.desc": lambda self: self._state["desc"],
    "ParserError.node": lambda self: self._state["index"],
    "ParserError.node_name": lambda self: self._state["node_name"],
    "ParserError.node_operator": lambda self: self._state["node_operator"],
    "INetworkDefinition.get_input": lambda self, index: self._state["inputs"][index],
    "INetworkDefinition.get_output": lambda self, index: self._state["outputs"][index],
    "INetworkDefinition.get_layer": lambda self, index: self._state["layers"][index],
    "INetworkDefinition.mark_output": _mark_output,
    "ILayer.get_input": lambda self, index: self._state["ins"][index],
    "ILayer.get_output": lambda self, index: self._state["outs"][index],
    "ITensor.get_dimension_name": lambda _self, _index: "",
    "IBuilderConfig.set_flag": _set_flag,
    "IBuilderConfig.clear_flag": _clear_flag,
    "IBuilderConfig.get_flag": lambda self, flag: bool(self.flags & _flag(self, flag)),
    "IBuilderConfig.set_memory_pool_limit": lambda self, pool, size: self._state["pools"].update({pool: size}),
    "IBuilderConfig.get_memory_pool_limit": lambda self, pool: self._state["pools"].get(pool, 0),
    "IBuilderConfig.add_optimization_profile": _add_profile,
    "IBuilderConfig.set_calibration_profile": _set_calibration_profile,
    "IBuilderConfig.set_tactic_sources": lambda self, mask: self._state.update(tactics=mask) is None,
    "IBuilderConfig.get_tactic_sources": lambda self: self._state["tactics"],
    "IBuilderConfig.create_timing_cache": _create_cache,
    "IBuilderConfig.set_timing_cache": _set_cache,
    "IBuilderConfig.get_timing_cache": lambda self: self._state["cache"],
    "IBuilderConfig.set_compute_capability": lambda _self, _capability, _index: True,
    "ITimingCache.combine": _combine,
    "ITimingCache.serialize": lambda self: self._state["content"],
    "ITimingCache.reset": lambda self: self._state.update(content=b"") is None,
    "IOptimizationProfile.set_shape": _set_shape,
    "IOptimizationProfile.get_shape": lambda self, name: self._state["shapes"][name],
    "ICudaEngine.create_engine_inspector": lambda self: self._trt.new("EngineInspector"),
    "EngineInspector.get_engine_information": lambda self, _format: self._trt.scene.layer_information,
}
FUNCTIONS: dict[str, Callable[..., Any]] = {"init_libnvinfer_plugins": lambda _logger, _namespace: True}
COMPUTED: dict[str, Callable[[Any], Any]] = {
    "OnnxParserRefitter.num_errors": lambda self: len(self._trt.scene.refit_errors),
    "OnnxParser.num_errors": lambda self: len(self._trt.scene.parse_errors),
    "INetworkDefinition.num_inputs": lambda self: len(self._state["inputs"]),
    "INetworkDefinition.num_outputs": lambda self: len(self._state["outputs"]),
    "INetworkDefinition.num_layers": lambda self: len(self._state["layers"]),
    "ILayer.num_inputs": lambda self: len(self._state["ins"]),
    "ILayer.num_outputs": lambda self: len(self._state["outs"]),
    "ILayer.precision_is_set": lambda self: "precision" in self._state,
    "IBuilderConfig.num_optimization_profiles": lambda self: len(self._state["profiles"]),
    "ICudaEngine.num_io_tensors": lambda self: len(self._state["tensors"]),
    "ICudaEngine.num_optimization_profiles": lambda self: len(self._state["known"]["profiles"]),
    "ICudaEngine.num_layers": lambda self: len(self._state["known"]["network"]._state["layers"]),
}
# text names a member of an enum
DEFAULTS: dict[str, Any] = {
    "IBuilderConfig.builder_optimization_level": 3,
    "IBuilderConfig.hardware_compatibility_level": "HardwareCompatibilityLevel.NONE",
    "IBuilderConfig.profiling_verbosity": "ProfilingVerbosity.LAYER_NAMES_ONLY",
    "IBuilderConfig.max_aux_streams": -1,
    "IBuilderConfig.num_compute_capabilities": 0,
    "ICudaEngine.device_memory_size": 1024,
    "ICudaEngine.device_memory_size_v2": 1024,
    "ILayer.precision": "DataType.FLOAT",
    "Runtime.engine_host_code_allowed": False,
}
