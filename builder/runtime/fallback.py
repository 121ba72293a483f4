"""What answers where TensorRT does not: a callable of the application's, or ONNX Runtime with the same model."""

from __future__ import annotations

import importlib
import os
import threading
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Tuple, Union

import numpy as np

from .callers import loaded_torch
from .memory import Blocks, DeviceArray
from .reasons import EngineRefused

if TYPE_CHECKING:
    from .driver import Driver

Answer = Callable[..., Any]


def make_fallback(given: Union[str, os.PathLike[str], Answer, None], driver: Callable[[], Driver]) -> Optional[Answer]:
    """Make a callable of what the application gave; an ONNX file is opened when it is needed for the first time.

    `driver` opens the GPU, for arrays that lie there.

    Raises:
        TypeError: it is nothing of the kind.

    """
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike)):
        return OnnxFallback(os.fspath(given), None, driver)
    if hasattr(given, "get_inputs") and hasattr(given, "run"):
        return OnnxFallback("the session given", given, driver)
    if callable(given):
        return given
    raise TypeError(f"a fallback is a callable, an ONNX file or an ONNX Runtime session, not {type(given).__name__}")


class OnnxFallback:
    """A model in ONNX Runtime, called as the engine is: outputs are of the kind that the first input is."""

    def __init__(self, path: str, session: Any, driver: Callable[[], Driver]) -> None:
        self._path, self._session, self._driver = path, session, driver
        self._lock = threading.Lock()
        self._blocks: Optional[Blocks] = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model.

        Raises:
            EngineRefused: library-missing or file-missing where there is no ONNX Runtime or no model.
            TypeError: inputs have other names or another number.

        """
        session = self._open()
        names = [tensor.name for tensor in session.get_inputs()]
        feeds = dict(zip(names, args), **kwargs)
        if len(args) + len(kwargs) != len(names) or set(feeds) != set(names):
            raise TypeError(f"{self._path} takes {', '.join(names)}")
        found = session.run(None, {name: self._to_host(value) for name, value in feeds.items()})
        like = args[0] if args else feeds[names[0]]
        outputs = tuple([self._as(like, value) for value in found])
        return outputs[0] if len(outputs) == 1 else outputs

    def _open(self) -> Any:
        with self._lock:
            if self._session is None:
                try:
                    runtime = importlib.import_module("onnxruntime")
                except ImportError as error:
                    what = "the fallback needs ONNX Runtime"
                    raise EngineRefused("library-missing", what, why=str(error), fix="install onnxruntime") from error
                if not os.path.isfile(self._path):
                    raise EngineRefused("file-missing", f"the fallback {self._path} is not there")
                # TensorRT again would build an engine for minutes, and fail as it just has
                providers = [name for name in runtime.get_available_providers() if "tensorrt" not in name.lower()]
                self._session = runtime.InferenceSession(self._path, providers=providers)
            return self._session

    def _to_host(self, value: Any) -> np.ndarray:
        torch = loaded_torch()
        if torch is not None and torch.is_tensor(value):
            return np.asarray(value.detach().cpu().numpy())
        said = getattr(value, "__cuda_array_interface__", None)
        if said is None:
            return np.asarray(value)
        if said.get("strides") is not None:
            raise TypeError("an array with gaps cannot be copied from the GPU")
        driver, made = self._driver(), np.empty(tuple(said["shape"]), said["typestr"])
        before = driver.enter()
        try:
            stream = said.get("stream")
            driver.synchronize() if stream is None else driver.finish(int(stream))
            driver.download(made, int(said["data"][0]))
        finally:
            driver.leave(before)
        return made

    def _as(self, like: Any, value: np.ndarray) -> Any:
        torch = loaded_torch()
        if torch is not None and torch.is_tensor(like):
            return torch.from_numpy(value).to(like.device)
        if getattr(like, "__cuda_array_interface__", None) is None:
            return value
        driver = self._driver()
        with self._lock:
            if self._blocks is None:
                self._blocks = Blocks(driver)
        before = driver.enter()
        try:
            made = DeviceArray(self._blocks, value.dtype, value.shape, value.nbytes)
            driver.upload(made.address, np.ascontiguousarray(value))
        finally:
            driver.leave(before)
        return made


def bind(names: List[str], places: Dict[str, int], args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Tuple[Any, ...]:
    """Put inputs given by place and by name into the engine's order.

    Raises:
        EngineRefused: input-invalid.

    """
    bound: List[Any] = [None] * len(names)
    bound[: len(args)] = args[: len(names)]
    unknown = sorted(set(kwargs) - set(places))
    twice = [name for name in names[: len(args)] if name in kwargs]
    missing = [name for name in names[len(args) :] if name not in kwargs]
    if unknown or twice or missing or len(args) > len(names):
        given = ", ".join([*(f"input {index}" for index in range(len(args))), *kwargs]) or "none"
        what = f"the engine takes {', '.join(names)}; given are {given}"
        raise EngineRefused("input-invalid", what, fix="give each input once, by place or by name")
    for name, value in kwargs.items():
        bound[places[name]] = value
    return tuple(bound)
