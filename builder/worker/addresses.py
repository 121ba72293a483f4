"""Repeating memory addresses for the builder: TensorRT orders some of its work by pointers, and the bytes follow.

Addresses repeat for one Python and one TensorRT without address randomisation, with one stack limit (the kernel lays
out memory below it), and with all of the build in the heap of a fresh thread, which no earlier allocation has touched
(those depend on the environment and on the length of paths) and which no allocation leaves for a mapping of its own.
Helper threads of TensorRT remain a source of chance when other programs compete for the processor.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
import threading
from typing import TYPE_CHECKING, Any, Callable, TypeVar

if TYPE_CHECKING:
    from typing import NoReturn

Result = TypeVar("Result")

ADDR_NO_RANDOMIZE = 0x0040000
ASK = 0xFFFFFFFF
STACK_BYTES = 8 << 20
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


def are_fixed() -> bool:
    """Tell whether this process runs with the settings that make addresses repeat."""
    return not _randomized() and os.environ.get("GLIBC_TUNABLES") == TUNABLES


def _randomized() -> bool:
    return not ctypes.CDLL(None).personality(ctypes.c_ulong(ASK)) & ADDR_NO_RANDOMIZE


def fix() -> None:
    """Start this stage again in a process with fixed addresses; go on as it is where the system forbids that."""
    if are_fixed():
        return
    library = ctypes.CDLL(None)
    library.personality(ctypes.c_ulong(library.personality(ctypes.c_ulong(ASK)) | ADDR_NO_RANDOMIZE))
    if _randomized():
        sys.stderr.write("warning: address randomisation stays on, so a rebuild may give other bytes\n")
        return
    _limit_stack()
    _restart()


def _limit_stack() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != STACK_BYTES and (hard == resource.RLIM_INFINITY or hard >= STACK_BYTES):
        resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))


def _restart() -> NoReturn:
    # Settings of malloc from outside would give other addresses.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-m", __package__, os.curdir]
    os.execve(sys.executable, command, {**environment, "GLIBC_TUNABLES": TUNABLES})  # noqa: S606  (this program again)


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
