"""Pushes images to a registry, with bill of materials and provenance as referrers: the image stays as it is."""

from __future__ import annotations

import ipaddress
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

import oras.provider
import requests
from docker.auth import INDEX_NAME, load_config, resolve_repository_name
from docker.errors import APIError, DockerException

from builder import oci
from builder.docker_engine import docker_errors
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, StepAdvanced, StepFinished, StepStarted
from builder.image_layout import INDEX_TYPES, MANIFEST_TYPES
from builder.image_record import ImageRecord
from builder.images import ImageBuilder
from builder.locks import named_lock
from builder.sbom import bill_of_materials, provenance_statement
from builder.stacks import Stack

SBOM_TYPE = "application/vnd.cyclonedx+json"
PROVENANCE_TYPE = "application/vnd.in-toto+json"
_HUB = "registry-1.docker.io"
_KNOCK_S = (5.0, 15.0)
_ATTEMPTS = 5
_STORE_FIX = 'give Docker the containerd image store ("features": {"containerd-snapshotter": true}), then build again'


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedImage:
    """An image in a registry. `referrers`: kind to digest of what was put beside it."""

    reference: str
    digest: str
    referrers: dict[str, str]


def push_image(builder: ImageBuilder, stack: Stack, repository: str) -> PushedImage:
    """Push the image of a stack; doing it again changes nothing.

    Raises:
        EnginefarmError: IMAGE_MISSING, DOCKER_UNAVAILABLE, PUSH_FAILED, INTERRUPTED.

    """
    record = builder.find(stack)
    if record is None:
        raise EnginefarmError(Reason.IMAGE_MISSING, f"the image of stack {stack.name} is not built")
    tag = record.tag.rpartition(":")[2]
    documents = {
        "sbom": (SBOM_TYPE, "sbom.cdx.json", bill_of_materials(record, stack, builder.bases)),
        "provenance": (PROVENANCE_TYPE, "provenance.intoto.json", provenance_statement(record, stack, builder.bases)),
    }
    with named_lock(builder.home, f"push-{stack.name}", builder.cancel), _step(builder.listen, stack):
        _push(builder, record, repository, tag)
        with _failures(repository):
            remote = _Repository(repository)
            subject = remote.subject(tag, record.digest)
            entries = {kind: remote.attach(subject, *document) for kind, document in documents.items()}
            remote.list_referrers(record.digest, list(entries.values()))
    return PushedImage(
        reference=f"{repository}:{tag}",
        digest=record.digest,
        referrers={kind: entry["digest"] for kind, entry in entries.items()},
    )


def _push(builder: ImageBuilder, record: ImageRecord, repository: str, tag: str) -> None:
    image = builder.engine.image(record.tag)
    if image is None or image.id != record.digest:
        what = f"Docker keeps {record.tag} in a form of its own: a registry would get another digest"
        raise EnginefarmError(Reason.PUSH_FAILED, what, fix=_STORE_FIX)
    what, api = f"{record.tag} could not be pushed to {repository}", builder.engine.client.api
    with docker_errors("pushing an image"):
        try:
            api.tag(record.tag, repository, tag, force=True)
            lines = api.push(repository, tag=tag, stream=True, decode=True)
        except APIError as error:
            raise EnginefarmError(Reason.PUSH_FAILED, what, why=str(error.explanation)) from error
        seen: dict[str, tuple[int, int]] = {}
        problems: list[str] = []
        # to the end, so that the connection can be used again
        for line in lines:
            if builder.cancel.is_set():
                raise EnginefarmError(Reason.INTERRUPTED, "pushing an image was stopped")
            problems += [str(line["error"])] if "error" in line else []
            _advance(builder.listen, record, seen, line)
    if problems:
        raise EnginefarmError(Reason.PUSH_FAILED, what, why="\n".join(problems))


def _advance(listen: Listener, record: ImageRecord, seen: dict[str, tuple[int, int]], line: Mapping[str, Any]) -> None:
    detail = line.get("progressDetail") or {}
    if "current" in detail and "total" in detail:
        seen[line.get("id", "")] = (int(detail["current"]), int(detail["total"]))
        done, total = (sum(figures) for figures in zip(*seen.values(), strict=True))
        listen(StepAdvanced(subject=f"image {record.stack}", done=done, total=total))


