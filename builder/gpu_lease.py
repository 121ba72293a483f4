"""One program per GPU: leases among all farms of a machine, by locks that the kernel takes back when a process dies.

The lock files lie in folders that every user may write to. Containers that share such a folder share the leases.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from builder.errors import EnginefarmError, Reason
from builder.gpu import Gpu, free_memory_bytes, processes

VARIABLE = "ENGINEFARM_GPU_LOCKS"
# A lease is a lock in each of these that can be had: not every user may write to the first, and all can to the second.
_FOLDERS = (Path("/run/lock/enginefarm"), Path("/tmp/enginefarm-locks"))  # noqa: S108  # the same name for all users
# a pipe that somebody has put there must not keep who opens it waiting
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_LOOK_S = 0.25
_PATIENCE_S = 5.0
_SHOWN = 4


@contextmanager
def lease(
    candidates: Sequence[Gpu],
    cancel: threading.Event,
    on_wait: Callable[[str], None] | None,
    environ: Mapping[str, str],
    what: str = "",
) -> Iterator[Gpu]:
    """Hold one of some GPUs alone: the first that is free, the one with most free memory if several are.

    A GPU and a MIG slice of it exclude each other, two slices do not. `what`: told to those who wait, such as a job's
    id. `on_wait` is told who holds the GPUs, each time that this changes. ENGINEFARM_GPU_LOCKS names another folder.

    Raises:
        EnginefarmError: INTERRUPTED when `cancel` is set while waiting; GPU_NEEDED without candidates; GPU_BUSY where
            no lock file can be opened.

    """
    if not candidates:
        raise EnginefarmError(Reason.GPU_NEEDED, "there is no GPU to take")
    folders, told = _folders(environ), ""
    while True:
        for gpu in _by_free_memory(candidates):
            held = _take(gpu, folders, what)
            if held is not None:
                with held:
                    yield gpu
                return
        said = "; ".join(_holder(gpu, folders) for gpu in candidates)
        if on_wait is not None and said != told:
            on_wait(f"{said}: waiting")
            told = said
        if cancel.wait(_LOOK_S):
            raise EnginefarmError(Reason.INTERRUPTED, f"stopped while waiting for {candidates[0].label}")


def require_memory(gpu: Gpu, needed_bytes: int, cancel: threading.Event, patience_s: float = _PATIENCE_S) -> int:
    """Return the bytes that a GPU has free, if they are enough.

    A killed program gives its memory back within seconds, so too little is looked at again.

    Raises:
        EnginefarmError: GPU_MEMORY_SHORT, naming the programs that hold memory; GPU_UNREADABLE; INTERRUPTED.

    """
    waited = 0.0
    while (free := free_memory_bytes(gpu.uuid)) < needed_bytes:
        if waited >= patience_s:
            raise _short(gpu, needed_bytes, free)
        if cancel.wait(_LOOK_S):
            raise EnginefarmError(Reason.INTERRUPTED, f"stopped while waiting for memory of {gpu.label}")
        waited += _LOOK_S
    return free


def _short(gpu: Gpu, needed_bytes: int, free: int) -> EnginefarmError:
    try:
        holders = processes(gpu.uuid)
    except EnginefarmError:
        # who has the memory is good to know; that there is too little of it is the error
        holders = ()
    named = ", ".join(one.text for one in holders[:_SHOWN])
    more = f" and {len(holders) - _SHOWN} more" if len(holders) > _SHOWN else ""
    room = f"{free >> 20} of {gpu.memory_bytes >> 20} MiB free"
    # rounded up: what is missing may be less than a MiB
    needed = -(-needed_bytes >> 20)
    return EnginefarmError(
        Reason.GPU_MEMORY_SHORT,
        f"{gpu.label} has {room}, the job needs {needed} MiB",
        why=f"memory is held by {named}{more}" if holders else None,
    )


def _by_free_memory(candidates: Sequence[Gpu]) -> list[Gpu]:
    if len(candidates) == 1:
        return list(candidates)

    def free(gpu: Gpu) -> int:
        try:
            return free_memory_bytes(gpu.uuid)
        except EnginefarmError:
            return -1

    return sorted(candidates, key=free, reverse=True)


def _take(gpu: Gpu, folders: Sequence[Path], what: str) -> ExitStack | None:
    """Lock a GPU in all folders; null if another has it in one of them."""
    parts = [(gpu.uuid, fcntl.LOCK_EX)]
    if gpu.parent is not None:
        # shared among the slices of a GPU, and in the way of who wants it whole
        parts.insert(0, (gpu.parent, fcntl.LOCK_SH))
    with ExitStack() as held:
        for folder in folders:
            for uuid, kind in parts:
                if not _lock(folder / _name(uuid), kind, what, held):
                    return None
        return held.pop_all()


def _lock(path: Path, kind: int, what: str, held: ExitStack) -> bool:
    try:
        descriptor = _open(path)
        held.callback(os.close, descriptor)
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _no_lock("the lock of a GPU cannot be taken", path, error) from error
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            text = json.dumps({"pid": os.getpid(), "what": what}).encode()
            _write(descriptor, text)
            held.callback(_erase, descriptor, text)
            return True
    # somebody has cleaned the folder up in between; the next look finds, or makes, another file
    return False


def _open(path: Path) -> int:
    """Open a lock file, made for all users if need be.

    The kernel may refuse O_CREAT for another user's file in a folder such as /tmp (fs.protected_regular), even though
    the file is there: so it is named only where there is no file.
    """
    for _ in range(2):
        with suppress(FileNotFoundError):
            return _open_existing(path)
        with suppress(FileExistsError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)
            # whatever the umask says
            os.fchmod(descriptor, 0o666)
            return descriptor
    return _open_existing(path)


def _open_existing(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | _FLAGS)
    except PermissionError:
        # a lock needs no more
        descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a file")
    return descriptor


def _write(descriptor: int, text: bytes) -> None:
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)


def _erase(descriptor: int, text: bytes) -> None:
    # slices share the file of their GPU: the note may be another's by now
    with suppress(OSError):
        if os.pread(descriptor, len(text) + 1, 0) == text:
            os.ftruncate(descriptor, 0)


def _holder(gpu: Gpu, folders: Sequence[Path]) -> str:
    """Say who has a GPU, as far as a lock file tells; its slices note themselves in the file of the whole, too."""
    uuids = [gpu.uuid] if gpu.parent is None else [gpu.uuid, gpu.parent]
    for path in (folder / _name(uuid) for uuid in uuids for folder in folders):
        try:
            note = json.loads(path.read_bytes())
            pid, what = int(note["pid"]), str(note["what"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
        return f"{gpu.label} is held by enginefarm process {pid}{f' ({what})' if what else ''}"
    return f"{gpu.label} is held by another process"


def _folders(environ: Mapping[str, str]) -> list[Path]:
    named = environ.get(VARIABLE)
    folders = [Path(named).resolve()] if named else _FOLDERS
    found: list[Path] = []
    for folder in folders:
        try:
            _make(folder)
        except OSError as error:
            if folder is folders[-1] and not found:
                raise _no_lock("the folder for the locks of GPUs cannot be made", folder, error) from error
        else:
            found.append(folder)
    return found


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        # a link, too, which anybody can put into /tmp
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise
    else:
        # whatever the umask says
        folder.chmod(0o1777)


def _no_lock(what: str, path: Path, error: OSError) -> EnginefarmError:
    fix = f"name a folder that all users may write to in {VARIABLE}"
    return EnginefarmError(Reason.GPU_BUSY, what, where=str(path), why=str(error), fix=fix)


def _name(uuid: str) -> str:
    return f"{uuid.replace('/', '_')}.lock"
