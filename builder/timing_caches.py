"""Timing caches in the store: what TensorRT measured on a GPU, kept for the next build of the same class.

A class is one stack on one kind of device and driver, with the builder options that choose tactics; TensorRT's caches
hold entries of many models. Each file of a class is a store entry of its own, and the class is all of them. A build
reads every file, TensorRT combines them in the worker, and what comes out holds all that was read. So saving is:
add the new entry, then drop those that were read. Builds side by side lose nothing of one another, no merge needs a GPU
here, and a kill in between leaves a file too many, never one too few.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import durable
from builder.errors import EnginefarmError, Reason
from builder.key import Runtime, Tuning, canonical
from builder.store import Blob, Entry, Store

KIND = "timing-cache"
TIMING_CACHE, CLASS = "timing.cache", "class.json"
CLASS_BYTES = 64 << 20
_TACTIC_OPTIONS = (
    "hardware_compatibility",
    "optimization_level",
    "refit",
    "strip_weights",
    "tactic_sources",
    "version_compatible",
    "weight_streaming",
)
_CLASS_FILE_BYTES = 1 << 20
_TEXTS = ("tensorrt", "device", "sm", "driver", "precision")
_DIGEST = re.compile(r"(sha256:)?(?P<hex>[0-9a-f]{6,64})")
_SLUG = re.compile(r"[^a-z0-9.]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caches:
    """The files of a class, oldest first: of two measurements of one tactic TensorRT keeps the first that it reads."""

    files: tuple[Blob, ...] = ()

    @property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each file, hex."""
        return tuple(_hex(blob) for blob in self.files)

    def inputs(self) -> dict[str, Path]:
        """Return the stage inputs, named so that their order is kept."""
        return {f"timing_cache_{index:04}": blob.path for index, blob in enumerate(self.files)}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheFile:
    """A timing cache in the store. `document` describes its class; null for the cache that lies beside an engine."""

    entry: Entry
    blob: Blob
    document: Mapping[str, Any] | None

    @property
    def sha256(self) -> str:
        """Digest of the file, hex."""
        return _hex(self.blob)


def class_document(runtime: Runtime, precision: str, options: Mapping[str, Any], tuning: Tuning) -> dict[str, Any]:
    """Describe a class: all that decides which measurements a build may use.

    `options`: the builder settings of a job. The workspace limit is left out: it follows the memory that happens to be
    free, and TensorRT checks a tactic's need against it all the same. So is the GPU's UUID: TensorRT keeps it in the
    cache's header, and devices of one name and driver may share.
    """
    return {
        "stack": runtime.as_document(),
        "tensorrt": runtime.stack.build.tensorrt,
        "device": tuning.device,
        "sm": tuning.sm,
        "driver": tuning.driver,
        "precision": precision,
        "options": {name: options.get(name) for name in _TACTIC_OPTIONS},
    }


def class_key(document: Mapping[str, Any]) -> str:
    """Return the key of a class, a SHA-256 in hex."""
    return hashlib.sha256(b"enginefarm-timing-cache\0" + canonical(document)).hexdigest()


def caches_for(store: Store, document: Mapping[str, Any]) -> Caches:
    """Find the files of a class, digests checked; a corrupt one is set aside and counts as absent. They count as used.

    Raises:
        EnginefarmError: STORE_FOREIGN, STORE_CORRUPT where the index cannot be read.

    """
    files = []
    for entry in _oldest_first(store.find(KIND, class_key(document))):
        if store.intact(entry):
            store.touch(entry)
            files.append(store.files(entry)[TIMING_CACHE])
    return Caches(files=tuple(files))


def save_cache(store: Store, document: Mapping[str, Any], read: Collection[str], new: Path) -> str:
    """Keep what a build measured and return the SHA-256 of the file, hex.

    `read`: digests (hex) of the files that the build read; `new` holds all their entries and takes their place. A class
    holds CLASS_BYTES at most: beyond that what was used longest ago goes, and a file that is larger by itself is not
    kept, so that the class begins anew.

    Raises:
        EnginefarmError: DISK_FULL, STORE_READ_ONLY, STORE_FOREIGN, STORE_CORRUPT.

    """
    sha256, key = durable.sha256_file(new), class_key(document)
    if new.stat().st_size <= CLASS_BYTES:
        files: dict[str, Path | bytes] = {TIMING_CACHE: new, CLASS: canonical(document)}
        store.add(kind=KIND, key=key, name=_name(document, sha256), files=files)
    kept: list[tuple[Entry, Blob]] = []
    for entry in store.find(KIND, key):
        blob = _cache_of(store, entry)
        if blob is not None and _hex(blob) in read and _hex(blob) != sha256:
            store.remove(entry)
        elif blob is not None:
            kept.append((entry, blob))
    _limit(store, kept, sha256)
    return sha256