class _Repository:
    """One repository of a registry."""

    def __init__(self, name: str) -> None:
        index, path = resolve_repository_name(name)
        host = _HUB if index == INDEX_NAME else index
        plain = _is_loopback(host)
        base = f"{'http' if plain else 'https'}://{host}/v2/"
        self._url, self._lists = f"{base}{path}/", True
        kind = _challenge(base, plain=plain)
        self._registry = oras.provider.Registry(host, insecure=plain, auth_backend=kind)
        # a proxy is for the world outside
        self._registry.session.trust_env = not plain
        login = load_config().resolve_authconfig(index)
        if login is not None and login.get("username"):
            self._registry.auth.set_basic_auth(login["username"], login["password"])
        elif kind == "basic":
            raise EnginefarmError(Reason.PUSH_FAILED, f"nobody is logged in to {index}", fix=f"docker login {index}")

    def subject(self, tag: str, expected: str) -> oci.Document:
        """Describe the manifest under a tag, which must be the expected one."""
        response = self._ask("GET", f"manifests/{tag}", {"Accept": ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))})
        digest = oci.digest_of(response.content)
        if digest != expected:
            why = f"expected {expected}\nactual   {digest}"
            raise EnginefarmError(Reason.PUSH_FAILED, f"{self._url} has another image as {tag}", why=why)
        kind = response.headers["Content-Type"].partition(";")[0]
        return oci.descriptor(kind, digest, len(response.content))

    def attach(self, subject: oci.Document, kind: str, title: str, document: oci.Document) -> oci.Document:
        """Put a document beside an image; return the descriptor of its manifest."""
        content = json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
        manifest = {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST_TYPE,
            "artifactType": kind,
            "config": oci.descriptor(oci.EMPTY_TYPE, self._blob(oci.EMPTY), len(oci.EMPTY)),
            "layers": [oci.descriptor(kind, self._blob(content), len(content), {oci.TITLE: title})],
            "subject": subject,
        }
        raw = json.dumps(manifest, sort_keys=True).encode()
        digest = oci.digest_of(raw)
        headers = {"Content-Type": oci.MANIFEST_TYPE}
        response = self._ask("PUT", f"manifests/{digest}", headers, raw)
        # a registry that lists referrers itself says so
        self._lists = self._lists and response.headers.get("OCI-Subject") == subject["digest"]
        return oci.descriptor(oci.MANIFEST_TYPE, digest, len(raw)) | {"artifactType": kind}

    def list_referrers(self, digest: str, entries: list[oci.Document]) -> None:
        """Where the registry keeps no list of referrers, keep it under a tag; entries of others stay.

        No registry can lock a tag. The list is read again after each writing, and what is missing then is added.
        """
        if self._lists:
            return
        tag, wanted = digest.replace(":", "-"), {entry["digest"]: entry for entry in entries}
        for _ in range(_ATTEMPTS):
            index = self._index(tag)
            listed = {entry["digest"]: entry for entry in index["manifests"]}
            if wanted.keys() <= listed.keys():
                return
            wanted = listed | wanted
            index["manifests"] = list(wanted.values())
            raw = json.dumps(index, sort_keys=True).encode()
            self._ask("PUT", f"manifests/{tag}", {"Content-Type": oci.INDEX_TYPE}, raw)
        raise EnginefarmError(Reason.PUSH_FAILED, f"somebody else keeps writing the list of referrers {tag}")

    def _index(self, tag: str) -> oci.Document:
        response = self._ask("GET", f"manifests/{tag}", {"Accept": oci.INDEX_TYPE}, missing=True)
        if response.status_code == requests.codes.not_found:
            return {"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": []}
        index: oci.Document = response.json()
        if "manifests" not in index:
            raise EnginefarmError(Reason.PUSH_FAILED, f"{self._url} has something else as {tag}, no list of referrers")
        return index

    def _blob(self, content: bytes) -> str:
        digest = oci.digest_of(content)
        if self._ask("HEAD", f"blobs/{digest}", {}, missing=True).status_code == requests.codes.ok:
            return digest
        begun = self._ask("POST", "blobs/uploads/", {})
        place = urljoin(begun.url, begun.headers["Location"])
        headers = {"Content-Type": "application/octet-stream"}
        self._ask("PUT", f"{place}{'&' if urlsplit(place).query else '?'}digest={digest}", headers, content)
        return digest

    def _ask(
        self, method: str, path: str, headers: Mapping[str, str], data: bytes | None = None, *, missing: bool = False
    ) -> requests.Response:
        url = urljoin(self._url, path)
        response: requests.Response = self._registry.do_request(url, method, data=data, headers=dict(headers))
        if response.status_code == requests.codes.unauthorized:
            # the token that was given for reading does not do for writing, and the library keeps it
            self._registry.auth.token = None
            response = self._registry.do_request(url, method, data=data, headers=dict(headers))
        if response.ok or (missing and response.status_code == requests.codes.not_found):
            return response
        why = f"{method} {url}: {response.status_code} {response.reason}\n{response.text[:500]}".rstrip()
        raise EnginefarmError(Reason.PUSH_FAILED, "the registry refused", why=why)


def _challenge(base: str, *, plain: bool) -> str:
    """Knock, and learn how to log in; the library tries for minutes where nobody is."""
    with requests.Session() as session:
        session.trust_env = not plain
        response = session.get(base, timeout=_KNOCK_S)
    return "basic" if response.headers.get("Www-Authenticate", "").lower().startswith("basic") else "token"


def _is_loopback(host: str) -> bool:
    name = urlsplit(f"//{host}").hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


@contextmanager
def _failures(repository: str) -> Iterator[None]:
    try:
        yield
    except (requests.RequestException, DockerException, ValueError, KeyError) as error:
        what = f"{repository} did not take what belongs to the image"
        raise EnginefarmError(Reason.PUSH_FAILED, what, why=str(error) or repr(error)) from error


@contextmanager
def _step(listen: Listener, stack: Stack) -> Iterator[None]:
    subject, started, ok = f"image {stack.name}", time.monotonic(), False
    listen(StepStarted(subject=subject, step="push", expected_s=None))
    try:
        yield
        ok = True
    finally:
        listen(StepFinished(subject=subject, step="push", seconds=time.monotonic() - started, ok=ok))
