"""The few calls of CUDA's driver API that loading, running and timing an engine take; only the driver is needed.

The primary context is used, which is the one that TensorRT and PyTorch use, too. Function names and numbers are those
of CUDA's driver API reference.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .protocol import StageFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LIBRARY = "libcuda.so.1"
MAJOR, MINOR = 75, 76
OUT_OF_MEMORY = 2
NAME_BYTES = 256
CAPTURE_THREAD_LOCAL = 1


class Device(NamedTuple):
    """A GPU: marketing name, compute capability such as "8.6", UUID, and the CUDA version of its driver."""

    name: str
    sm: str
    uuid: str
    driver_cuda: str


class Cuda:
    """A GPU that this process may use: the first one, unless another is asked for."""

    def __init__(self, ordinal: int = 0) -> None:
        """Open the driver; `ordinal` counts the GPUs that the process may use.

        Raises:
            StageFailure: gpu-needed where there is no driver or no GPU.

        """
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise _no_gpu(f"{LIBRARY}: {error}") from error
        code = self._library.cuInit(0)
        if code:
            raise _no_gpu(f"cuInit: {self._name(code)}")
        handle = ctypes.c_int()
        code = self._library.cuDeviceGet(ctypes.byref(handle), ordinal)
        if code:
            raise _no_gpu(f"cuDeviceGet: {self._name(code)}")
        self._device = handle
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self._call("cuCtxSetCurrent", context)
        self.device = self._describe()

    def memory(self) -> tuple[int, int]:
        """Return the free and the total bytes of the GPU's memory."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def allocate(self, size: int) -> int:
        """Reserve bytes on the GPU and return their address.

        Raises:
            StageFailure: out-of-memory.

        """
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value

    def free(self, address: int) -> None:
        """Give bytes back."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """Make an array in page-locked memory, which the GPU copies from and to without a detour; `unpin` ends it."""
        count = int(np.prod(shape, dtype=np.int64))
        size = count * np.dtype(dtype).itemsize
        if not size:
            return np.empty(tuple(shape), dtype)
        address = ctypes.c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(address), ctypes.c_size_t(size))
        buffer = (ctypes.c_char * size).from_address(address.value or 0)
        return np.frombuffer(buffer, dtype, count=count).reshape(tuple(shape))

    def unpin(self, array: np.ndarray) -> None:
        """Give the memory of an array of `pinned` back; nothing may read or write it from then on."""
        if array.nbytes:
            self._call("cuMemFreeHost", ctypes.c_void_p(array.ctypes.data))

    def upload(self, address: int, array: np.ndarray, stream: int = 0) -> None:
        """Copy an array to the GPU; with a stream the copy only begins, and the array has to be page-locked."""
        source = array.ctypes.data_as(ctypes.c_void_p)
        if stream:
            self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), source, _size(array), _pointer(stream))
        else:
            self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), source, _size(array))
            # it returns when pageable memory is staged; a stream that does not wait for the default one reads too soon
            self._call("cuStreamSynchronize", _pointer(0))

    def download(self, array: np.ndarray, address: int, stream: int = 0) -> None:
        """Copy from the GPU into an array; with a stream the copy only begins."""
        target = array.ctypes.data_as(ctypes.c_void_p)
        if stream:
            self._call("cuMemcpyDtoHAsync_v2", target, ctypes.c_uint64(address), _size(array), _pointer(stream))
        else:
            self._call("cuMemcpyDtoH_v2", target, ctypes.c_uint64(address), _size(array))

    def stream(self) -> int:
        """Make a stream that does not wait for the default one."""
        handle = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(handle), 1)
        return handle.value or 0

    def synchronize(self, stream: int = 0) -> None:
        """Wait for a stream, or for all that was begun.

        Raises:
            StageFailure: build-failed with CUDA's name of what went wrong on the GPU.

        """
        if stream:
            self._call("cuStreamSynchronize", _pointer(stream))
        else:
            self._call("cuCtxSynchronize")

    def event(self) -> int:
        """Make an event that keeps a time."""
        handle = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(handle), 0)
        return handle.value or 0

    def record(self, event: int, stream: int) -> None:
        """Let a stream stamp an event when it gets there."""
        self._call("cuEventRecord", _pointer(event), _pointer(stream))

    def elapsed_ms(self, start: int, stop: int) -> float:
        """Return the milliseconds between two events that have happened."""
        value = ctypes.c_float()
        self._call("cuEventElapsedTime", ctypes.byref(value), _pointer(start), _pointer(stop))
        return value.value

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """Record what `enqueue` puts on a stream and return it as a graph that can be launched.

        Raises:
            StageFailure: build-failed where the work cannot be captured.

        """
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", _pointer(stream), CAPTURE_THREAD_LOCAL)
        try:
            enqueue()
        finally:
            self._call("cuStreamEndCapture", _pointer(stream), ctypes.byref(graph))
        self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        return ready.value or 0

    def launch(self, graph: int, stream: int) -> None:
        """Put a graph on a stream."""
        self._call("cuGraphLaunch", _pointer(graph), _pointer(stream))

    def _describe(self) -> Device:
        name = ctypes.create_string_buffer(NAME_BYTES)
        self._call("cuDeviceGetName", name, NAME_BYTES, self._device)
        major, minor, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(major), MAJOR, self._device)
        self._call("cuDeviceGetAttribute", ctypes.byref(minor), MINOR, self._device)
        self._call("cuDriverGetVersion", ctypes.byref(version))
        raw = ctypes.create_string_buffer(16)
        self._call("cuDeviceGetUuid", raw, self._device)
        digits = raw.raw.hex()
        parts = (digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:])
        cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        return Device(name.value.decode(), f"{major.value}.{minor.value}", f"GPU-{'-'.join(parts)}", cuda)

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code == OUT_OF_MEMORY:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self._library.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
            raise StageFailure(
                "out-of-memory",
                "the GPU has no more memory",
                why=f"{function}: {free.value >> 20} of {total.value >> 20} MiB are free",
                fix="end other programs on the GPU, or use smaller maximum shapes",
            )
        if code:
            raise StageFailure("build-failed", f"the GPU refuses {function}", why=f"CUDA says {self._name(code)}")

    def _name(self, code: int) -> str:
        text = ctypes.c_char_p()
        if self._library.cuGetErrorName(code, ctypes.byref(text)) or not text.value:
            return f"error {code}"
        return f"{text.value.decode()} ({code})"


def _pointer(handle: int) -> ctypes.c_void_p:
    return ctypes.c_void_p(handle)


def _size(array: np.ndarray) -> ctypes.c_size_t:
    return ctypes.c_size_t(array.nbytes)


def _no_gpu(why: str) -> StageFailure:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r}"
    return StageFailure("gpu-needed", "no NVIDIA GPU can be used here", why=f"{why}{seen}", fix="run on such a machine")
