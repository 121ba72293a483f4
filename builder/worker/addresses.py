"""Repeating memory addresses for the builder: TensorRT orders some of its work by pointers, and the bytes follow.

The kernel gives new mappings the highest gap that is large enough. So all gaps above a fixed address are reserved
(address space only, no memory), and whatever comes after has the same place in every process: in any build of Python,
with address randomisation on, in a container. Each of TensorRT's libraries is loaded at a place of its own in this
way, and below them begins the heap of the build, that of a fresh thread. No allocation leaves that heap for a mapping
of its own unless it is large, and what helper threads have freed is not kept apart.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform
import resource
import struct
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, TypeVar

if TYPE_CHECKING:
    from typing import NoReturn

Result = TypeVar("Result")

# Between the places that Linux on x86-64 gives to programs and those that it gives to libraries, however random.
LIBRARIES_BELOW = 0x6C00_0000_0000
LIBRARY_STEP = 0x1_0000_0000
HEAP_BELOW = 0x6B00_0000_0000
MACHINES = ("x86_64",)
# Room above a line for the small mappings that Python makes now and then; no thread's stack or heap fits in.
ROOM_BYTES = 4 << 20
NOWHERE = -1
PT_LOAD = 1
STACK_BYTES = 8 << 20
ATTEMPTS = 20
MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED_NOREPLACE = 0x02, 0x20, 0x4000, 0x100000
# No per-thread caches (what a helper thread leaves there depends on timing), no mappings for large blocks. The padding
# and the huge pages win back the time that the caches would have saved.
TUNABLES = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in [
        ("tcache_count", 0),
        ("mmap_threshold", 32 << 20),
        ("top_pad", 32 << 20),
        ("trim_threshold", 4 << 30),
        ("hugetlb", 1),
    ]
)
ENVIRONMENT = {"GLIBC_TUNABLES": TUNABLES}


def prepare() -> None:
    """Start this stage again if it lacks malloc's settings or a limit of the stack; else do nothing.

    Without a limit of the stack the kernel places mappings from below.
    """
    if _limit_stack() or os.environ.get("GLIBC_TUNABLES") != TUNABLES:
        _restart()


def _limit_stack() -> bool:
    """Set the limit; return False where it was set already or may not be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    possible = soft != STACK_BYTES and (hard == resource.RLIM_INFINITY or hard >= STACK_BYTES)
    if possible:
        resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))
    return possible


def _restart() -> NoReturn:
    # Settings of malloc from outside would give other addresses.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", __package__, os.curdir]
    os.execve(sys.executable, command, {**environment, **ENVIRONMENT})  # noqa: S606  (this program again)


def load_libraries(paths: list[str]) -> bool:
    """Load libraries, each at its place. Returns False, with a warning in the log, where that is not possible."""
    fixed = True
    for index, path in enumerate(paths, 1):
        # kernels align large mappings of files on some file systems; at an aligned place all agree
        place = LIBRARIES_BELOW - index * LIBRARY_STEP
        fixed &= _fixed(place + _span(path), room=False)
        ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL if index < len(paths) else ctypes.RTLD_LOCAL)
    return fixed


def draw_line(address: int) -> bool:
    """Make all mappings from now on lie below an address, but for small ones.

    Returns False, with a warning in the log, where that is not possible.
    """
    return _fixed(address, room=True)


def _span(path: str) -> int:
    """Return the bytes of address space that a library takes."""
    with open(path, "rb") as file:
        header = file.read(64)
        start, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
        file.seek(start)
        table = file.read(size * count)
    segments = [struct.unpack_from("<IIQQQQQQ", table, index * size) for index in range(count)]
    ends: list[int] = [address + length for kind, _, _, address, _, _, length, _ in segments if kind == PT_LOAD]
    return -(-max(ends) // mmap.PAGESIZE) * mmap.PAGESIZE


def _fixed(address: int, *, room: bool) -> bool:
    try:
        _close_gaps(address, room=room)
    except OSError as error:
        sys.stderr.write(f"warning: memory addresses cannot be fixed ({error}); a rebuild may give other bytes\n")
        return False
    return True


def _close_gaps(address: int, *, room: bool) -> None:
    if platform.machine() not in MACHINES:
        raise OSError(0, f"not known for {platform.machine()}")
    end_of_room = 0 if room else NOWHERE
    # Python may map something while the gaps are being closed
    for _ in range(ATTEMPTS):
        gaps, end_of_room = _gaps(address, end_of_room)
        taken = [_reserve(start, end) for start, end in gaps]
        if all(taken):
            return
    raise OSError(0, "new mappings keep coming")


def _gaps(address: int, room: int) -> tuple[list[tuple[int, int]], int]:
    """List the free ranges from an address up to the stack without the room, and where the room ends.

    `room`: where it ends if that is settled, 0 if not, NOWHERE if there is none.
    """
    gaps, free = [], address
    with open("/proc/self/maps", encoding="utf-8") as maps:
        lines = [line.split() for line in maps]
    for line in lines:
        start, end = (int(text, 16) for text in line[0].split("-"))
        if line[-1] == "[stack]":
            break
        room = room or (start if start > address else 0)
        if start > free:
            gaps.append((free, start))
        free = max(free, end)
    inside = [(start, min(end, room - ROOM_BYTES) if start < room else end) for start, end in gaps]
    return [(start, end) for start, end in inside if start < end], room


def _reserve(start: int, end: int) -> bool:
    """Take a range of addresses; return False where something has come in between."""
    library = ctypes.CDLL(None, use_errno=True)
    library.mmap.restype = ctypes.c_void_p
    library.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
    if library.mmap(start, end - start, 0, flags, -1, 0) == start:
        return True
    if ctypes.get_errno() == errno.EEXIST:
        return False
    raise OSError(ctypes.get_errno(), f"{start:#x}-{end:#x} cannot be reserved")


def in_fresh_heap(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a new thread and wait; what it returns or raises comes back."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function(*arguments))
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
