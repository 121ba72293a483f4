"""CUDA's driver API as far as an application's calls need it: functions bound once, nothing leaked, no context stolen.

A thread's current context is the application's: `enter` makes the engine's one current, `leave` puts the other back.
"""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any, Callable, Optional

from builder.worker.cuda import CAPTURE_THREAD_LOCAL, Cuda
from builder.worker.protocol import StageFailure

from .reasons import EngineRefused

if TYPE_CHECKING:
    from typing import Tuple

NON_BLOCKING = 1
NO_TIMING = 2
_POINTER, _ADDRESS, _SIZE, _FLAGS = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_uint


class Driver(Cuda):
    """One GPU. Addresses, streams, events and graphs are plain numbers."""

    def __init__(self, ordinal: int = 0) -> None:
        """Open the driver; the calling thread keeps the context that it had.

        Raises:
            StageFailure: gpu-needed.

        """
        self._local = threading.local()
        before = _current()
        super().__init__(ordinal)
        self.ordinal = ordinal
        self._get = self._bind("cuCtxGetCurrent", _POINTER)
        self._set = self._bind("cuCtxSetCurrent", _POINTER)
        self._copy = self._bind("cuMemcpyDtoDAsync_v2", _ADDRESS, _ADDRESS, _SIZE, _POINTER)
        self._up = self._bind("cuMemcpyHtoDAsync_v2", _ADDRESS, _POINTER, _SIZE, _POINTER)
        self._down = self._bind("cuMemcpyDtoHAsync_v2", _POINTER, _ADDRESS, _SIZE, _POINTER)
        self._record = self._bind("cuEventRecord", _POINTER, _POINTER)
        self._await = self._bind("cuStreamWaitEvent", _POINTER, _POINTER, _FLAGS)
        self._synchronize = self._bind("cuStreamSynchronize", _POINTER)
        self._passed = self._bind("cuEventSynchronize", _POINTER)
        self._launch = self._bind("cuGraphLaunch", _POINTER, _POINTER)
        holder = ctypes.c_void_p()
        self._check("cuCtxGetCurrent", self._get(ctypes.byref(holder)))
        self._context = holder.value or 0
        if before:
            self._set(before)

    def enter(self) -> int:
        """Make the engine's context current in this thread; return what `leave` puts back, 0 for nothing."""
        try:
            holder, reference = self._local.holder
        except AttributeError:
            holder = ctypes.c_void_p()
            reference = ctypes.byref(holder)
            self._local.holder = holder, reference
        self._get(reference)
        before: Optional[int] = holder.value
        if before == self._context:
            return 0
        self._check("cuCtxSetCurrent", self._set(self._context))
        return before or 0

    def leave(self, before: int) -> None:
        """Put back the context that `enter` took away."""
        if before:
            self._set(before)

    def host_allocate(self, size: int) -> int:
        """Reserve page-locked bytes of the host and return their address."""
        address = ctypes.c_void_p()
        self._call("cuMemAllocHost_v2", ctypes.byref(address), ctypes.c_size_t(max(size, 1)))
        return address.value or 0

    def host_free(self, address: int) -> None:
        """Give page-locked bytes back; any thread may."""
        before = self.enter()
        self._quietly("cuMemFreeHost", _POINTER(address))
        self.leave(before)

    def free(self, address: int) -> None:
        """Give bytes of the GPU back; waits for what still uses them."""
        self._quietly("cuMemFree_v2", _ADDRESS(address))

    def copy(self, target: int, source: int, size: int, stream: int) -> None:
        """Begin a copy on the GPU."""
        self._check("cuMemcpyDtoDAsync", self._copy(target, source, size, stream))

    def send(self, target: int, source: int, size: int, stream: int) -> None:
        """Begin a copy from page-locked memory to the GPU."""
        self._check("cuMemcpyHtoDAsync", self._up(target, source, size, stream))

    def receive(self, target: int, source: int, size: int, stream: int) -> None:
        """Begin a copy from the GPU to the host."""
        self._check("cuMemcpyDtoHAsync", self._down(target, source, size, stream))

    def finish(self, stream: int) -> None:
        """Wait for a stream."""
        self._check("cuStreamSynchronize", self._synchronize(stream))

    def untimed_event(self) -> int:
        """Make an event that only orders streams."""
        handle = ctypes.c_void_p()
        self._call("cuEventCreate", ctypes.byref(handle), NO_TIMING)
        return handle.value or 0

    def mark(self, event: int, stream: int) -> None:
        """Let an event stand for all that is on a stream now, even if the stream is gone later."""
        self._check("cuEventRecord", self._record(event, stream))

    def wait(self, event: int) -> None:
        """Wait for what an event stands for."""
        self._check("cuEventSynchronize", self._passed(event))

    def order(self, first: int, then: int, event: int) -> None:
        """Let what comes on stream `then` wait for what is on stream `first` now."""
        self._check("cuEventRecord", self._record(event, first))
        self._check("cuStreamWaitEvent", self._await(then, event, 0))

    def replay(self, graph: int, stream: int) -> None:
        """Put a captured graph on a stream."""
        self._check("cuGraphLaunch", self._launch(graph, stream))

    def capture(self, stream: int, enqueue: Callable[[], None]) -> int:
        """Record what `enqueue` puts on a stream, run nothing, and return it as a graph to be replayed.

        Raises:
            StageFailure: build-failed where the work cannot be captured.

        """
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", _POINTER(stream), CAPTURE_THREAD_LOCAL)
        try:
            enqueue()
        except BaseException:
            # a stream that is left capturing takes no more work
            self._quietly("cuStreamEndCapture", _POINTER(stream), ctypes.byref(graph))
            raise
        self._call("cuStreamEndCapture", _POINTER(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(ready), graph, ctypes.c_ulonglong(0))
        finally:
            self._quietly("cuGraphDestroy", graph)
        return ready.value or 0

    def destroy(self, *, streams: Tuple[int, ...] = (), events: Tuple[int, ...] = (), graph: int = 0) -> None:
        """Give streams, events and a captured graph back."""
        if graph:
            self._quietly("cuGraphExecDestroy", _POINTER(graph))
        for event in events:
            self._quietly("cuEventDestroy_v2", _POINTER(event))
        for stream in streams:
            self._quietly("cuStreamDestroy_v2", _POINTER(stream))

    def _bind(self, name: str, *types: Any) -> Callable[..., int]:
        function = getattr(self._library, name)
        # told once, ctypes converts plain numbers by itself
        function.argtypes, function.restype = types, ctypes.c_int
        return function  # type: ignore[no-any-return]

    def _check(self, function: str, code: int) -> None:
        if code:
            raise StageFailure("build-failed", f"the GPU refuses {function}", why=f"CUDA says {self._name(code)}")

    def _quietly(self, function: str, *arguments: Any) -> None:
        # what cannot be given back is gone with the driver or with the context
        getattr(self._library, function)(*arguments)


def open_driver(ordinal: int) -> Driver:
    """Open a GPU.

    Raises:
        EngineRefused: gpu-needed.

    """
    try:
        return Driver(ordinal)
    except StageFailure as failure:
        raise EngineRefused(failure.reason, failure.message, why=failure.why, fix=failure.fix) from failure


def _current() -> int:
    """Return this thread's context, 0 without one or without a driver."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    holder = ctypes.c_void_p()
    if library.cuCtxGetCurrent(ctypes.byref(holder)):
        return 0
    return holder.value or 0