def find_cache(store: Store, text: str) -> Blob:
    """Find a timing cache by the first six or more digits of its SHA-256, or take the file `text`.

    The store's own are those of classes and those beside engines. The digest is checked.

    Raises:
        EnginefarmError: NAME_UNKNOWN, also where the digits mean several; STORE_CORRUPT.

    """
    given = _file(text)
    if given is not None:
        return given
    match = _DIGEST.fullmatch(text)
    found = {one.sha256: one for one in list_caches(store) if match and one.sha256.startswith(match["hex"])}
    if len(found) != 1:
        raise _unknown(text, sorted(found))
    (cache,) = found.values()
    actual = durable.sha256_file(cache.blob.path) if cache.blob.path.is_file() else "nothing"
    if actual != cache.sha256:
        what = f"the timing cache {cache.sha256[:12]} of {cache.entry.name} is damaged"
        why = f"expected {cache.sha256}\nactual   {actual}"
        raise EnginefarmError(Reason.STORE_CORRUPT, what, where=str(cache.blob.path), why=why)
    return cache.blob


def list_caches(store: Store) -> list[CacheFile]:
    """List the timing caches of the store: those of classes first, then those beside engines.

    Raises:
        EnginefarmError: STORE_FOREIGN, STORE_CORRUPT.

    """
    return [*_listed(store, KIND), *_listed(store, "engine")]


def export_cache(store: Store, text: str, target: Path) -> Blob:
    """Write a timing cache to a file, which is replaced if it is there; return what was written.

    Raises:
        EnginefarmError: as `find_cache`; PATH_OCCUPIED where something else than a file is there; DISK_FULL,
            STORE_READ_ONLY for the place to write to.

    """
    blob = find_cache(store, text)
    with _writing(target, blob.size):
        if target.exists() and not target.is_file():
            # a device would be replaced, too
            raise EnginefarmError(Reason.PATH_OCCUPIED, f"{target} is no file", fix="name a file to write to")
        target = target.resolve()
        _make_folder(target.parent)
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}-", dir=target.parent, delete=False) as file:
            temp = Path(file.name)
        try:
            durable.copy_hashed(blob.path, temp)
            temp.chmod(0o644)
            temp.replace(target)
        finally:
            temp.unlink(missing_ok=True)
    return blob


def export_classes(store: Store, folder: Path) -> list[str]:
    """Write every cache of a class with the description of its class to a folder of its own; return their names.

    Raises:
        EnginefarmError: as `export_cache`.

    """
    names = []
    for cache in _listed(store, KIND):
        place = folder / _place_name(cache.document or {}, cache.sha256)
        with _writing(place, cache.blob.size):
            place.mkdir(parents=True, exist_ok=True)
            durable.write_atomically(place / CLASS, store.read(cache.entry, CLASS), place)
        export_cache(store, cache.sha256, place / TIMING_CACHE)
        names.append(place.name)
    return names


def import_classes(store: Store, folder: Path) -> list[str]:
    """Take what `export_classes` wrote, on this machine or another; return the names of those that are new here.

    Nothing is taken where one of them is damaged. Builds of the same class then read them: the same stack and image,
    GPU model, driver and options.

    Raises:
        EnginefarmError: TIMING_CACHE_INVALID naming the folder; FILE_MISSING; as `Store.add`.

    """
    found = sorted(path.parent for path in folder.glob(f"*/{CLASS}"))
    if not found:
        fix = "name a folder that `enginefarm caches export-all` wrote"
        raise EnginefarmError(Reason.FILE_MISSING, f"{folder} holds no timing caches", fix=fix)
    known = {(one.entry.key, one.sha256) for one in _listed(store, KIND)}
    read = [(place, *_read_class(place)) for place in found]
    new = [one for one in read if (class_key(one[1]), one[2]) not in known]
    for place, document, sha256 in new:
        files: dict[str, Path | bytes] = {TIMING_CACHE: place / TIMING_CACHE, CLASS: canonical(document)}
        store.add(kind=KIND, key=class_key(document), name=_name(document, sha256), files=files)
    return [place.name for place, _, _ in new]


