"""What engines of a fake TensorRT do once they are loaded: shapes, addresses, runs; see tests/surfaces.py."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.surfaces import FakeTensorRT

ERROR, WARNING = 1, 2
# the major of TensorRT whose contexts cannot share a shape profile
NO_SHARING = 8
_NUMPY = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool", "INT8": "int8"}


def say(trt: FakeTensorRT, logger: Any, level: int, text: str) -> None:
    """Let TensorRT log a message."""
    logger.log(trt.ILogger.Severity(level), text)


def _init_runtime(self: Any, logger: Any) -> None:
    self._logger = logger


def _deserialize(self: Any, content: Any, *_: Any) -> Any:
    known = self._trt.engines.get(bytes(content))
    if known is None:
        text = (
            "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion magicTagRead failed)"
        )
        say(self._trt, self._logger, ERROR, text)
        return None
    tensors = [*known["network"]._state["inputs"], *known["network"]._state["outputs"]]
    made = self._trt.new("ICudaEngine", tensors={tensor.name: tensor for tensor in tensors}, known=known)
    made._logger = self._logger
    # until it is refitted
    made._state["empty"] = known["stripped"]
    return made


def _init_refitter(self: Any, engine: Any, logger: Any) -> None:
    self._engine, self._logger = engine, logger


def _init_parser_refitter(self: Any, refitter: Any, logger: Any) -> None:
    self._refitter, self._logger = refitter, logger


def _refit_from_bytes(self: Any, model: bytes, path: str = "") -> bool:
    """Take a model; where `beside` names a file, it has to lie beside the path."""
    scene = self._trt.scene
    for text in scene.refit_errors:
        say(self._trt, self._logger, ERROR, text)
    found = not scene.beside or Path(path).with_name(scene.beside).is_file()
    self._refitter._state["model"] = bytes(model) if found and not scene.refit_errors else b""
    return bool(self._refitter._state["model"])


def _refit(self: Any) -> bool:
    missing = self._trt.scene.missing_weights
    self._engine._state["empty"] = bool(missing) or not self._state.get("model")
    return not self._engine._state["empty"]


def _serialize(self: Any, config: Any) -> bytes:
    """Write an engine, with weights only where they may not be left out, and only where it has them."""
    flag = self._trt.SerializationFlag.EXCLUDE_WEIGHTS
    stripped = self._state["empty"] or config._state["flags"] >> int(flag) & 1
    content = next(one for one, known in self._trt.engines.items() if known is self._state["known"])
    written = bytes(content) + b" with weights"
    self._trt.engines[written] = {**self._state["known"], "stripped": bool(stripped)}
    return written


def _clear_serialization_flag(self: Any, flag: Any) -> bool:
    self._state["flags"] &= ~(1 << int(flag))
    return True


def _tensor_mode(self: Any, name: str) -> Any:
    modes = self._trt.TensorIOMode
    return modes.INPUT if self._state["tensors"][name].is_network_input else modes.OUTPUT


def _set_input_shape(self: Any, name: str, shape: Any) -> bool:
    profiles = self._engine._state["known"]["profiles"]
    ranges = profiles[self.active_optimization_profile].get(name) if profiles else None
    if ranges is not None and not all(a <= b <= c for a, b, c in zip(ranges[0], shape, ranges[2], strict=True)):
        return False
    self._state["shapes"][name] = tuple(shape)
    return True


def _tensor_shape(self: Any, name: str) -> tuple[int, ...]:
    """Return a tensor's shape; a dynamic axis of an output is as long as that axis of the first input."""
    shapes = self._state["shapes"]
    if name in shapes:
        return tuple(shapes[name])
    first = next(iter(shapes.values()), ())
    shape = self._engine._state["tensors"][name].shape
    return tuple(first[axis] if size < 0 and axis < len(first) else size for axis, size in enumerate(shape))


def _new_context(self: Any, *_: Any) -> Any:
    if self._state["empty"]:
        say(self._trt, self._logger, ERROR, "Error Code 3: API Usage Error (the engine is not refitted)")
        return None
    if self._trt.scene.contexts == 0:
        say(self._trt, self._logger, ERROR, "Error Code 2: OutOfMemory (Requested size was 9 bytes.)")
        return None
    self._trt.scene.contexts -= 1
    living = self._state.setdefault("contexts", weakref.WeakSet())
    made = self._trt.new("IExecutionContext", shapes={})
    made._engine, made._logger = self, self._logger
    made._state["active_optimization_profile"] = -1 if _is_taken(made, 0) else 0
    living.add(made)
    return made


