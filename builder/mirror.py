"""Copies a model's index with its engines and all that is attached, between registries and folders: for air gaps.

Digests are checked on the way, so both sides hold the same bytes. Who signed what is for those to judge who pull.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import durable, host, oci
from builder.artifact import MAX_BYTES, parse_index
from builder.errors import EnginefarmError, Reason
from builder.events import Listener
from builder.locks import named_lock
from builder.places import Located
from builder.project import Home
from builder.steps import told
from builder.store_index import DIGEST

_ACCEPT = (oci.MANIFEST_TYPE, oci.INDEX_TYPE)
# a signature of a signature of an engine, and no further
_DEPTH = 4
_MOST_DOCUMENTS = 50_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """What was copied. `documents`, `blobs`, `size` (bytes of blobs): what the destination did not have."""

    source: str
    destination: str
    digest: str
    serial: int
    engines: int
    documents: int
    blobs: int
    size: int


def mirror(
    source: Located,
    destination: Located,
    home: Home,
    cancel: threading.Event,
    listen: Listener,
    *,
    accept_older: bool = False,
    max_bytes: int = MAX_BYTES,
) -> Mirrored:
    """Copy a model's index under its tag; the tag moves last. Doing it again copies what has changed.

    The files of an engine, or of one thing attached to it, may have `max_bytes` together.

    Raises:
        EnginefarmError: ARTIFACT_MISSING, ARTIFACT_INVALID, ARTIFACT_TOO_NEW, IDENTITY_MISMATCH where the names of the
            models differ, INDEX_ROLLED_BACK where the destination has a newer index; DOWNLOAD_CORRUPT, SIZE_REFUSED,
            DISK_FULL; those of `builder.registry.Registry`.

    """
    with told(listen, source.model, "mirror"):
        place = hashlib.sha256(f"{source.name}\n{destination.name}".encode()).hexdigest()[:16]
        clear = durable.unobstructed(str(home.pulls))
        with clear, durable.writing(str(home.pulls)), named_lock(home, f"mirror-{place}", cancel):
            work = home.pulls / f"mirror-{place}"
            work.mkdir(parents=True, exist_ok=True)
            copy = _Copy(source=source, destination=destination, work=work, cancel=cancel, max_bytes=max_bytes)
            copied = copy.run(accept_older)
            work.rmdir()
        return copied


@dataclass(slots=True, kw_only=True)
class _Copy:
    """One copy under way. `done`, `moved`: digests of documents and of blobs that were dealt with."""

    source: Located
    destination: Located
    work: Path
    cancel: threading.Event
    max_bytes: int
    done: set[str] = field(default_factory=set)
    moved: set[str] = field(default_factory=set)
    documents: int = 0
    blobs: int = 0
    size: int = 0

    def run(self, accept_older: bool) -> Mirrored:  # noqa: FBT001 - passed on
        read = self.source.place.manifest(self.source.version, _ACCEPT)
        if read is None:
            raise EnginefarmError(Reason.ARTIFACT_MISSING, f"there is no {self.source.shown}")
        index = parse_index(read[0], self.source.shown, self.destination.model)
        self._refuse_newer(index.serial, accept_older=accept_older)
        for entry in index.entries:
            self._document(entry["digest"], 0)
        # by digest first, so that a signature of the index has something to refer to
        self._put(index.digest, read[0], read[1])
        self.done.add(index.digest)
        self._referrers(index.digest, 0)
        if not self.destination.pinned:
            self._put(self.destination.version, read[0], read[1])
        return Mirrored(
            source=self.source.shown,
            destination=self.destination.shown,
            digest=index.digest,
            serial=index.serial,
            engines=len(index.entries),
            documents=self.documents,
            blobs=self.blobs,
            size=self.size,
        )

    def _refuse_newer(self, serial: int, *, accept_older: bool) -> None:
        there = self.destination.place.manifest(self.destination.version, _ACCEPT)
        if there is None or accept_older or self.destination.pinned:
            return
        known = parse_index(there[0], self.destination.shown, self.destination.model).serial
        if known > serial:
            why = f"serial {known} is there, this is {serial}"
            what = f"{self.destination.shown} is newer than {self.source.shown}"
            raise EnginefarmError(Reason.INDEX_ROLLED_BACK, what, why=why)

    def _document(self, digest: str, depth: int) -> None:
        """Copy a manifest with its blobs and with what is attached to it."""
        if self.cancel.is_set():
            raise EnginefarmError(Reason.INTERRUPTED, "copying was stopped")
        if digest in self.done:
            return
        self.done.add(digest)
        if len(self.done) > _MOST_DOCUMENTS or depth > _DEPTH:
            raise EnginefarmError(Reason.ARTIFACT_INVALID, f"{self.source.name} holds an endless tree of documents")
        read = self.source.place.manifest(digest, _ACCEPT)
        if read is None:
            what = f"{self.source.name} lists {digest} and does not have it"
            raise EnginefarmError(Reason.ARTIFACT_MISSING, what)
        # whoever has a manifest has its blobs: they come first
        if self.destination.place.manifest(digest, _ACCEPT) is None:
            blobs, children = _mentioned(read[0], f"{self.source.name}@{digest}")
            self._require_room(blobs, f"{self.source.name}@{digest}")
            for child in children:
                self._document(child, depth + 1)
            # engines without weights share theirs
            left = [one for digest, one in blobs.items() if digest not in self.moved]
            moved = self.destination.place.together([self._moving(one) for one in left])
            self.moved |= blobs.keys()
            self.blobs += sum(moved)
            self.size += sum(one["size"] for one, new in zip(left, moved, strict=True) if new)
            self._put(digest, read[0], read[1])
            self.documents += 1
        self._referrers(digest, depth)

    def _require_room(self, blobs: Mapping[str, oci.Document], where: str) -> None:
        total = sum(one["size"] for one in blobs.values())
        if total > self.max_bytes:
            why = f"its files have {total} bytes together, {self.max_bytes} are allowed"
            raise EnginefarmError(Reason.SIZE_REFUSED, "what is to be copied is too large", where=where, why=why)
        if host.free_disk_bytes(self.work) < total:
            what = f"the disk has no room for {total} bytes"
            raise EnginefarmError(Reason.DISK_FULL, what, where=str(self.work))

    def _referrers(self, digest: str, depth: int) -> None:
        listed = [one for one in self.source.place.referrers(digest) if _is_listed(one)]
        for one in listed:
            self._document(one["digest"], depth + 1)
        if listed:
            self.destination.place.ensure_listed(digest, listed)

    def _moving(self, described: oci.Document) -> Callable[[], bool]:
        return lambda: self._move(described)

    def _move(self, described: oci.Document) -> bool:
        """Copy a blob; say whether the destination lacked it."""
        file = self.work / described["digest"].removeprefix("sha256:")
        self.source.place.fetch(described, file)
        pushed = self.destination.place.push(file, described["digest"], described["size"])
        file.unlink()
        return pushed

    def _put(self, reference: str, content: bytes, described: oci.Document) -> None:
        self.destination.place.put_manifest(reference, content, described["mediaType"])


def _mentioned(content: bytes, where: str) -> tuple[dict[str, oci.Document], list[str]]:
    """List the blobs of a manifest, or the manifests of an index."""
    try:
        document: Any = json.loads(content)
        if document.get("mediaType") == oci.INDEX_TYPE:
            return {}, [_checked(one)["digest"] for one in document["manifests"]]
        blobs = [_checked(one) for one in (document["config"], *document["layers"])]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error) or repr(error)
        raise EnginefarmError(Reason.ARTIFACT_INVALID, "this is no manifest", where=where, why=why) from error
    return {one["digest"]: one for one in blobs}, []


def _checked(one: Any) -> oci.Document:
    digest, size = one["digest"], one["size"]
    if not DIGEST.fullmatch(digest) or type(size) is not int or size < 0:
        raise ValueError(f"digest {digest!r} or size {size!r}")
    return oci.descriptor(str(one["mediaType"]), digest, size)


def _is_listed(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("digest"), str) and bool(DIGEST.fullmatch(one["digest"]))
