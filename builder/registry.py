"""The door to registries: manifests, blobs, referrers and tags of one repository, every digest checked."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import requests

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.events import Listener
from builder.registry_session import Answer, Session, follow
from builder.registry_transfer import UNSURE, Meter, download, upload, upload_bytes

T = TypeVar("T")

"""As much as registries take for a manifest."""

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
_REGISTRY = re.compile(
    r"(?:localhost|[a-zA-Z0-9-]+(?:\.[a-zA-Z0-9-]+)+|\[[0-9a-fA-F:]+\]|[a-zA-Z0-9-]+(?=:))(?::[0-9]+)?"
)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NAME_LENGTH = 255
_ATTEMPTS = 5
_PARALLEL = 4
# of a list that comes in pages, bytes and pages
_MOST_LISTED, _MOST_PAGES = 16 << 20, 2000
_NOT_FOUND = (HTTPStatus.NOT_FOUND,)
# repositories that were never written to, and registries that keep no such list
_NO_LIST = (400, 404, 405, 501)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Something in a registry. `digest` is `sha256:<hex>`; a tag beside it is only told."""

    registry: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def version(self) -> str | None:
        """What to ask for: the digest, else the tag."""
        return self.digest or self.tag

    def __str__(self) -> str:
        """As it is written."""
        tag, digest = f":{self.tag}" if self.tag else "", f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def parse_reference(text: str) -> Reference:
    """Read `REGISTRY/REPOSITORY[:TAG][@sha256:HEX]`. There is no registry that is meant where none is named.

    Raises:
        EnginefarmError: REFERENCE_INVALID.

    """
    name, at, digest = text.partition("@")
    registry, slash, rest = name.partition("/")
    repository, colon, tag = rest.partition(":")
    problem = None
    if "://" in text:
        problem = "the scheme does not belong to the name"
    elif not slash or not _REGISTRY.fullmatch(registry):
        problem = f"{registry!r} is not a registry's host"
    elif not _REPOSITORY.fullmatch(repository) or len(repository) > _NAME_LENGTH:
        problem = f"{repository!r} is not a repository: lower case, digits, and . _ - between them, parts divided by /"
    elif colon and not _TAG.fullmatch(tag):
        problem = f"{tag!r} is not a tag: letters, digits, . _ -, at most 128"
    elif at and not _DIGEST.fullmatch(digest):
        problem = f"{digest!r} is not a digest such as sha256:<64 hexadecimal digits>"
    if problem is not None:
        raise EnginefarmError(Reason.REFERENCE_INVALID, f"{text!r} names nothing in a registry", why=problem)
    return Reference(registry=registry, repository=repository, tag=tag or None, digest=digest or None)


def is_tag(text: str) -> bool:
    """Say whether registries take this for a tag."""
    return _TAG.fullmatch(text) is not None


