"""The store: a content-addressed OCI image layout. Written atomically, read without a lock, checked by digest."""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock

from builder import durable, oci
from builder.errors import EnginefarmError, Reason

_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")
_STALE_S = 24 * 3600.0
_CACHEDIR_TAG = """\
Signature: 8a477f597d28d172789f06886806bc55
# This folder is a cache made by enginefarm; backups may leave it out.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A file of the store. `digest` is `sha256:<hex>`, `size` in bytes as the manifest says."""

    digest: str
    size: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An artifact: an engine or an ONNX model. `digest` is that of its OCI manifest."""

    kind: str
    key: str
    name: str
    digest: str
    size: int
    created: str
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong in the store. `entry` is null for damage that belongs to no single entry."""

    entry: Entry | None
    what: str
    why: str


class Store:
    """A folder that is an OCI image layout. Nothing is created before the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._index_path = root / "index.json"
        self._blobs = root / "blobs" / "sha256"
        self._temp = root / "tmp"
        self._read: tuple[tuple[int, int, int], tuple[Entry, ...], dict[tuple[str, str], list[Entry]]] | None = None

    def add(
        self,
        *,
        kind: str,
        key: str,
        name: str,
        files: Mapping[str, Path | bytes],
        annotations: Mapping[str, str] | None = None,
    ) -> Entry:
        """Store an artifact: blobs first, the index last. The newest entry of a kind and key is the one found first.

        Raises:
            EnginefarmError: DISK_FULL, STORE_READ_ONLY, STORE_FOREIGN, STORE_CORRUPT (index unreadable).

        """
        self.ensure_writable()
        layers = []
        for title in sorted(files):
            blob = self._put(files[title], title)
            layers.append(oci.layer(title, blob.digest, blob.size))
        self._put(oci.EMPTY, "the empty config")
        manifest = self._put(oci.manifest(kind, layers), "an artifact manifest")
        entry = Entry(
            kind=kind,
            key=key,
            name=name,
            digest=manifest.digest,
            size=manifest.size,
            created=datetime.now(tz=timezone.utc).isoformat(timespec="microseconds"),
            annotations=dict(annotations or {}),
        )
        self._update(lambda entries: [*(item for item in entries if not _same(item, entry)), entry])
        return entry

    def find(self, kind: str, key: str) -> tuple[Entry, ...]:
        """Find the entries of a key, newest first. Their files are not checked here."""
        _, by_key = self._load()
        return tuple(reversed(by_key.get((kind, key), ())))

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """List the entries, oldest first."""
        entries, _ = self._load()
        return tuple(entry for entry in entries if kind is None or entry.kind == kind)

    def files(self, entry: Entry) -> dict[str, Blob]:
        """Map the titles of an entry's files to blobs.

        Raises:
            EnginefarmError: STORE_CORRUPT when the OCI manifest is missing or damaged.

        """
        path = self._path(entry.digest)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise _corrupt(entry, path, str(error)) from error
        if (actual := oci.digest_of(content)) != entry.digest:
            raise _corrupt(entry, path, f"expected {entry.digest}\nactual   {actual}")
        return {
            layer["annotations"][oci.TITLE]: Blob(
                digest=layer["digest"], size=layer["size"], path=self._path(layer["digest"])
            )
            for layer in json.loads(content)["layers"]
        }

    def read(self, entry: Entry, title: str) -> bytes:
        """Read one small file of an entry, its digest checked.

        Raises:
            EnginefarmError: STORE_CORRUPT.
            KeyError: the entry has no file of this title.

        """
        blob = self.files(entry)[title]
        try:
            content = blob.path.read_bytes()
        except OSError as error:
            raise _corrupt(entry, blob.path, str(error)) from error
        if (actual := oci.digest_of(content)) != blob.digest:
            raise _corrupt(entry, blob.path, f"expected {blob.digest}\nactual   {actual}")
        return content

    def check(self, entry: Entry) -> None:
        """Digest every file of an entry anew.

        Raises:
            EnginefarmError: STORE_CORRUPT, with the expected and the actual digest.

        """
        for blob in self.files(entry).values():
            why = _damage(blob)
            if why is not None:
                raise _corrupt(entry, blob.path, why)

    def verify(self) -> tuple[Problem, ...]:
        """Check the whole store.

        Raises:
            EnginefarmError: STORE_FOREIGN, STORE_CORRUPT when the index itself cannot be read.

        """
        with ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0))) as pool:
            found = list(pool.map(self._problems, self.entries()))
        return tuple(problem for problems in found for problem in problems)

    def orphans(self) -> tuple[Path, ...]:
        """List blobs that no entry needs: left by a crash or by removed entries. Harmless."""
        used = {oci.digest_of(oci.EMPTY)}
        for entry in self.entries():
            used |= {entry.digest, *(blob.digest for blob in self.files(entry).values())}
        present = self._blobs.iterdir() if self._blobs.is_dir() else ()
        return tuple(sorted(path for path in present if f"sha256:{path.name}" not in used))

    def remove(self, entry: Entry) -> None:
        """Drop an entry from the index; its blobs stay."""
        self._update(lambda entries: [item for item in entries if not _same(item, entry)])

    def quarantine(self, entry: Entry) -> Path:
        """Set the damaged files of an entry aside and drop it, so that it can be made again. Nothing is deleted."""
        folder = self.root / "quarantine" / f"{datetime.now(tz=timezone.utc):%Y%m%dT%H%M%S%f}-{entry.key[:12]}"
        with durable.writing(str(folder)):
            folder.mkdir(parents=True)
            for path in self._damaged(entry):
                if path.exists():
                    path.replace(folder / path.name)
        self.remove(entry)
        return folder

    def ensure_writable(self) -> None:
        """Make the layout if it is not there.

        Raises:
            EnginefarmError: STORE_READ_ONLY, STORE_FOREIGN, DISK_FULL.

        """
        with durable.writing(str(self.root)):
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._temp.mkdir(exist_ok=True)
            layout = self.root / "oci-layout"
            if not layout.exists():
                durable.write_atomically(self.root / "CACHEDIR.TAG", _CACHEDIR_TAG.encode(), self._temp)
                durable.write_atomically(layout, json.dumps(oci.LAYOUT).encode(), self._temp)
            descriptor, probe = tempfile.mkstemp(prefix="probe-", dir=self._temp)
            os.close(descriptor)
            Path(probe).unlink()
        self._check_layout()

    def _put(self, content: Path | bytes, what: str) -> Blob:
        size = len(content) if isinstance(content, bytes) else content.stat().st_size
        with durable.writing(what, size):
            if isinstance(content, bytes) and (known := self._known(content)) is not None:
                return known
            descriptor, name = tempfile.mkstemp(prefix="blob-", dir=self._temp)
            os.close(descriptor)
            temp = Path(name)
            try:
                digest = self._fill(temp, content)
                path = self._path(digest)
                temp.chmod(0o444)
                temp.replace(path)
            except BaseException:
                temp.unlink(missing_ok=True)
                raise
            durable.sync_folder(self._blobs)
        return Blob(digest=digest, size=size, path=path)

    def _known(self, content: bytes) -> Blob | None:
        blob = Blob(digest=(digest := oci.digest_of(content)), size=len(content), path=self._path(digest))
        return blob if _damage(blob) is None else None

    def _fill(self, temp: Path, content: Path | bytes) -> str:
        if isinstance(content, Path):
            return f"sha256:{durable.copy_hashed(content, temp)}"
        with temp.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        return oci.digest_of(content)

    def _update(self, change: Callable[[list[Entry]], list[Entry]]) -> None:
        with durable.writing(str(self._index_path)), FileLock(self.root / ".lock"):
            self._sweep()
            entries, _ = self._load(fresh=True)
            content = oci.index([_to_descriptor(entry) for entry in change(list(entries))])
            durable.write_atomically(self._index_path, content, self._temp)

    def _sweep(self) -> None:
        limit = time.time() - _STALE_S
        for path in self._temp.iterdir():
            if path.stat().st_mtime < limit:
                path.unlink(missing_ok=True)

    def _load(self, *, fresh: bool = False) -> tuple[tuple[Entry, ...], dict[tuple[str, str], list[Entry]]]:
        try:
            status = self._index_path.stat()
        except FileNotFoundError:
            return (), {}
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        cached = self._read
        if cached is not None and cached[0] == stamp and not fresh:
            return cached[1], cached[2]
        self._check_layout()
        entries = self._parse(self._index_path.read_bytes())
        by_key: dict[tuple[str, str], list[Entry]] = {}
        for entry in entries:
            by_key.setdefault((entry.kind, entry.key), []).append(entry)
        self._read = (stamp, entries, by_key)
        return entries, by_key

    def _parse(self, content: bytes) -> tuple[Entry, ...]:
        try:
            return tuple(_to_entry(item) for item in json.loads(content)["manifests"])
        except (ValueError, KeyError, TypeError) as error:
            raise EnginefarmError(
                Reason.STORE_CORRUPT,
                "the store's index cannot be read",
                where=str(self._index_path),
                why=repr(error),
                fix=f"move {self.root} aside and build again; the files under blobs/ stay usable as evidence",
            ) from error

    def _check_layout(self) -> None:
        layout = self.root / "oci-layout"
        try:
            version = json.loads(layout.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise EnginefarmError(
                Reason.STORE_FOREIGN, f"{self.root} is not an OCI image layout", why=str(error)
            ) from error
        if version != oci.LAYOUT:
            raise EnginefarmError(Reason.STORE_FOREIGN, f"{layout} says {version}, this version knows {oci.LAYOUT}")

    def _path(self, digest: str) -> Path:
        if not _DIGEST.match(digest):
            raise EnginefarmError(Reason.STORE_CORRUPT, f"{digest!r} is not a SHA-256 digest", where=str(self.root))
        return self._blobs / digest.removeprefix("sha256:")

    def _problems(self, entry: Entry) -> list[Problem]:
        try:
            blobs = self.files(entry)
        except EnginefarmError as error:
            return [Problem(entry=entry, what=error.what, why=error.why or "")]
        damage = {title: _damage(blob) for title, blob in blobs.items()}
        return [
            Problem(entry=entry, what=f"{title} of {entry.name} is damaged", why=why)
            for title, why in damage.items()
            if why is not None
        ]

    def _damaged(self, entry: Entry) -> list[Path]:
        try:
            return [blob.path for blob in self.files(entry).values() if _damage(blob) is not None]
        except EnginefarmError:
            return [self._path(entry.digest)]


def _damage(blob: Blob) -> str | None:
    try:
        actual = f"sha256:{durable.sha256_file(blob.path)}"
    except OSError as error:
        return str(error)
    return None if actual == blob.digest else f"expected {blob.digest}\nactual   {actual}"


def _corrupt(entry: Entry, path: Path, why: str) -> EnginefarmError:
    return EnginefarmError(
        Reason.STORE_CORRUPT, f"{entry.name} in the store is not what it claims to be", where=str(path), why=why
    )


def _same(one: Entry, other: Entry) -> bool:
    return (one.kind, one.key, one.name, one.digest) == (other.kind, other.key, other.name, other.digest)


def _to_descriptor(entry: Entry) -> oci.Document:
    annotations = {
        **entry.annotations,
        oci.REF_NAME: entry.name,
        oci.KIND: entry.kind,
        oci.KEY: entry.key,
        oci.CREATED: entry.created,
    }
    document = oci.descriptor(oci.MANIFEST_TYPE, entry.digest, entry.size, annotations)
    return document | {"artifactType": f"application/vnd.enginefarm.{entry.kind}.v1"}


def _to_entry(document: Mapping[str, Any]) -> Entry:
    annotations = dict(document["annotations"])
    name, kind = annotations.pop(oci.REF_NAME), annotations.pop(oci.KIND)
    key, created = annotations.pop(oci.KEY), annotations.pop(oci.CREATED)
    return Entry(
        kind=kind,
        key=key,
        name=name,
        digest=document["digest"],
        size=document["size"],
        created=created,
        annotations=annotations,
    )
