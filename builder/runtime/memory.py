"""Memory of the engine's own: blocks on the GPU that are used again, pairs of them with page-locked ones, and arrays.

All that uses a block goes to one stream, so a block that nobody holds any more can be written at once.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

import numpy as np

from builder.worker.protocol import StageFailure

from .reasons import EngineRefused

if TYPE_CHECKING:
    from .driver import Driver
    from .signature import Shape

LEAST = 512
# free blocks that are kept for later
KEPT = 64


class Blocks:
    """Blocks of GPU memory in sizes of powers of two."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._free: Dict[int, List[int]] = {}
        self._surplus: List[int] = []
        self._kept = 0
        self._closed = False

    def take(self, size: int) -> Tuple[int, int]:
        """Return address and size class of a block; the engine's context has to be current."""
        rounded = max(LEAST, 1 << (size - 1).bit_length()) if size > 1 else LEAST
        while self._surplus:
            self.driver.free(self._surplus.pop())
        free = self._free.get(rounded)
        if free:
            try:
                address = free.pop()
            except IndexError:  # another thread was faster
                return self.driver.allocate(rounded), rounded
            self._kept -= 1
            return address, rounded
        return self.driver.allocate(rounded), rounded

    def give(self, address: int, rounded: int) -> None:
        """Take a block back. Any thread may call this, at any time: it calls CUDA only once this is closed."""
        if self._closed:
            before = self.driver.enter()
            self.driver.free(address)
            self.driver.leave(before)
        elif self._kept >= KEPT:
            self._surplus.append(address)
        else:
            self._kept += 1
            self._free.setdefault(rounded, []).append(address)

    def close(self) -> None:
        """Give all free blocks back; arrays that are still in use keep theirs."""
        self._closed = True
        for address in [*self._surplus, *(one for free in self._free.values() for one in free)]:
            self.driver.free(address)
        self._surplus, self._free = [], {}


class DeviceArray:
    """An output on the GPU for callers without PyTorch: CuPy, Numba and others take it without a copy.

    Its memory is its own until it is deleted. It is ready on the stream that it names; `numpy()` waits for that.
    """

    __slots__ = ("_address", "_block", "_blocks", "_stream", "dtype", "shape")

    def __init__(self, blocks: Blocks, dtype: Any, shape: Shape, size: int) -> None:
        self._blocks = blocks
        self._block = blocks.take(size)
        self._address = self._block[0]
        self._stream = 0
        self.shape = shape
        self.dtype = dtype

    @property
    def __cuda_array_interface__(self) -> Dict[str, Any]:
        """Say where it lies, as Numba's documentation defines it."""
        return {
            "shape": self.shape,
            "typestr": np.dtype(self.dtype).str,
            "data": (self._address, False),
            "strides": None,
            "version": 3,
            # there is no stream 0 in this interface: 1 is the default one
            "stream": self._stream or 1,
        }

    @property
    def address(self) -> int:
        """Where it lies on the GPU."""
        return self._address

    def on(self, stream: int) -> DeviceArray:
        """Note the stream that writes it."""
        self._stream = stream
        return self

    def numpy(self) -> np.ndarray:
        """Wait for its values and copy them to the host.

        Raises:
            EngineRefused: run-failed where the GPU could not do what was put on its stream.

        """
        made = np.empty(self.shape, self.dtype)
        driver = self._blocks.driver
        try:
            before = driver.enter()
            try:
                driver.finish(self._stream)
                driver.download(made, self._address)
            finally:
                driver.leave(before)
        except StageFailure as failure:
            what = "the GPU did not finish this output"
            raise EngineRefused("run-failed", what, why=f"{failure.message}: {failure.why}") from failure
        return made

    def __del__(self) -> None:
        block = getattr(self, "_block", None)
        if block is not None:
            self._blocks.give(*block)


class Staging:
    """For one tensor: page-locked memory on the host and memory on the GPU, which grow and never shrink."""

    __slots__ = ("_buffer", "_driver", "_size", "_views", "address", "host")

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._size = 0
        self._buffer: Any = None
        self._views: Dict[Tuple[Shape, str], np.ndarray] = {}
        self.address = self.host = 0

    def room(self, size: int) -> None:
        """Make room for that many bytes."""
        if size > self._size or not self.address:
            self.close()
            self.host = self._driver.host_allocate(size)
            self._buffer = (ctypes.c_char * max(size, 1)).from_address(self.host)
            # views may outlive all else: the memory goes when the last of them does
            weakref.finalize(self._buffer, self._driver.host_free, self.host).atexit = False
            self.address = self._driver.allocate(size)
            self._size = size

    def view(self, shape: Shape, dtype: Any) -> np.ndarray:
        """Show the beginning of the page-locked memory as an array."""
        key = (shape, dtype.char)
        found = self._views.get(key)
        if found is None:
            if len(self._views) >= KEPT:
                self._views.clear()
            count = int(np.prod(shape, dtype=np.int64))
            found = self._views[key] = np.frombuffer(self._buffer, dtype, count=count).reshape(shape)
        return found

    def close(self) -> None:
        """Give both back."""
        self._views.clear()
        self._buffer = None
        if self.address:
            self._driver.free(self.address)
        self.address = self.host = self._size = 0
