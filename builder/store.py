"""The store: a content-addressed OCI image layout. Written atomically, read without a lock, checked by digest."""

from __future__ import annotations

import json
import os
import tempfile
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from builder import durable, oci
from builder.errors import EnginefarmError, Reason
from builder.store_index import DIGEST, Entry, IndexFile, check_layout

__all__ = ["Blob", "Entry", "Problem", "Store"]

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
class Problem:
    """Something wrong in the store. `entry` is null for damage that belongs to no single entry."""

    entry: Entry | None
    what: str
    why: str


class Store:
    """A folder that is an OCI image layout. Nothing is created before the first write."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._index = IndexFile(root)
        self._blobs = root / "blobs" / "sha256"
        self._temp = root / "tmp"

    def add(
        self,
        *,
        kind: str,
        key: str,
        name: str,
        files: Mapping[str, Path | bytes | Blob],
        annotations: Mapping[str, str] | None = None,
    ) -> Entry:
        """Store an artifact: blobs first, the index last. The newest entry of a kind and key is the one found first.

        A file given as `Blob` was compared with its digest a moment ago, and nobody writes to it any more: where that
        can be, it gets a second name in the store and is not copied.

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
        blobs = [manifest.digest, *(one["digest"] for one in layers)]
        try:
            self._index.update(lambda entries: self._with(entries, entry, blobs), self._temp)
        except FileNotFoundError:
            # a sweep took a blob that was known, and not needed until now
            return self.add(kind=kind, key=key, name=name, files=files, annotations=annotations)
        return entry

    def find(self, kind: str, key: str) -> tuple[Entry, ...]:
        """Find the entries of a key, newest first. Their files are not checked here."""
        return tuple(reversed(self._index.load().by_key.get((kind, key), ())))

    def entries(self, kind: str | None = None) -> tuple[Entry, ...]:
        """List the entries, oldest first."""
        return tuple(entry for entry in self._index.load().entries if kind is None or entry.kind == kind)

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
        try:
            layers = json.loads(content)["layers"]
            blobs = [Blob(digest=one["digest"], size=one["size"], path=self._path(one["digest"])) for one in layers]
            return dict(zip((one["annotations"][oci.TITLE] for one in layers), blobs, strict=True))
        except (ValueError, KeyError, TypeError) as error:
            raise _corrupt(entry, path, f"not a manifest of this farm: {error!r}") from error

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
        """List blobs that nothing in the index needs: left by a crash or by removed entries. Harmless.

        Raises:
            EnginefarmError: STORE_CORRUPT where an entry's files cannot be told.

        """
        used = {oci.digest_of(oci.EMPTY)}
        for entry in self.entries():
            used |= {entry.digest, *(blob.digest for blob in self.files(entry).values())}
        # what other tools added is walked by the digests that its documents mention
        left = [document["digest"] for document in self._index.load().foreign]
        while left:
            used.add(digest := left.pop())
            left += [one for one in self._mentioned(digest) if one not in used]
        present = {f"sha256:{path.name}": path for path in self._blobs.glob("*")}
        return tuple(
            sorted(path for digest, path in present.items() if digest not in used and DIGEST.fullmatch(digest))
        )

    def sweep(self, unused_s: float, *, dry_run: bool = False) -> int:
        """Delete blobs that no entry needs and that were not written or asked for lately; return their bytes.

        Raises:
            EnginefarmError: as `orphans`, STORE_READ_ONLY.

        """
        # a lost index is no sign that nothing is needed
        if not self._blobs.is_dir() or not (self.root / "index.json").is_file():
            return 0
        freed, limit = 0, time.time() - unused_s
        with self._index.locked(), durable.writing(str(self._blobs)):
            for path in self.orphans():
                status = path.stat()
                if status.st_mtime <= limit:
                    freed += status.st_size
                    if not dry_run:
                        path.unlink()
        return freed

    def touch(self, entry: Entry) -> None:
        """Note that an entry is used now; a store that cannot be written keeps no note."""
        with suppress(OSError):
            os.utime(self._path(entry.digest))

    def used(self, entry: Entry) -> float:
        """When an entry was last used, in seconds since 1970; 0 if its files are gone."""
        try:
            return self._path(entry.digest).stat().st_mtime
        except OSError:
            return 0.0

    def size(self, entry: Entry) -> int:
        """Bytes of an entry's files; 0 where they cannot be told."""
        try:
            return entry.size + sum(blob.size for blob in self.files(entry).values())
        except EnginefarmError:
            return 0

    def remove(self, entry: Entry) -> None:
        """Drop an entry from the index; its blobs stay."""
        self._index.update(lambda entries: [item for item in entries if not item.same_as(entry)], self._temp)

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

    def intact(self, entry: Entry) -> bool:
        """Say whether an entry's files have their digests; a damaged entry is set aside, so that it is made again.

        Raises:
            EnginefarmError: STORE_READ_ONLY, DISK_FULL where it cannot be set aside.

        """
        try:
            self.check(entry)
        except EnginefarmError as error:
            if error.reason is not Reason.STORE_CORRUPT:
                raise
            self.quarantine(entry)
            return False
        return True

    def ensure_writable(self) -> None:
        """Make the layout if it is not there.

        Raises:
            EnginefarmError: STORE_READ_ONLY, STORE_FOREIGN, DISK_FULL.

        """
        try:
            with durable.writing(str(self.root)):
                self._make_layout()
                descriptor, probe = tempfile.mkstemp(prefix="probe-", dir=self._temp)
                os.close(descriptor)
                Path(probe).unlink()
        except (FileExistsError, NotADirectoryError) as error:
            raise EnginefarmError(Reason.STORE_FOREIGN, f"{self.root} is no folder", why=str(error)) from error
        check_layout(self.root)

    def _make_layout(self) -> None:
        self._blobs.mkdir(parents=True, exist_ok=True)
        self._temp.mkdir(exist_ok=True)
        layout = self.root / "oci-layout"
        if not layout.exists():
            durable.sync_folder(self._blobs.parent)
            durable.write_atomically(self.root / "CACHEDIR.TAG", _CACHEDIR_TAG.encode(), self._temp)
            durable.write_atomically(layout, json.dumps(oci.LAYOUT).encode(), self._temp)

    def _put(self, content: Path | bytes | Blob, what: str) -> Blob:
        if isinstance(content, Blob) and (adopted := self._adopt(content)) is not None:
            return adopted
        content = content.path if isinstance(content, Blob) else content
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
        return Blob(digest=digest, size=path.stat().st_size, path=path)

    def _adopt(self, blob: Blob) -> Blob | None:
        """Give a checked file a name in the store; null where files cannot have two."""
        path, temp = self._path(blob.digest), self._temp / f"blob-{uuid.uuid4().hex}"
        try:
            os.link(blob.path, temp)
        except OSError:
            return None
        with durable.writing(str(path), blob.size):
            durable.sync_file(temp)
            temp.chmod(0o444)
            # two names of one file: the rename leaves both
            temp.replace(path)
            temp.unlink(missing_ok=True)
            durable.sync_folder(self._blobs)
        return Blob(digest=blob.digest, size=blob.size, path=path)

    def _known(self, content: bytes) -> Blob | None:
        blob = Blob(digest=(digest := oci.digest_of(content)), size=len(content), path=self._path(digest))
        if _damage(blob) is not None:
            return None
        with suppress(OSError):
            os.utime(blob.path)
        return blob

    def _with(self, entries: tuple[Entry, ...], entry: Entry, blobs: list[str]) -> list[Entry]:
        for digest in blobs:
            self._path(digest).stat()
        return [*(item for item in entries if not item.same_as(entry)), entry]

    def _fill(self, temp: Path, content: Path | bytes) -> str:
        if isinstance(content, Path):
            return f"sha256:{durable.copy_hashed(content, temp)}"
        with temp.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        return oci.digest_of(content)

    def _path(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise EnginefarmError(Reason.STORE_CORRUPT, f"{digest!r} is not a SHA-256 digest", where=str(self.root))
        return self._blobs / digest.removeprefix("sha256:")

    def _mentioned(self, digest: str) -> list[str]:
        path = self._path(digest)
        is_document = path.is_file() and path.stat().st_size <= oci.DOCUMENT_BYTES
        return DIGEST.findall(path.read_text(encoding="utf-8", errors="replace")) if is_document else []

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
    if actual != blob.digest:
        return f"expected {blob.digest}\nactual   {actual}"
    size = blob.path.stat().st_size
    return None if size == blob.size else f"expected {blob.size} bytes\nactual   {size} bytes"


def _corrupt(entry: Entry, path: Path, why: str) -> EnginefarmError:
    return EnginefarmError(
        Reason.STORE_CORRUPT, f"{entry.name} in the store is not what it claims to be", where=str(path), why=why
    )
