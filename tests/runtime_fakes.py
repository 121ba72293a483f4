"""A GPU made of this process's memory, a fake TensorRT that computes on it, and engines' folders for the runtime."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from builder.runtime import Engine, EngineRefused, load, opening
from builder.runtime.messages import LOGGER
from builder.worker.cuda import Device
from builder.worker.protocol import StageFailure
from tests.surface_running import run_fake
from tests.surfaces import FakeTensor, FakeTensorRT, Scene, fake_tensorrt

if TYPE_CHECKING:
    import pytest

ALIGNED = 256
VERSION = "8.6.0"
STREAM = 77
X = np.arange(8, dtype=np.float32).reshape(2, 4)
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class FakeDriver:
    """What `builder.runtime.driver.Driver` can do, in this process's memory. `live` holds what was not given back."""

    def __init__(self, trt: FakeTensorRT, sm: str = "8.6") -> None:
        self.trt = trt
        self.ordinal = 0
        self.device = Device("NVIDIA Fake", sm, "GPU-0", "12.4")
        self.live: dict[str, set[int]] = {
            "memory": set(),
            "host": set(),
            "stream": set(),
            "event": set(),
            "graph": set(),
        }
        self.ordered: list[tuple[int, int]] = []
        self.replays = 0
        self.full = False
        self.broken = False
        self.refuses_capture = False
        self._buffers: dict[int, Any] = {}
        self._graphs: dict[int, list[Any]] = {}
        self._next = 1000

    def enter(self) -> int:
        return 0

    def leave(self, before: int) -> None:
        assert before == 0

    def allocate(self, size: int) -> int:
        if self.full:
            raise self.out_of_memory()
        return self._reserve("memory", size)

    def free(self, address: int) -> None:
        self.live["memory"].remove(address)
        del self._buffers[address]

    def host_allocate(self, size: int) -> int:
        return self._reserve("host", size)

    def host_free(self, address: int) -> None:
        self.live["host"].remove(address)
        del self._buffers[address]

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        ctypes.memmove(target, source, size)

    def send(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream in self.live["stream"]
        ctypes.memmove(target, source, size)

    def receive(self, target: int, source: int, size: int, stream: int) -> None:
        assert stream in self.live["stream"]
        ctypes.memmove(target, source, size)

    def upload(self, address: int, array: np.ndarray, stream: int = 0) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def download(self, array: np.ndarray, address: int, stream: int = 0) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def finish(self, stream: int) -> None:
        self._break()

    def synchronize(self, stream: int = 0) -> None:
        self._break()

    def stream(self) -> int:
        return self._name("stream")

    def untimed_event(self) -> int:
        return self._name("event")

    def mark(self, event: int, stream: int) -> None:
        assert event in self.live["event"]
        self._break()

    def wait(self, event: int) -> None:
        assert event in self.live["event"]
        self._break()

    def order(self, first: int, then: int, event: int) -> None:
        assert event in self.live["event"]
        self.ordered.append((first, then))

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        if self.refuses_capture:
            raise StageFailure("build-failed", "the GPU refuses cuStreamEndCapture", why="CUDA says no")
        thread = threading.get_ident()
        self.trt.scene.captured[thread] = []
        try:
            enqueue()
        finally:
            runs = self.trt.scene.captured.pop(thread)
        graph = self._name("graph")
        self._graphs[graph] = runs
        return graph

    def replay(self, graph: int, stream: int) -> None:
        self.replays += 1
        for context, addresses, shapes in self._graphs[graph]:
            run_fake(context, addresses, shapes)

    def destroy(self, *, streams: tuple[int, ...] = (), events: tuple[int, ...] = (), graph: int = 0) -> None:
        self.live["stream"] -= set(streams)
        self.live["event"] -= set(events)
        self.live["graph"] -= {graph}

    @staticmethod
    def out_of_memory() -> Exception:
        return StageFailure("out-of-memory", "the GPU has no more memory", why="cuMemAlloc_v2: 0 of 1 MiB are free")

    def _break(self) -> None:
        if self.broken:
            raise StageFailure("build-failed", "the GPU refuses this", why="CUDA_ERROR_ILLEGAL_ADDRESS (700)")

    def _reserve(self, kind: str, size: int) -> int:
        buffer = (ctypes.c_char * (max(size, 1) + ALIGNED))()
        address = -(-ctypes.addressof(buffer) // ALIGNED) * ALIGNED
        self._buffers[address] = buffer
        self.live[kind].add(address)
        return address

    def _name(self, kind: str) -> int:
        self._next += 1
        self.live[kind].add(self._next)
        return self._next


class GpuArray:
    """An array with `__cuda_array_interface__`, in memory of a fake GPU."""

    def __init__(self, driver: FakeDriver, values: np.ndarray, stream: int | None = 77, shift: int = 0) -> None:
        self.address = driver.allocate(values.nbytes + shift) + shift
        driver.upload(self.address, values)
        self.said: dict[str, Any] = {
            "shape": values.shape,
            "typestr": values.dtype.str,
            "data": (self.address, False),
            "strides": None,
            "version": 3,
            "stream": stream,
        }

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return self.said


def fake_engine(
    monkeypatch: Any,
    version: str = VERSION,
    inputs: tuple[FakeTensor, ...] = (FakeTensor("x", shape=(-1, 4)),),
    outputs: tuple[FakeTensor, ...] = (FakeTensor("y", shape=(-1, 4)),),
    profiles: tuple[dict[str, Shapes], ...] = ({"x": ((1, 4), (2, 4), (8, 4))},),
    flags: tuple[str, ...] = (),
) -> tuple[FakeTensorRT, bytes]:
    """Put a fake TensorRT in place and build an engine with it; what comes in goes out doubled."""
    trt = _tensorrt(version)
    monkeypatch.setitem(sys.modules, "tensorrt" if not version.startswith("1.") else "tensorrt_rtx", trt)
    trt.scene.inputs, trt.scene.outputs = inputs, outputs
    first = inputs[0].name
    trt.scene.compute = lambda arrays: {one.name: arrays[first] * (index + 2) for index, one in enumerate(outputs)}

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        def log(self, severity: Any, message: str) -> None:
            raise AssertionError(message)

    builder = trt.Builder(Logger())
    network = builder.create_network(1)
    trt.OnnxParser(network, Logger()).parse_from_file("model.onnx")
    config = builder.create_builder_config()
    for flag in flags:
        config.set_flag(trt.BuilderFlag[flag])
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name, shapes in profile.items():
            made.set_shape(name, *shapes)
        config.add_optimization_profile(made)
    return trt, bytes(builder.build_serialized_network(network, config))


@cache
def _known(version: str) -> FakeTensorRT:
    return fake_tensorrt(version)


def _tensorrt(version: str) -> FakeTensorRT:
    """Return a TensorRT as new: its classes, which take the time, are made once."""
    trt = _known(version)
    trt.scene, trt.calls, trt.engines = Scene(), [], {}
    return trt


def write_folder(folder: Path, content: bytes, **changes: Any) -> Path:
    """Write an engine's folder as `enginefarm export` does; `changes`: fields of the manifest, dots as double lines."""
    manifest: dict[str, Any] = {
        "schema_version": 1,
        "job": "toy-fp32-trt8.6-cuda12.0-sm86",
        "stack": {"tensorrt": VERSION, "platform": "linux/amd64"},
        "target": {"name": "ampere", "sms": ["8.6"]},
        "engine": {
            "file": "model.plan",
            "sha256": hashlib.sha256(content).hexdigest(),
            "size": len(content),
            "needs_host_code": False,
        },
        "build": {"options": {"hardware_compatibility": "none", "version_compatible": False}},
    }
    for path, value in changes.items():
        part = manifest
        *parents, last = path.split("__")
        for name in parents:
            part = part[name]
        part[last] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.plan").write_bytes(content)
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def fake_torch(driver: FakeDriver) -> types.ModuleType:
    """Make a PyTorch of the few names that the runtime calls; its tensors lie on the fake GPU."""
    torch: Any = types.ModuleType("torch")

    class Tensor:
        requires_grad = False
        is_cuda = True

        def __init__(self, values: np.ndarray, dtype: Any = None, shift: int = 0) -> None:
            self.values, self.shift = values, shift
            self.address = driver.allocate(values.nbytes + shift) + shift
            self.shape = values.shape
            self.dtype = dtype or getattr(torch, values.dtype.name)
            self.device = ("cuda", 0)
            driver.upload(self.address, np.ascontiguousarray(values))

        def is_contiguous(self) -> bool:
            return bool(self.values.flags.c_contiguous)

        def contiguous(self) -> Tensor:
            return Tensor(np.ascontiguousarray(self.values))

        def clone(self) -> Tensor:
            return Tensor(self.numpy())

        def data_ptr(self) -> int:
            return self.address

        def numpy(self) -> np.ndarray:
            made = np.empty(self.shape, self.values.dtype)
            driver.download(made, self.address)
            return made

        def __del__(self) -> None:
            driver.free(self.address - self.shift)

    torch.Tensor = Tensor
    torch.is_tensor = lambda value: isinstance(value, Tensor)
    torch.device = lambda kind, index: (kind, index)
    torch.is_grad_enabled = lambda: True
    for name in ("float32", "float16", "int32", "int64", "bfloat16"):
        setattr(torch, name, f"torch.{name}")
    torch.empty = lambda shape, dtype, device: Tensor(np.zeros(shape, dtype.partition(".")[2]), dtype)
    torch.current = 77
    torch._C = types.SimpleNamespace(_cuda_getCurrentRawStream=lambda _index: torch.current)
    return torch  # type: ignore[no-any-return]


@dataclass
class Bench:
    """A folder of an engine that doubles, the GPU that it runs on, and its TensorRT."""

    folder: Path
    trt: FakeTensorRT
    driver: FakeDriver

    def load(self, fallback: Any = None, **options: Any) -> Engine:
        return load(self.folder, fallback, **{"trust": "local", **options})

    def array(self, values: np.ndarray = X, stream: int | None = STREAM, shift: int = 0) -> GpuArray:
        return GpuArray(self.driver, values, stream, shift)


def make_bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **options: Any) -> Bench:
    """Put fakes in place of the GPU and of TensorRT; `options`: those of `fake_engine`."""
    trt, content = fake_engine(monkeypatch, **options)
    driver = FakeDriver(trt)
    monkeypatch.setattr(opening, "open_driver", lambda _ordinal: driver)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    folder = write_folder(tmp_path / "engine", content, stack__tensorrt=options.get("version", VERSION))
    return Bench(folder, trt, driver)


def warning_lines() -> Iterator[list[str]]:
    """Collect what an application's log shows."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    handler = Keep(logging.WARNING)
    LOGGER.addHandler(handler)
    yield found
    LOGGER.removeHandler(handler)


def refused_by(call: Callable[[], object]) -> EngineRefused:
    """Return the refusal that a call ends with."""
    try:
        call()
    except EngineRefused as refused:
        return refused
    raise AssertionError("nothing was refused")
