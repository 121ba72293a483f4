"""Makes the helper threads of a builder take turns, so that their order, and the bytes that follow from it, repeat.

TensorRT-RTX compiles with as many threads as the machine has processors, and numbers the values of its graph as the
threads come along. Three measures: it is told of one processor; the process stays on one processor; and the scheduling
policy is the one in which a thread that wakes up does not push another aside. No privileges are needed.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
import sys

# The C++ runtime, through which the builder asks for the number of processors, and the function that it asks in turn.
RUNTIME = "libstdc++.so.6"
ASKS = b"get_nprocs"
RETURN_ONE = {"x86_64": bytes.fromhex("b801000000c3"), "aarch64": bytes.fromhex("20008052c0035fd6")}
SLOT_TYPES = {"x86_64": (6, 7), "aarch64": (1025, 1026)}
PT_DYNAMIC = 2
DT_PLTRELSZ, DT_STRTAB, DT_SYMTAB, DT_JMPREL = 2, 5, 6, 23
RELOCATION, SYMBOL = 24, 24
CPU_VARIABLE = "ENGINEFARM_CPU"


def take_turns() -> bool:
    """Settle the calling thread and all that it will start. To be called before the builder's library is loaded.

    Returns False, with a warning in the log, where the order of threads is not under control.
    """
    try:
        allowed = sorted(os.sched_getaffinity(0))
        wanted = int(os.environ.get(CPU_VARIABLE, allowed[0]))
        os.sched_setaffinity(0, {wanted if wanted in allowed else allowed[0]})
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        _tell_of_one_processor()
    except (OSError, KeyError, ValueError, struct.error) as error:
        sys.stderr.write(f"warning: threads cannot be made to take turns ({error!r}); a rebuild may give other bytes\n")
        return False
    return True


def _tell_of_one_processor() -> None:
    ctypes.CDLL(RUNTIME)
    machine = platform.machine()
    slots = _import_slots(_base_address(RUNTIME), SLOT_TYPES[machine])
    _write_pointer(slots[ASKS], _machine_code(RETURN_ONE[machine]))


def _base_address(library: str) -> int:
    with open("/proc/self/maps", encoding="utf-8") as maps:
        for line in maps:
            if line.rstrip().rpartition("/")[2].startswith(library):
                return int(line.partition("-")[0], 16)
    msg = f"{library} is not loaded"
    raise ValueError(msg)


def _import_slots(base: int, types: tuple[int, int]) -> dict[bytes, int]:
    """Read a loaded ELF file's table of imported functions: name to the address that holds the pointer."""
    dynamic = _dynamic_section(base)
    names, symbols, table = (_absolute(base, dynamic[tag]) for tag in (DT_STRTAB, DT_SYMTAB, DT_JMPREL))
    slots: dict[bytes, int] = {}
    for offset, info, _ in struct.iter_unpack("<QQq", ctypes.string_at(table, dynamic[DT_PLTRELSZ])):
        if info & 0xFFFFFFFF in types:
            name_offset = struct.unpack("<I", ctypes.string_at(symbols + (info >> 32) * SYMBOL, 4))[0]
            slots[ctypes.string_at(names + name_offset)] = base + offset
    return slots


def _dynamic_section(base: int) -> dict[int, int]:
    header = ctypes.string_at(base, 64)
    start, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
    for index in range(count):
        kind, _, _, address, _, _, length, _ = struct.unpack(
            "<IIQQQQQQ", ctypes.string_at(base + start + index * size, 56)
        )
        if kind == PT_DYNAMIC:
            return dict(struct.iter_unpack("<QQ", ctypes.string_at(base + address, length)))
    msg = "the library has no dynamic section"
    raise ValueError(msg)


def _absolute(base: int, value: int) -> int:
    # glibc adds the base on loading, other loaders leave the offset
    return value if value > base else base + value


def _machine_code(code: bytes) -> int:
    # kept for the life of the process: the library may call it at any time
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    _PAGES.append(page)
    return address


def _write_pointer(slot: int, value: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    page = slot & ~(mmap.PAGESIZE - 1)
    length = mmap.PAGESIZE * 2
    protect = library.mprotect
    protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    # the table may be read-only after loading (RELRO)
    if protect(page, length, mmap.PROT_READ | mmap.PROT_WRITE) != 0:
        raise OSError(ctypes.get_errno(), "the import table cannot be written")
    ctypes.c_uint64.from_address(slot).value = value


_PAGES: list[mmap.mmap] = []
