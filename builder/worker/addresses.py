"""Fixed memory addresses for the builder: TensorRT orders some of its work by pointers, and the bytes follow.

Three things make the addresses the same in every run of one Python and one TensorRT: no address randomisation, one
stack limit (the kernel lays out memory below it), and a fresh thread, whose heap no earlier allocation has touched
(those depend on the environment and on the length of paths).
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


def are_fixed() -> bool:
    """Tell whether this process runs without address randomisation."""
    return bool(ctypes.CDLL(None).personality(ctypes.c_ulong(ASK)) & ADDR_NO_RANDOMIZE)


def start_again_if_needed(arguments: list[str]) -> None:
    """Replace this process by one with fixed addresses; go on as it is where the system forbids that."""
    if are_fixed():
        return
    library = ctypes.CDLL(None)
    library.personality(ctypes.c_ulong(library.personality(ctypes.c_ulong(ASK)) | ADDR_NO_RANDOMIZE))
    if not are_fixed():
        sys.stderr.write("warning: address randomisation stays on, so a rebuild may give other bytes\n")
        return
    _limit_stack()
    _restart(arguments)


def _limit_stack() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if soft != STACK_BYTES and (hard == resource.RLIM_INFINITY or hard >= STACK_BYTES):
        resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, hard))


def _restart(arguments: list[str]) -> NoReturn:
    os.execv(sys.executable, [sys.executable, "-m", __package__, *arguments])  # noqa: S606  (the same program again)


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
