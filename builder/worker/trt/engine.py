"""A loaded engine: what it takes, what it gives, how it runs. The calls used exist in TensorRT 8.6 to 11 alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..protocol import StageFailure
from .loading import deserialize, load_failure, refusal
from .session import DTYPES

if TYPE_CHECKING:
    from ..cuda import Cuda
    from .session import Log

Arrays = dict[str, np.ndarray]


class Buffer(NamedTuple):
    """Memory of one tensor: on the GPU, and page-locked on the host."""

    address: int
    size: int
    host: np.ndarray


class Engine:
    """One engine with one execution context. Tensors go by name; buffers are made for the shapes in use."""

    def __init__(self, trt: Any, log: Log, cuda: Cuda, path: str, *, host_code: bool = False) -> None:
        """Load an engine.

        Raises:
            StageFailure: engine-invalid, engine-version, sm-mismatch, library-missing or out-of-memory.

        """
        self._trt, self._log, self._cuda = trt, log, cuda
        with open(path, "rb") as file:
            content = file.read()
        already = len(log.errors)
        self._runtime, engine = deserialize(trt, log.logger, content, host_code=host_code)
        if engine is None:
            raise refusal(trt, log.errors[already:], content, cuda.device.sm)
        self._engine = engine
        self._context = engine.create_execution_context()
        if self._context is None:
            raise load_failure(log.errors[already:], "TensorRT could not make a context for the engine")
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        is_input = trt.TensorIOMode.INPUT
        self.inputs = [name for name in names if engine.get_tensor_mode(name) == is_input]
        self.outputs = [name for name in names if engine.get_tensor_mode(name) != is_input]
        self.num_profiles = int(engine.num_optimization_profiles)
        self.num_layers = int(engine.num_layers)
        self._buffers: dict[str, Buffer] = {}
        self._profile = 0
        self._stream = 0

    def close(self) -> None:
        """Give all memory back, on the GPU and on the host; the engine cannot be used any more."""
        self._context = self._engine = self._runtime = None
        for name in list(self._buffers):
            self._give_back(name)

    @property
    def device_memory_bytes(self) -> int:
        """Bytes that a context takes on the GPU besides weights and tensors."""
        newer = getattr(self._engine, "device_memory_size_v2", None)
        return int(newer if newer is not None else self._engine.device_memory_size)

    def accepts(self, profile: int, shapes: dict[str, tuple[int, ...]]) -> bool:
        """Say whether TensorRT takes these input shapes; its complaint stays out of the log's errors."""
        self._select(profile)
        before = len(self._log.errors)
        try:
            taken = all(bool(self._context.set_input_shape(name, shape)) for name, shape in shapes.items())
            return taken and not self._context.infer_shapes()
        finally:
            del self._log.errors[before:]

    def prepare(self, profile: int, shapes: dict[str, tuple[int, ...]]) -> None:
        """Set input shapes and make room for all tensors.

        Raises:
            StageFailure: profile-invalid where TensorRT refuses the shapes, out-of-memory.

        """
        self._select(profile)
        for name in self.inputs:
            if not self._context.set_input_shape(name, tuple(shapes[name])):
                text = "x".join(map(str, shapes[name]))
                why = "\n".join(self._log.errors[-2:])
                raise StageFailure("profile-invalid", f"the engine refuses {text} for input {name}", why=why)
        for name in [*self.inputs, *self.outputs]:
            dtype = _numpy_type(self._engine.get_tensor_dtype(name), name)
            shape = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                what = f"output {name} has a shape that depends on values: {shape}"
                raise StageFailure(
                    "op-unsupported", what, fix="export the model so that output shapes follow from inputs"
                )
            buffer = self._room(name, shape, dtype)
            if not self._context.set_tensor_address(name, buffer.address):
                raise load_failure(self._log.errors, f"TensorRT refuses a buffer for {name}")

    def feed(self, arrays: Arrays) -> None:
        """Copy inputs to the GPU, in the types that the engine wants."""
        for name in self.inputs:
            buffer = self._buffers[name]
            np.copyto(buffer.host, arrays[name].astype(buffer.host.dtype, copy=False))
            self._cuda.upload(buffer.address, buffer.host)

    def copy_in(self, stream: int) -> None:
        """Begin the copies of all inputs."""
        for name in self.inputs:
            self._cuda.upload(self._buffers[name].address, self._buffers[name].host, stream)

    def copy_out(self, stream: int) -> None:
        """Begin the copies of all outputs."""
        for name in self.outputs:
            self._cuda.download(self._buffers[name].host, self._buffers[name].address, stream)

    def enqueue(self, stream: int) -> None:
        """Put one run on a stream.

        Raises:
            StageFailure: build-failed with TensorRT's words.

        """
        if not self._context.execute_async_v3(stream):
            raise load_failure(self._log.errors, "TensorRT could not run the engine")

    def fetch(self) -> Arrays:
        """Copy outputs from the GPU into arrays of their own."""
        found: Arrays = {}
        for name in self.outputs:
            buffer = self._buffers[name]
            self._cuda.download(buffer.host, buffer.address)
            found[name] = buffer.host.copy()
        return found

    def run(self, profile: int, feeds: Arrays) -> Arrays:
        """Run once and wait for the outputs. Values left from an earlier run are wiped first."""
        self.prepare(profile, {name: tuple(feeds[name].shape) for name in self.inputs})
        self.feed(feeds)
        for name in self.outputs:
            buffer = self._buffers[name]
            # what the engine does not write must not look like a right answer; flat, as a scalar has no bytes to view
            buffer.host.reshape(-1).view(np.uint8).fill(0xFF)
            self._cuda.upload(buffer.address, buffer.host)
        stream = self._own_stream()
        self.enqueue(stream)
        self._cuda.synchronize(stream)
        return self.fetch()

    def layer_information(self, profile: int, shapes: dict[str, tuple[int, ...]]) -> str:
        """Return what the engine inspector says of all layers at these input shapes, as JSON text."""
        self._select(profile)
        for name in self.inputs:
            self._context.set_input_shape(name, tuple(shapes[name]))
        inspector = self._engine.create_engine_inspector()
        # without a context an engine of dynamic shapes does not tell its layers' types
        inspector.execution_context = self._context
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def _select(self, profile: int) -> None:
        if profile != self._profile:
            stream = self._own_stream()
            if not self._context.set_optimization_profile_async(profile, stream):
                raise load_failure(self._log.errors, f"TensorRT refuses shape profile {profile}")
            self._cuda.synchronize(stream)
            self._profile = profile

    def _own_stream(self) -> int:
        self._stream = self._stream or self._cuda.stream()
        return self._stream

    def _room(self, name: str, shape: tuple[int, ...], dtype: Any) -> Buffer:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        old = self._buffers.get(name)
        if old is not None and old.size >= size and old.host.shape == shape:
            return old
        if old is not None and old.size >= size:
            host = self._cuda.pinned(shape, dtype)
            self._cuda.unpin(old.host)
            self._buffers[name] = Buffer(old.address, old.size, host)
            return self._buffers[name]
        self._give_back(name)
        address = self._cuda.allocate(size)
        # one after the other, so that what fails leaves nothing that was given back
        self._buffers[name] = Buffer(address, size, np.empty(0, dtype))
        self._buffers[name] = Buffer(address, size, self._cuda.pinned(shape, dtype))
        return self._buffers[name]

    def _give_back(self, name: str) -> None:
        buffer = self._buffers.pop(name, None)
        if buffer is not None:
            self._cuda.free(buffer.address)
            self._cuda.unpin(buffer.host)


def _numpy_type(dtype: Any, name: str) -> Any:
    known = DTYPES.get(dtype.name, dtype.name.lower())
    try:
        return np.dtype(known)
    except TypeError as error:
        what = f"tensor {name} is {known}, which NumPy does not have"
        raise StageFailure(
            "precision-unsupported", what, fix="export the model with float32 inputs and outputs"
        ) from error