class Registry:
    """One repository of a registry. Safe for several threads; nothing is sent before the first question.

    Plain HTTP is for this machine, and for others only with `plain_http`. Log-ins are Docker's, credential helpers
    included. Transfers tell of themselves as `StepAdvanced` of `subject`. All methods raise REGISTRY_UNREACHABLE after
    several attempts at what may pass, REGISTRY_REFUSED and INTERRUPTED.
    """

    def __init__(  # where, how, and whom to tell
        self,
        registry: str,
        repository: str,
        *,
        plain_http: bool = False,
        cancel: threading.Event,
        listen: Listener,
        subject: str | None = None,
    ) -> None:
        self.registry = registry
        self.repository = repository
        self.subject = subject or f"{registry}/{repository}"
        self.cancel = cancel
        self._session = Session(registry, plain_http=plain_http, cancel=cancel)
        self._meter = Meter(self.subject, listen)
        self._failed = threading.Event()
        self._keeps_lists = True

    def manifest(self, reference: str, accept: tuple[str, ...]) -> tuple[bytes, oci.Document] | None:
        """Fetch a manifest or an index by tag or digest, with its descriptor; null where there is none.

        Raises:
            EnginefarmError: DOWNLOAD_CORRUPT, SIZE_REFUSED above 4 MiB.

        """
        headers = {"Accept": ", ".join(accept)}
        answer = self._ask("GET", f"manifests/{reference}", headers, allowed=_NOT_FOUND)
        if answer.missing:
            return None
        digest = oci.digest_of(answer.content)
        expected = reference if _DIGEST.fullmatch(reference) else answer.headers.get("Docker-Content-Digest", digest)
        if digest != expected:
            why = f"expected {expected}\nactual   {digest}"
            what = f"{self.registry}/{self.repository} gives another manifest as {reference}"
            raise EnginefarmError(Reason.DOWNLOAD_CORRUPT, what, why=why)
        kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
        return answer.content, oci.descriptor(kind, digest, len(answer.content))

    def resolve(self, reference: str, accept: tuple[str, ...]) -> str | None:
        """Ask for the digest of a manifest or an index under a tag; null where there is none."""
        answer = self._ask("HEAD", f"manifests/{reference}", {"Accept": ", ".join(accept)}, allowed=_NOT_FOUND)
        if answer.missing:
            return None
        digest = answer.headers.get("Docker-Content-Digest", "")
        if not _DIGEST.fullmatch(digest):
            found = self.manifest(reference, accept)
            return None if found is None else str(found[1]["digest"])
        return digest

    def put_manifest(self, reference: str, content: bytes, media_type: str) -> oci.Document:
        """Write a manifest or an index under a tag or its digest; return its descriptor."""
        self._put(reference, content, media_type)
        return oci.descriptor(media_type, oci.digest_of(content), len(content))

    def fetch(self, descriptor: oci.Document, destination: Path) -> None:
        """Stream a blob to a file, which appears whole and checked or not at all.

        An earlier attempt's `destination`.part is taken up. Nothing is flushed to the disk.

        Raises:
            EnginefarmError: DOWNLOAD_CORRUPT, SIZE_REFUSED, ARTIFACT_MISSING, DISK_FULL.

        """
        digest, size = descriptor["digest"], descriptor["size"]
        self._meter.expect(size)
        path = self._path(f"blobs/{digest}")
        download(self._session, path, digest, size, destination, self._meter, self._check_stop)

    def read(self, descriptor: oci.Document) -> bytes:
        """Fetch a small blob into memory.

        Raises:
            EnginefarmError: DOWNLOAD_CORRUPT, SIZE_REFUSED above 4 MiB, ARTIFACT_MISSING.

        """
        digest = descriptor["digest"]
        if not _DIGEST.fullmatch(digest):
            raise EnginefarmError(Reason.ARTIFACT_INVALID, f"{digest!r} is no digest")
        answer = self._ask("GET", f"blobs/{digest}", allowed=_NOT_FOUND)
        if answer.missing:
            raise EnginefarmError(Reason.ARTIFACT_MISSING, f"{self.registry}/{self.repository} lacks {digest}")
        if (actual := oci.digest_of(answer.content)) != digest:
            why = f"expected {digest}\nactual   {actual}"
            raise EnginefarmError(Reason.DOWNLOAD_CORRUPT, "a document came with another digest", why=why)
        return answer.content

    def push(self, content: Path | bytes, digest: str, size: int, *, mount_from: str | None = None) -> bool:
        """Bring a blob to the repository. False: nothing was sent, it is there or could be mounted.

        `mount_from`: a repository of the same registry that may have it.

        Raises:
            EnginefarmError: STORE_CORRUPT where the content has another digest.

        """
        self._check_stop()
        if isinstance(content, bytes) and oci.digest_of(content) != digest:
            raise EnginefarmError(Reason.STORE_CORRUPT, f"content to push does not have the digest {digest}")
        # a registry that was killed while it wrote a blob may fail at it for ever, unless it is sent again
        if self._ask("HEAD", f"blobs/{digest}", allowed=UNSURE).status == HTTPStatus.OK:
            return False
        if mount_from is not None and self._mounted(digest, mount_from):
            return False
        self._meter.expect(size)
        if isinstance(content, bytes):
            upload_bytes(self._session, self.repository, content, digest)
            self._meter.advance(size)
        else:
            upload(self._session, self.repository, content, digest, size, self._meter, self._check_stop)
        return True

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[oci.Document]:
        """List what refers to a manifest, by the registry's own list or by the one kept under a tag."""
        found = self._listed(digest)
        if found is None:
            found = self._tagged(digest)
        return [one for one in found if artifact_type is None or one.get("artifactType") == artifact_type]

    def attach(
        self,
        subject: oci.Document,
        artifact_type: str,
        title: str,
        content: bytes,
        annotations: Mapping[str, str] | None = None,
    ) -> oci.Document:
        """Put a document beside a manifest; return the descriptor of what holds it. Doing it again changes nothing.

        Raises:
            EnginefarmError: INDEX_CONTESTED where the list of referrers is kept under a tag that others keep writing.

        """
        raw = oci.referrer(subject, artifact_type, title, content, annotations)
        entry = oci.descriptor(oci.MANIFEST_TYPE, oci.digest_of(raw), len(raw), annotations)
        entry["artifactType"] = artifact_type
        if any(one.get("digest") == entry["digest"] for one in self.referrers(subject["digest"], artifact_type)):
            return entry
        self.push(oci.EMPTY, oci.digest_of(oci.EMPTY), len(oci.EMPTY))
        self.push(content, oci.digest_of(content), len(content))
        answer = self._put(entry["digest"], raw, oci.MANIFEST_TYPE)
        # a registry that lists referrers itself says so
        if answer.headers.get("OCI-Subject") != subject["digest"]:
            self.ensure_listed(subject["digest"], [entry])
        return entry

    def attached(self, entry: oci.Document) -> bytes:
        """Read the document that a referrer holds.

        Raises:
            EnginefarmError: ARTIFACT_MISSING, ARTIFACT_INVALID, DOWNLOAD_CORRUPT, SIZE_REFUSED above 4 MiB.

        """
        digest = str(entry.get("digest"))
        where = f"{self.registry}/{self.repository}@{digest}"
        found = self.manifest(digest, (oci.MANIFEST_TYPE,)) if _DIGEST.fullmatch(digest) else None
        if found is None:
            raise EnginefarmError(Reason.ARTIFACT_MISSING, f"there is no {where}")
        try:
            (layer,) = json.loads(found[0])["layers"]
            wanted = oci.descriptor("", str(layer["digest"]), int(layer["size"]))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = f"{where} holds no single document"
            raise EnginefarmError(Reason.ARTIFACT_INVALID, what, why=repr(error)) from error
        return self.read(wanted)

    def ensure_listed(self, digest: str, entries: list[oci.Document]) -> None:
        """Where the registry keeps no list of referrers, keep it under a tag; entries of others stay.

        No registry can lock a tag. The list is read again after each writing, and what is missing then is added.

        Raises:
            EnginefarmError: INDEX_CONTESTED.

        """
        tag, wanted = digest.replace(":", "-"), {entry["digest"]: entry for entry in entries}
        if not wanted or self._listed(digest) is not None:
            return
        for _ in range(_ATTEMPTS):
            listed = {entry["digest"]: entry for entry in self._tagged(digest)}
            if wanted.keys() <= listed.keys():
                return
            wanted = listed | wanted
            index = {"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": list(wanted.values())}
            self._put(tag, json.dumps(index, sort_keys=True).encode(), oci.INDEX_TYPE)
        what = f"somebody else keeps writing the list of referrers {tag}"
        raise EnginefarmError(Reason.INDEX_CONTESTED, what, where=f"{self.registry}/{self.repository}")

    def tags(self) -> list[str]:
        """List the tags; none where the repository does not exist."""
        return [tag for tag in self._pages("tags/list?n=1000", "tags", _NO_LIST) or [] if isinstance(tag, str)]

    def together(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Run transfers at the same time and return their results in order; the first failure stops the others."""
        self._failed.clear()

        def run(task: Callable[[], T]) -> T:
            try:
                return task()
            except BaseException:
                self._failed.set()
                raise

        with ThreadPoolExecutor(max_workers=_PARALLEL, thread_name_prefix="registry") as pool:
            try:
                futures = [pool.submit(run, task) for task in tasks]
                wait(futures)
            except BaseException:
                # Ctrl-C in a notebook: nothing goes on behind its back
                self._failed.set()
                raise
        self._failed.clear()
        errors = [error for future in futures if (error := future.exception()) is not None]
        # those that were stopped only say so
        errors.sort(key=lambda error: isinstance(error, EnginefarmError) and error.reason is Reason.INTERRUPTED)
        if errors:
            raise errors[0]
        return [future.result() for future in futures]

    def _check_stop(self) -> None:
        if self.cancel.is_set() or self._failed.is_set():
            raise EnginefarmError(Reason.INTERRUPTED, f"the transfer of {self.subject} was stopped")

    def _mounted(self, digest: str, source: str) -> bool:
        place = self._path(f"blobs/uploads/?mount={digest}&from={source}")
        answer = self._session.ask("POST", place)
        if answer.status == HTTPStatus.CREATED:
            return True
        # it has begun an upload instead, which nobody needs
        if "Location" in answer.headers:
            self._session.ask("DELETE", follow(answer.url, answer.headers["Location"]), allowed=_NO_LIST)
        return False

    def _put(self, reference: str, content: bytes, media_type: str) -> Answer:
        headers = {"Content-Type": media_type}
        answer = self._session.ask("PUT", self._path(f"manifests/{reference}"), headers=headers, body=content)
        digest = oci.digest_of(content)
        if (actual := answer.headers.get("Docker-Content-Digest", digest)) != digest:
            what = f"{self.registry} changed what was written as {reference}"
            raise EnginefarmError(Reason.REGISTRY_REFUSED, what, why=f"expected {digest}\nactual   {actual}")
        return answer

    def _listed(self, digest: str) -> list[Any] | None:
        found = self._pages(f"referrers/{digest}", "manifests", _NO_LIST) if self._keeps_lists else None
        # a registry that keeps such lists has an empty one for what it does not know
        self._keeps_lists = found is not None
        return None if found is None else _described(found)

    def _tagged(self, digest: str) -> list[Any]:
        tag = digest.replace(":", "-")
        answer = self._ask("GET", f"manifests/{tag}", {"Accept": oci.INDEX_TYPE}, allowed=_NOT_FOUND)
        return [] if answer.missing else _described(self._list(answer, "manifests"))

    def _pages(self, path: str, name: str, none: tuple[int, ...]) -> list[Any] | None:
        found: list[Any] = []
        place, left = self._path(path), _MOST_LISTED
        for _ in range(_MOST_PAGES):
            answer = self._session.ask("GET", place, headers={"Accept": oci.INDEX_TYPE}, allowed=none)
            if answer.status in none:
                return None
            found += self._list(answer, name)
            further = requests.utils.parse_header_links(answer.headers.get("Link", ""))
            onward = next((one["url"] for one in further if one.get("rel") == "next"), None)
            if onward is None:
                return found
            place = follow(answer.url, onward)
            if (left := left - len(answer.content)) < 0:
                break
        what = f"{self.registry}/{self.repository} has a list of {name} without end"
        raise EnginefarmError(Reason.SIZE_REFUSED, what, fix="do not use this artifact")

    def _list(self, answer: Answer, name: str) -> list[Any]:
        try:
            # tags of a repository that has lost them all are null
            found = json.loads(answer.content)[name] or []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            found = error
        if not isinstance(found, list):
            what = f"{answer.url.partition('?')[0]} has something else than a list of {name}"
            raise EnginefarmError(Reason.REGISTRY_REFUSED, what, why=repr(found), fix=None)
        return found

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, *, allowed: tuple[int, ...] = ()
    ) -> Answer:
        return self._session.ask(method, self._path(path), headers=headers, allowed=allowed, limit=oci.DOCUMENT_BYTES)

    def _path(self, path: str) -> str:
        return f"{self.repository}/{path}"


def _described(found: list[Any]) -> list[Any]:
    """Leave out what describes nothing: whoever may write to a list must not spoil the rest of it."""
    return [one for one in found if isinstance(one, dict) and isinstance(one.get("digest"), str)]
