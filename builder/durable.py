"""Files that survive a crash whole or not at all: temp file, fsync, rename, fsync of the folder."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from builder.errors import EnginefarmError, Reason

_CHUNK = 1 << 20
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@contextmanager
def writing(what: str, needed: int | None = None) -> Iterator[None]:
    """Turn a full disk and a read-only place into errors that say so.

    Raises:
        EnginefarmError: DISK_FULL, STORE_READ_ONLY.

    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            size = f" ({needed} bytes)" if needed is not None else ""
            raise EnginefarmError(Reason.DISK_FULL, f"the disk is full: {what}{size} was not written") from error
        if error.errno in _FORBIDDEN:
            raise EnginefarmError(Reason.STORE_READ_ONLY, f"{what} cannot be written", why=str(error)) from error
        raise


@contextmanager
def unobstructed(what: str) -> Iterator[None]:
    """Turn files where folders should be, and folders where files should be, into an error that says so.

    Raises:
        EnginefarmError: PATH_OCCUPIED.

    """
    try:
        yield
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        what = f"something else lies where {what} should"
        raise EnginefarmError(Reason.PATH_OCCUPIED, what, why=str(error), fix="move it away") from error


def write_atomically(path: Path, content: bytes, temp_folder: Path) -> None:
    """Replace a file's content; a reader sees the old or the new one. `temp_folder`: same filesystem."""
    descriptor, name = tempfile.mkstemp(prefix=f"{path.name}-", dir=temp_folder)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make a file's content durable."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """Hash a file, hex."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def copy_hashed(source: Path, target: Path) -> str:
    """Copy a file durably and return its SHA-256, hex."""
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_CHUNK))
    with source.open("rb", buffering=0) as reader, target.open("wb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            digest.update(buffer[:count])
            view = buffer[:count]
            while view:
                view = view[writer.write(view) :]
        os.fsync(writer.fileno())
    return digest.hexdigest()
