"""Unpacks a stack's image into a folder, for machines that have no container engine: see the executor rootfs."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import durable, host
from builder.docker_engine import DockerEngine, docker_errors
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, StepAdvanced
from builder.image_record import ImageRecord
from builder.preflight import MIB, check_disk
from builder.stacks import Stack
from builder.steps import told

# beside an image's packages: the distribution
_BASE_MIB = 300
_MARK = ".enginefarm.json"
_CHUNK = 1 << 20
Advance = Callable[[int], None]
# where an executor mounts something: made here, so that the root can be read-only
_MOUNT_POINTS = ("proc", "sys", "dev", "tmp", "work", "opt/enginefarm/src/builder/worker", "usr/local/nvidia")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a root says of itself once it is complete: its image's digest and variables."""

    digest: str
    env: dict[str, str]


def root_path(folder: Path, stack: str) -> Path:
    """Path of a stack's unpacked image, there or not."""
    return folder / stack


def record_path(folder: Path, stack: str) -> Path:
    """Path of what is known of a stack's image."""
    return folder / f"{stack}.json"


def read_record(folder: Path, stack: str) -> ImageRecord | None:
    """Read what is known of a stack's image; an unreadable record counts as absent."""
    try:
        return ImageRecord.model_validate_json(record_path(folder, stack).read_bytes())
    except (OSError, ValueError):
        return None


def read_mark(folder: Path, stack: str) -> Mark | None:
    """Read what a root says of itself; null where it is not there or not complete."""
    try:
        document = json.loads((root_path(folder, stack) / _MARK).read_bytes())
        return Mark(digest=str(document["digest"]), env={str(k): str(v) for k, v in document["env"].items()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def save_record(record: ImageRecord, folder: Path) -> Path:
    """Put the record alone into a folder: enough to find what was made with the image, not to run it."""
    with durable.writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
        content = record.model_dump_json(indent=2).encode() + b"\n"
        durable.write_atomically(record_path(folder, record.stack), content, folder)
    return record_path(folder, record.stack)


def unpack_image(
    engine: DockerEngine, stack: Stack, record: ImageRecord, folder: Path, cancel: threading.Event, listen: Listener
) -> Path:
    """Write an image's files, as its containers see them, into folder/STACK, and its record beside it.

    Owners are kept if root does it, modes always, device files not. A killed run leaves no root that looks complete.

    Raises:
        EnginefarmError: PATH_OCCUPIED where folder/STACK holds something, IMAGE_MISSING, IMAGE_INVALID,
            DOCKER_UNAVAILABLE, DISK_FULL, STORE_READ_ONLY, INTERRUPTED.

    """
    root, partial = root_path(folder, stack.name), folder / f".{stack.name}.partial"
    if root.is_symlink() or (root.exists() and not (root.is_dir() and not any(root.iterdir()))):
        raise EnginefarmError(Reason.PATH_OCCUPIED, f"{root} is there already", where=str(root))
    check_disk((stack.spec.installed_mib + _BASE_MIB) * MIB, host.free_disk_bytes(folder), folder)
    image = engine.image(record.tag)
    if image is None:
        raise EnginefarmError(Reason.IMAGE_MISSING, f"{record.tag} is gone from the Docker Engine")
    subject = f"image {stack.name}"

    def advanced(size: int) -> None:
        listen(StepAdvanced(subject=subject, done=size, total=None))

    with told(listen, subject, "unpack"), durable.writing(str(root)):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            _export(engine, record, partial, cancel, advanced)
            _finish(partial, Mark(digest=record.digest, env=_variables(image.attrs["Config"].get("Env") or [])))
            save_record(record, folder)
            partial.rename(root)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return root


def _export(engine: DockerEngine, record: ImageRecord, target: Path, cancel: threading.Event, advance: Advance) -> None:
    with docker_errors("unpacking an image"):
        api = engine.client.api
        container = engine.client.containers.create(record.tag, ["true"])
        try:
            # the library's own call keeps the connection when the reader gives up
            address = f"{api.base_url}/v{api.api_version}/containers/{container.id}/export"
            with api.get(address, stream=True) as response:
                response.raise_for_status()
                chunks = _Chunks(response.iter_content(_CHUNK), cancel, advance)
                extract(io.BufferedReader(chunks, _CHUNK), target)
        finally:
            engine.remove(container)


def extract(stream: io.BufferedIOBase, target: Path) -> None:
    """Write the files of an archive into a folder, as they come.

    Raises:
        EnginefarmError: IMAGE_INVALID for an archive that is cut off, damaged, or would write outside the folder.

    """
    top = target.resolve()
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as archive:
            # an image is a whole system, with links to anywhere: only where files go matters, and that is checked here
            archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
            archive.extractall(top, members=_members(archive, top), numeric_owner=True)  # noqa: S202  # see above
    except tarfile.TarError as error:
        raise EnginefarmError(Reason.IMAGE_INVALID, "the image's archive cannot be read", why=str(error)) from error


def _members(archive: tarfile.TarFile, top: Path) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        if member.ischr() or member.isblk() or member.isfifo():
            # the kernel's own files come with the machine
            continue
        _check_place(top, member.name)
        if member.islnk():
            _check_place(top, member.linkname)
        yield member


def _check_place(top: Path, name: str) -> None:
    """Refuse a path whose folders are not what they seem: `..`, or a link that came earlier."""
    path = top / name
    inside = path == top or (top in path.parents and ".." not in path.parts and path.parent.resolve() == path.parent)
    if not inside:
        raise EnginefarmError(Reason.IMAGE_INVALID, f"the image's archive would write outside its folder: {name}")


def _finish(root: Path, mark: Mark) -> None:
    for name in _MOUNT_POINTS:
        (root / name).mkdir(parents=True, exist_ok=True)
    content = json.dumps({"digest": mark.digest, "env": mark.env}, indent=1, sort_keys=True)
    (root / _MARK).write_text(content + "\n", encoding="utf-8")


def _variables(entries: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (entry.partition("=") for entry in entries)}


class _Chunks(io.RawIOBase):
    """Pieces of bytes as a stream."""

    def __init__(self, chunks: Iterator[bytes], cancel: threading.Event, advance: Advance) -> None:
        self._chunks = iter(chunks)
        self._cancel = cancel
        self._advance = advance
        self._rest = b""
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            if self._cancel.is_set():
                raise EnginefarmError(Reason.INTERRUPTED, "unpacking an image was stopped")
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
            self._done += len(chunk)
            self._advance(self._done)
        size = min(len(buffer), len(self._rest))
        buffer[:size], self._rest = self._rest[:size], self._rest[size:]
        return size
