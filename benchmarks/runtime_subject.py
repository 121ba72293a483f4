"""What benchmarks/runtime.py measures with: an engine run by TensorRT's own calls, and inputs with their right outputs.

Python 3.8 or later, the standard library, NumPy and TensorRT.
"""

from __future__ import annotations

import json
import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

import numpy as np

from builder.engine_header import read_header
from builder.runtime.driver import Driver
from builder.runtime.machine import import_tensorrt
from builder.runtime.messages import LOGGER, messages
from builder.runtime.signature import read_signature
from builder.worker.trt.loading import deserialize
from builder.worker.trt.session import DTYPES

if TYPE_CHECKING:
    from builder.runtime import Engine

POINTS = ("min", "opt", "max")
SEEDS = 3


class Case(NamedTuple):
    """Inputs of one shape, in the engine's order, and what TensorRT's own calls make of them."""

    point: str
    feeds: List[np.ndarray]
    expected: List[np.ndarray]

    def same(self, outputs: Any) -> bool:
        """Compare outputs with the expected ones, bit for bit."""
        values = outputs if isinstance(outputs, tuple) else (outputs,)
        arrays = [value if isinstance(value, np.ndarray) else value.numpy() for value in values]
        return len(arrays) == len(self.expected) and all(
            array.shape == right.shape and array.tobytes() == right.tobytes()
            for array, right in zip(arrays, self.expected)
        )


class Given:
    """Values on the GPU as another library would have them: memory, and the interface that names it."""

    def __init__(self, driver: Driver, values: np.ndarray, stream: int, shift: int = 0) -> None:
        self._driver, self._start = driver, driver.allocate(values.nbytes + shift)
        self.address = self._start + shift
        driver.upload(self.address, np.ascontiguousarray(values))
        said = {"shape": values.shape, "typestr": values.dtype.str, "data": (self.address, True)}
        self.__cuda_array_interface__ = {**said, "strides": None, "version": 3, "stream": stream}

    def __del__(self) -> None:
        self._driver.free(self._start)


class Raw:
    """The engine without the runtime. `stream` is the one that callers of the runtime use, too."""

    def __init__(self, driver: Driver, folder: str) -> None:
        with open(os.path.join(folder, "model.plan"), "rb") as file:
            content = file.read()
        self.trt = import_tensorrt(str(read_header(content).kind))
        self.driver, self.stream = driver, driver.stream()
        self._runtime, self._engine = deserialize(self.trt, messages(self.trt).logger, content)
        # which shape profile a call takes is the runtime's choice; each computes in its own way
        self._signature = read_signature(self.trt, self._engine)
        self.inputs = [tensor.name for tensor in self._signature.inputs]
        self.outputs = [tensor.name for tensor in self._signature.outputs]
        names = [*self.inputs, *self.outputs]
        self.types = {name: np.dtype(DTYPES[self._engine.get_tensor_dtype(name).name]) for name in names}
        self._context = self._engine.create_execution_context()
        self._room: Dict[str, Tuple[int, int]] = {}

    def run(self, feeds: List[np.ndarray]) -> List[np.ndarray]:
        """Copy in, run, wait, copy out."""
        profile = self._signature.choose(tuple(value.shape for value in feeds))
        if not self._context.set_optimization_profile_async(profile, self.stream):
            raise SystemExit(f"TensorRT refuses shape profile {profile}")
        for name, value in zip(self.inputs, feeds):
            if not self._context.set_input_shape(name, value.shape):
                raise SystemExit(f"TensorRT refuses {value.shape} for {name}")
            self.driver.upload(self._place(name, value.nbytes), value)
        made = [np.zeros(tuple(self._context.get_tensor_shape(name)), self.types[name]) for name in self.outputs]
        for name, value in zip(self.outputs, made):
            self._place(name, value.nbytes)
        self.execute()
        self.driver.finish(self.stream)
        for name, value in zip(self.outputs, made):
            self.driver.download(value, self._room[name][0])
        return made

    def execute(self) -> None:
        """Run on what is set."""
        if not self._context.execute_async_v3(self.stream):
            raise SystemExit("TensorRT cannot run the engine")

    def _place(self, name: str, size: int) -> int:
        address, has = self._room.get(name, (0, 0))
        if has < size:
            if address:
                self.driver.free(address)
            address = self.driver.allocate(size)
            self._room[name] = (address, size)
        self._context.set_tensor_address(name, address)
        return address


class Subject:
    """An engine's folder and its cases, with the driver's context current in the thread that made it."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.driver = Driver(0)
        self.driver.enter()
        with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
            self.manifest = json.load(file)
        self.raw = Raw(self.driver, folder)
        self.cases = [self._case(point, seed) for point in POINTS for seed in range(SEEDS)]
        self.first = {case.point: case for case in reversed(self.cases)}

    def given(self, case: Case, stream: int, shift: int = 0) -> List[Given]:
        """Put a case's inputs on the GPU."""
        return [Given(self.driver, value, stream, shift) for value in case.feeds]

    def _case(self, point: str, seed: int) -> Case:
        engine, random = self.manifest["engine"], np.random.default_rng(seed)
        ranges = engine["profiles"][0]["inputs"] if engine["profiles"] else {}
        shapes = {item["name"]: item["shape"] for item in engine["inputs"]}
        shapes.update({name: given[point] for name, given in ranges.items()})
        feeds = []
        for name in self.raw.inputs:
            shape, kind = tuple(shapes[name]), self.raw.types[name]
            values = random.standard_normal(shape) if kind.kind == "f" else random.integers(0, 2, shape)
            feeds.append(np.ascontiguousarray(values.astype(kind)))
        return Case(point, feeds, self.raw.run(feeds))


@contextmanager
def log_lines() -> Iterator[List[str]]:
    """Collect what the runtime says to an application."""
    lines: List[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keep(logging.WARNING)
    LOGGER.addHandler(handler)
    LOGGER.propagate = False
    try:
        yield lines
    finally:
        LOGGER.removeHandler(handler)


def rss_bytes() -> int:
    """Return the memory that this process has in use."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_copies(engine: Engine) -> List[str]:
    """Note every copy that an engine begins from now on."""
    seen: List[str] = []
    driver = engine._driver  # noqa: SLF001
    for name in ("copy", "send", "receive"):
        setattr(driver, name, _noted(getattr(driver, name), name, seen))
    return seen


def _noted(real: Callable[..., None], name: str, seen: List[str]) -> Callable[..., None]:
    def noted(*args: Any) -> None:
        seen.append(name)
        real(*args)

    return noted