def _is_taken(context: Any, profile: int) -> bool:
    """Say whether another context has a profile to itself, as TensorRT 8 wants it."""
    if int(context._trt.__version__.partition(".")[0]) != NO_SHARING:
        return False
    others = [one for one in context._engine._state["contexts"] if one is not context]
    return any(one._state["active_optimization_profile"] == profile for one in others)


def _set_profile(self: Any, index: int, stream: int) -> bool:
    del stream
    if _is_taken(self, index) or index >= max(len(self._engine._state["known"]["profiles"]), 1):
        return False
    self._state["active_optimization_profile"] = index
    return True


def _set_address(self: Any, name: str, address: int) -> bool:
    self._state.setdefault("addresses", {})[name] = address
    return True


def _execute(self: Any, stream: int) -> bool:
    """Compute in place: what is an address on the GPU is one of this process here."""
    scene = self._trt.scene
    for text in scene.run_errors:
        say(self._trt, self._logger, ERROR, text)
    if self.active_optimization_profile < 0:
        say(
            self._trt,
            self._logger,
            ERROR,
            "Error Code 2: Internal Error (Assertion mOptimizationProfile >= 0 failed. )",
        )
        return False
    if scene.run_errors:
        return False
    captured = scene.captured.get(threading.get_ident())
    if captured is not None:
        captured.append((self, dict(self._state["addresses"]), dict(self._state["shapes"])))
    elif scene.run_on is not None:
        scene.run_on(dict(self._state["addresses"]), dict(self._state["shapes"]), stream)
    elif scene.compute is not None:
        run_fake(self, self._state["addresses"], self._state["shapes"])
    return True


def run_fake(context: Any, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
    """Read a context's inputs from memory, compute, and write its outputs."""
    tensors = context._engine._state["tensors"]
    arrays = {
        name: _array(addresses[name], shapes[name], tensor)
        for name, tensor in tensors.items()
        if tensor.is_network_input
    }
    for name, value in context._trt.scene.compute(arrays).items():
        _array(addresses[name], value.shape, tensors[name])[...] = value


def _array(address: int, shape: tuple[int, ...], tensor: Any) -> np.ndarray:
    dtype = np.dtype(_NUMPY[tensor.dtype.name])
    size = int(np.prod(shape)) * dtype.itemsize
    buffer: Any = (ctypes.c_char * max(size, 1)).from_address(address)
    return np.frombuffer(buffer, dtype, count=int(np.prod(shape))).reshape(shape)


def _profile_shape(self: Any, name: str, index: int) -> Any:
    return self._state["known"]["profiles"][index][name]


RUNNING: dict[str, Callable[..., Any]] = {
    "Runtime.__init__": _init_runtime,
    "Runtime.deserialize_cuda_engine": _deserialize,
    "Refitter.__init__": _init_refitter,
    "Refitter.refit_cuda_engine": _refit,
    "Refitter.get_missing_weights": lambda self: list(self._trt.scene.missing_weights),
    "OnnxParserRefitter.__init__": _init_parser_refitter,
    "OnnxParserRefitter.refit_from_bytes": _refit_from_bytes,
    "OnnxParserRefitter.get_error": lambda self, index: self._trt.new(
        "ParserError", desc=self._trt.scene.refit_errors[index]
    ),
    "ICudaEngine.create_serialization_config": lambda self: self._trt.new("ISerializationConfig", flags=1),
    "ICudaEngine.serialize_with_config": _serialize,
    "ISerializationConfig.clear_flag": _clear_serialization_flag,
    "ICudaEngine.get_tensor_name": lambda self, index: list(self._state["tensors"])[index],
    "ICudaEngine.get_tensor_mode": _tensor_mode,
    "ICudaEngine.get_tensor_dtype": lambda self, name: self._state["tensors"][name].dtype,
    "ICudaEngine.get_tensor_shape": lambda self, name: self._state["tensors"][name].shape,
    "ICudaEngine.get_tensor_profile_shape": _profile_shape,
    "ICudaEngine.get_tensor_location": lambda self, _name: self._trt.TensorLocation.DEVICE,
    "ICudaEngine.create_execution_context": _new_context,
    "IExecutionContext.set_input_shape": _set_input_shape,
    "IExecutionContext.get_tensor_shape": _tensor_shape,
    "IExecutionContext.set_tensor_address": _set_address,
    "IExecutionContext.get_tensor_address": lambda self, name: self._state["addresses"][name],
    "IExecutionContext.infer_shapes": lambda _self: [],
    "IExecutionContext.set_optimization_profile_async": _set_profile,
    "IExecutionContext.execute_async_v3": _execute,
}
