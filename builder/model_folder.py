"""One model's repository as a folder, an OCI image layout, with the verbs of a registry: for machines without one.

A folder may come from anywhere. Nothing in it is believed: every byte is compared with the digest that asked for it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from builder import durable, oci
from builder.errors import EnginefarmError, Reason
from builder.store_index import DIGEST

T = TypeVar("T")

_CHUNK = 1 << 20


class ModelFolder:
    """An OCI image layout that holds one model's indexes under their tags, with all that belongs to them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._blobs = root / "blobs" / "sha256"

    def manifest(self, reference: str, accept: tuple[str, ...]) -> tuple[bytes, oci.Document] | None:
        """Read a manifest by tag or digest; null where the folder has none. `accept`: media types that will do.

        Raises:
            EnginefarmError: ARTIFACT_INVALID, DOWNLOAD_CORRUPT, SIZE_REFUSED.

        """
        digest = reference if DIGEST.fullmatch(reference) else self._tagged().get(reference)
        if digest is None:
            return None
        path = self._path(digest)
        if not path.is_file():
            if digest != reference:
                raise self._corrupt(f"{reference} is {digest}, which is not there")
            return None
        content = self._small(path)
        if (actual := oci.digest_of(content)) != digest:
            raise self._corrupt(f"expected {digest}\nactual   {actual}")
        media_type = self._parse(content, str(path)).get("mediaType", oci.MANIFEST_TYPE)
        if media_type not in accept:
            why = f"it is a {media_type}"
            raise EnginefarmError(Reason.ARTIFACT_INVALID, f"{self.root} has something else as {reference}", why=why)
        return content, oci.descriptor(media_type, digest, len(content))

    def fetch(self, descriptor: oci.Document, destination: Path) -> None:
        """Copy a blob; the file appears only if size and digest are as said.

        Raises:
            EnginefarmError: ARTIFACT_MISSING, DOWNLOAD_CORRUPT, SIZE_REFUSED, DISK_FULL.

        """
        digest, size = str(descriptor["digest"]), int(descriptor["size"])
        source, part = self._path(digest), destination.with_name(f"{destination.name}.part")
        if not source.is_file():
            raise EnginefarmError(Reason.ARTIFACT_MISSING, f"{self.root} does not hold {digest}")
        if (there := source.stat().st_size) > size:
            raise EnginefarmError(Reason.SIZE_REFUSED, f"{digest} has {there} bytes, not {size}", where=str(source))
        if there < size:
            raise self._corrupt(f"{digest} has {there} bytes, not {size}")
        try:
            with durable.writing(str(destination), size):
                actual = _copy(source, part, size)
            if actual != digest:
                raise self._corrupt(f"expected {digest}\nactual   {actual}")
            part.replace(destination)
        finally:
            part.unlink(missing_ok=True)

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[oci.Document]:
        """List what is attached to a manifest.

        Raises:
            EnginefarmError: ARTIFACT_INVALID, DOWNLOAD_CORRUPT, SIZE_REFUSED.

        """
        found: dict[str, oci.Document] = {}
        for listed in self._listed():
            path = self._path(listed["digest"])
            if listed.get("mediaType") != oci.MANIFEST_TYPE or not path.is_file():
                continue
            read = self.manifest(listed["digest"], (oci.MANIFEST_TYPE,))
            document = self._parse(read[0], str(path)) if read is not None else {}
            subject, kind = document.get("subject"), document.get("artifactType")
            of_subject = isinstance(subject, dict) and subject.get("digest") == digest
            if read is not None and of_subject and artifact_type in {None, kind}:
                found[listed["digest"]] = read[1] | {"artifactType": kind}
        return list(found.values())

    def tags(self) -> list[str]:
        """List the tags.

        Raises:
            EnginefarmError: ARTIFACT_INVALID, SIZE_REFUSED.

        """
        return sorted(self._tagged())

    def push(self, content: Path | bytes, digest: str, size: int, *, mount_from: str | None = None) -> bool:  # noqa: ARG002 - a registry's verb
        """Put a blob; false where it was there already.

        Raises:
            EnginefarmError: DOWNLOAD_CORRUPT where the content has another digest, DISK_FULL, STORE_READ_ONLY.

        """
        path = self._path(digest)
        if path.is_file() and path.stat().st_size == size and f"sha256:{durable.sha256_file(path)}" == digest:
            return False
        with self._writing(), self._temp() as temp:
            if isinstance(content, bytes):
                temp.write_bytes(content)
                actual = oci.digest_of(content)
            else:
                actual = f"sha256:{durable.copy_hashed(content, temp)}"
            if actual != digest:
                raise self._corrupt(f"expected {digest}\nactual   {actual}")
            temp.chmod(0o644)
            temp.replace(path)
        return True

    def put_manifest(self, reference: str, content: bytes, media_type: str) -> oci.Document:
        """Put a manifest under a tag, or under its digest where others refer to it by that.

        Raises:
            EnginefarmError: DOWNLOAD_CORRUPT, DISK_FULL, STORE_READ_ONLY, ARTIFACT_INVALID.

        """
        digest = oci.digest_of(content)
        if DIGEST.fullmatch(reference) and reference != digest:
            raise self._corrupt(f"expected {reference}\nactual   {digest}")
        self.push(content, digest, len(content))
        described = oci.descriptor(media_type, digest, len(content))
        kind = self._parse(content, digest).get("artifactType")
        listed = described | ({"artifactType": kind} if kind else {})
        # other tools find by its digest only what index.json lists, and so is found what refers to another manifest
        self._list(listed, None if DIGEST.fullmatch(reference) else reference)
        return described

    def ensure_listed(self, digest: str, entries: list[oci.Document]) -> None:
        """Do nothing: what refers to another manifest is listed when it is put."""

    def together(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Run transfers one after the other: one disk gains nothing by more."""
        return [task() for task in tasks]

    def _list(self, described: oci.Document, tag: str | None) -> None:
        with self._writing(), FileLock(self.root / ".lock"):
            listed = self._listed()
            known = [one for one in listed if one["digest"] == described["digest"]]
            if tag is not None:
                bare = [one for one in known if _tag(one) is None]
                listed = [one for one in listed if _tag(one) != tag and one not in bare]
                described = described | {"annotations": {oci.REF_NAME: tag}}
            elif known:
                return
            durable.write_atomically(self.root / "index.json", oci.index([*listed, described]), self.root)

    def _tagged(self) -> dict[str, str]:
        return {tag: one["digest"] for one in self._listed() if (tag := _tag(one)) is not None}

    def _listed(self) -> list[oci.Document]:
        path = self.root / "index.json"
        if not path.is_file():
            return []
        listed = self._parse(self._small(path), str(path)).get("manifests")
        if not isinstance(listed, list) or not all(_describes(one) for one in listed):
            raise EnginefarmError(Reason.ARTIFACT_INVALID, "this is no index of an OCI image layout", where=str(path))
        return listed

    def _small(self, path: Path) -> bytes:
        with path.open("rb") as stream:
            content = stream.read(oci.DOCUMENT_BYTES + 1)
        if len(content) > oci.DOCUMENT_BYTES:
            raise EnginefarmError(
                Reason.SIZE_REFUSED, f"a document has more than {oci.DOCUMENT_BYTES} bytes", where=str(path)
            )
        return content

    def _parse(self, content: bytes, where: str) -> dict[str, Any]:
        try:
            document = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise EnginefarmError(Reason.ARTIFACT_INVALID, "this is not JSON", where=where, why=str(error)) from error
        if not isinstance(document, dict):
            raise EnginefarmError(Reason.ARTIFACT_INVALID, "this is no JSON object", where=where)
        return document

    def _path(self, digest: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise EnginefarmError(Reason.ARTIFACT_INVALID, f"{digest!r} is no SHA-256 digest", where=str(self.root))
        return self._blobs / digest.removeprefix("sha256:")

    def _corrupt(self, why: str) -> EnginefarmError:
        return EnginefarmError(
            Reason.DOWNLOAD_CORRUPT, "a file of the folder is not what it should be", where=str(self.root), why=why
        )

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with durable.writing(str(self.root)):
                self._blobs.mkdir(parents=True, exist_ok=True)
                if not (self.root / "oci-layout").exists():
                    durable.write_atomically(self.root / "oci-layout", json.dumps(oci.LAYOUT).encode(), self.root)
                yield
        except (FileExistsError, NotADirectoryError) as error:
            raise EnginefarmError(Reason.PATH_OCCUPIED, f"{self.root} is no folder", why=str(error)) from error
        except EnginefarmError as error:
            if error.reason is Reason.STORE_READ_ONLY:
                error.fix = "name a folder that you may write to"
            raise

    @contextmanager
    def _temp(self) -> Iterator[Path]:
        descriptor, name = tempfile.mkstemp(prefix=".blob-", dir=self._blobs)
        os.close(descriptor)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


def _copy(source: Path, target: Path, limit: int) -> str:
    digest, left = hashlib.sha256(), limit + 1
    with source.open("rb", buffering=0) as reader, target.open("wb") as writer:
        while left and (chunk := reader.read(min(_CHUNK, left))):
            digest.update(chunk)
            writer.write(chunk)
            left -= len(chunk)
        writer.flush()
        os.fsync(writer.fileno())
    return f"sha256:{digest.hexdigest()}"


def _tag(described: oci.Document) -> str | None:
    tag = (described.get("annotations") or {}).get(oci.REF_NAME)
    return tag if isinstance(tag, str) else None


def _describes(one: object) -> bool:
    annotations = one.get("annotations") if isinstance(one, dict) else None
    return (
        isinstance(one, dict)
        and isinstance(one.get("digest"), str)
        and DIGEST.fullmatch(one["digest"]) is not None
        and (annotations is None or isinstance(annotations, dict))
    )
