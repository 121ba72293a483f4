"""The store's index.json: which artifacts there are. Read without a lock, replaced whole under one."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from builder import durable, oci
from builder.errors import EnginefarmError, Reason

DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_STALE_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An artifact: an engine or an ONNX model. `digest` is that of its OCI manifest, `size` the manifest's bytes."""

    kind: str
    key: str
    name: str
    digest: str
    size: int
    created: str
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)

    def same_as(self, other: Entry) -> bool:
        """Say whether both name the same artifact, whenever it was added."""
        return (self.kind, self.key, self.name, self.digest) == (other.kind, other.key, other.name, other.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The index at one instant. `foreign`: what other OCI tools added; kept, never read."""

    entries: tuple[Entry, ...] = ()
    by_key: Mapping[tuple[str, str], tuple[Entry, ...]] = field(default_factory=dict)
    foreign: tuple[oci.Document, ...] = ()


class IndexFile:
    """Reads the index again only when the file has changed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._path = root / "index.json"
        self._seen: tuple[tuple[int, int, int], Index] | None = None

    def load(self, *, fresh: bool = False) -> Index:
        """Return the index; empty where there is none yet. `fresh` trusts no earlier reading.

        Raises:
            EnginefarmError: STORE_FOREIGN, STORE_CORRUPT.

        """
        try:
            status = self._path.stat()
            stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
            seen = self._seen
            if seen is not None and seen[0] == stamp and not fresh:
                return seen[1]
            check_layout(self._root)
            index = _parse(self._path.read_bytes())
        except FileNotFoundError:
            return Index()
        except NotADirectoryError as error:
            raise EnginefarmError(Reason.STORE_FOREIGN, f"{self._root} is no folder", why=str(error)) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise EnginefarmError(
                Reason.STORE_CORRUPT,
                "the store's index cannot be read",
                where=str(self._path),
                why=repr(error),
                fix=f"move {self._root} aside and build again; the files under blobs/ stay usable as evidence",
            ) from error
        self._seen = (stamp, index)
        return index

    def locked(self) -> FileLock:
        """Return the lock under which the index is replaced and blobs are deleted."""
        return FileLock(self._root / ".lock")

    def update(self, change: Callable[[tuple[Entry, ...]], list[Entry]], temp_folder: Path) -> None:
        """Replace the entries, alone among all threads and processes.

        Raises:
            EnginefarmError: DISK_FULL, STORE_READ_ONLY, STORE_FOREIGN, STORE_CORRUPT.

        """
        with durable.writing(str(self._path)), self.locked():
            _sweep(temp_folder)
            index = self.load(fresh=True)
            documents = [*index.foreign, *map(_to_descriptor, change(index.entries))]
            durable.write_atomically(self._path, oci.index(documents), temp_folder)


def check_layout(root: Path) -> None:
    """Refuse a folder that is no OCI image layout of the known version.

    Raises:
        EnginefarmError: STORE_FOREIGN.

    """
    layout = root / "oci-layout"
    try:
        version = json.loads(layout.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnginefarmError(Reason.STORE_FOREIGN, f"{root} is not an OCI image layout", why=str(error)) from error
    if version != oci.LAYOUT:
        raise EnginefarmError(Reason.STORE_FOREIGN, f"{layout} says {version}, this version knows {oci.LAYOUT}")


def _sweep(temp_folder: Path) -> None:
    # what killed writers left; a younger file may belong to one at work, which can rename it at any time
    limit = time.time() - _STALE_S
    for path in temp_folder.iterdir():
        try:
            if path.stat().st_mtime < limit:
                path.unlink()
        except FileNotFoundError:
            continue


def _parse(content: bytes) -> Index:
    entries, foreign = [], []
    by_key: dict[tuple[str, str], tuple[Entry, ...]] = {}
    for document in json.loads(content)["manifests"]:
        if oci.KIND not in document.get("annotations", {}):
            foreign.append(document)
            continue
        entry = _to_entry(document)
        entries.append(entry)
        by_key[entry.kind, entry.key] = (*by_key.get((entry.kind, entry.key), ()), entry)
    return Index(entries=tuple(entries), by_key=by_key, foreign=tuple(foreign))


def _to_descriptor(entry: Entry) -> oci.Document:
    annotations = {
        **entry.annotations,
        oci.REF_NAME: entry.name,
        oci.KIND: entry.kind,
        oci.KEY: entry.key,
        oci.CREATED: entry.created,
    }
    document = oci.descriptor(oci.MANIFEST_TYPE, entry.digest, entry.size, annotations)
    return document | {"artifactType": oci.artifact_type(entry.kind)}


def _to_entry(document: Mapping[str, Any]) -> Entry:
    annotations = dict(document["annotations"])
    digest, size = document["digest"], document["size"]
    if not DIGEST.fullmatch(digest) or not isinstance(size, int):
        msg = f"digest {digest!r} or size {size!r}"
        raise ValueError(msg)
    name, kind = annotations.pop(oci.REF_NAME), annotations.pop(oci.KIND)
    key, created = annotations.pop(oci.KEY), annotations.pop(oci.CREATED)
    return Entry(kind=kind, key=key, name=name, digest=digest, size=size, created=created, annotations=annotations)