def _read_class(place: Path) -> tuple[dict[str, Any], str]:
    try:
        document = _read_document(_plain(place / CLASS, _CLASS_FILE_BYTES).read_bytes())
        sha256 = durable.sha256_file(_plain(place / TIMING_CACHE, CLASS_BYTES))
        name = _place_name(document, sha256)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = "this is no timing cache with a description of its class"
        raise EnginefarmError(Reason.TIMING_CACHE_INVALID, what, where=str(place), why=repr(error)) from error
    if name != place.name:
        why = f"its content and description belong to the name {name}"
        raise EnginefarmError(Reason.TIMING_CACHE_INVALID, "the timing cache is damaged", where=str(place), why=why)
    return document, sha256


def _plain(path: Path, most: int) -> Path:
    """Give the path back if it is that of a file with an end: a folder from elsewhere may hold anything."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > most:
        msg = f"{path.name} is no file of at most {most} bytes"
        raise ValueError(msg)
    return path


def _read_document(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except RecursionError as error:
        msg = "the description is nested too deeply"
        raise ValueError(msg) from error
    texts = [document[name] for name in _TEXTS] + [document["stack"]["name"]]
    if not all(isinstance(text, str) and text.isprintable() for text in texts):
        msg = "the description has names that are no text"
        raise ValueError(msg)
    return {**document}


def _place_name(document: Mapping[str, Any], sha256: str) -> str:
    # both files are in the name, so that damage to either shows
    return f"{_name(document, sha256)}-{class_key(document)[:12]}"


@contextmanager
def _writing(path: Path, size: int) -> Iterator[None]:
    """Name what keeps a place that somebody chose from being written to."""
    try:
        with durable.writing(str(path), size):
            yield
    except OSError as error:
        # a name that is too long, a file system that makes no files
        raise EnginefarmError(Reason.STORE_READ_ONLY, f"{path} cannot be written", why=str(error)) from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        what = f"{folder} is no folder, and nothing can be written into it"
        raise EnginefarmError(Reason.STORE_READ_ONLY, what, why=str(error)) from error


def _file(text: str) -> Blob | None:
    """Take a file by its name; null where the text names none."""
    path = Path(text)
    try:
        if not path.is_file():
            return None
        return Blob(digest=f"sha256:{durable.sha256_file(path)}", size=path.stat().st_size, path=path)
    except OSError as error:
        # too long for a name, or a file that this user may not read
        raise EnginefarmError(Reason.NAME_UNKNOWN, f"{text!r} cannot be read", why=str(error)) from error


def _listed(store: Store, kind: str) -> Iterator[CacheFile]:
    for entry in store.entries(kind):
        blob = _cache_of(store, entry)
        if blob is None:
            continue
        try:
            document = _read_document(store.read(entry, CLASS)) if kind == KIND else None
        except (EnginefarmError, KeyError, ValueError, TypeError):
            # damaged: no build takes it, and the others are none the worse
            continue
        yield CacheFile(entry=entry, blob=blob, document=document)


def _limit(store: Store, kept: list[tuple[Entry, Blob]], newest: str) -> None:
    total = sum(blob.size for _, blob in kept)
    for entry, blob in sorted(kept, key=lambda item: (store.used(item[0]), item[0].created)):
        if total > CLASS_BYTES and _hex(blob) != newest:
            store.remove(entry)
            total -= blob.size


def _oldest_first(newest_first: tuple[Entry, ...]) -> list[Entry]:
    return sorted(newest_first, key=lambda entry: (entry.created, entry.digest))


def _cache_of(store: Store, entry: Entry) -> Blob | None:
    """Return an entry's cache; null where it has none, or where its files cannot be told."""
    try:
        return store.files(entry).get(TIMING_CACHE)
    except EnginefarmError:
        return None


def _unknown(text: str, found: list[str]) -> EnginefarmError:
    if found:
        what = f"{text!r} means {len(found)} timing caches"
        return EnginefarmError(Reason.NAME_UNKNOWN, what, why="\n".join(found), fix="write more digits")
    fix = "`enginefarm caches ls` lists them; a file can be named, too"
    return EnginefarmError(Reason.NAME_UNKNOWN, f"the store has no timing cache {text!r}", fix=fix)


def _name(document: Mapping[str, Any], sha256: str) -> str:
    # the content is part of the name: equal files of a class are one entry, others are not
    device = _SLUG.sub("-", str(document["device"]).lower()).strip("-")
    return f"{document['stack']['name']}-{device}-{document['precision']}-{sha256[:12]}"


def _hex(blob: Blob) -> str:
    return blob.digest.removeprefix("sha256:")
