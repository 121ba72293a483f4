"""A registry in memory that answers requests without a network, and can be told to fail."""

from __future__ import annotations

import io
import json
import re
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import urllib3
from requests.adapters import HTTPAdapter

from builder import oci

Headers = Mapping[str, str]
_UPLOAD = re.compile(r"/v2/(?P<name>.+)/blobs/uploads/(?P<id>[0-9a-f-]*)")
_BLOB = re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})")
_MANIFEST = re.compile(r"/v2/(?P<name>.+)/manifests/(?P<reference>[^/]+)")
_REFERRERS = re.compile(r"/v2/(?P<name>.+)/referrers/(?P<digest>[^/]+)")
_TAGS = re.compile(r"/v2/(?P<name>.+)/tags/list")


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as the registry saw it."""

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: Headers
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True, kw_only=True)
class Said:
    """An answer. `cut`: bytes of the body that arrive before the connection breaks."""

    status: int
    body: bytes = b""
    headers: Headers = field(default_factory=dict)
    cut: int | None = None


Rule = Callable[[Asked], "Said | Exception | None"]


class FakeRegistry:
    """As many registries as hosts are asked for, with the same content. `rules` may answer first.

    `lists_referrers`: whether it has the API for them. `takes`: bytes of an upload that arrive at once, null: all.
    """

    def __init__(self, *, lists_referrers: bool = False) -> None:
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[str, bytes]] = {}
        self.uploads: dict[str, bytes] = {}
        self.asked: list[Asked] = []
        self.rules: list[Rule] = []
        self.lists_referrers = lists_referrers
        self.lock = threading.RLock()

    def fail(self, pattern: str, *answers: Said | Exception) -> None:
        """Give these answers, one each, to the next requests whose `METHOD path` matches."""
        left = list(answers)

        def rule(asked: Asked) -> Said | Exception | None:
            return left.pop(0) if left and re.search(pattern, str(asked)) else None

        self.rules.append(rule)

    def paths(self, method: str) -> list[str]:
        """List what was asked with a method."""
        return [one.path for one in self.asked if one.method == method]

    def send(self, request: requests.PreparedRequest) -> requests.Response:
        """Answer, as an adapter of requests does."""
        url = urlsplit(str(request.url))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        body, error = self._receive(request)
        asked = Asked(
            method=str(request.method),
            host=url.netloc,
            path=url.path,
            query=query,
            headers={name: str(value) for name, value in request.headers.items()},
            body=body,
        )
        self.asked.append(asked)
        # rules may ask the registry themselves, from other threads
        told = [] if error is not None else self._told(asked)
        with self.lock:
            # what came before a break stays with the upload
            said = told[0] if told else self._answer(asked)
        if isinstance(said, Exception):
            raise said
        if error is not None:
            raise error
        return _response(request, said)

    def _told(self, asked: Asked) -> list[Said | Exception]:
        for rule in list(self.rules):
            told = rule(asked)
            if told is not None:
                return [told]
        return []

    def _receive(self, request: requests.PreparedRequest) -> tuple[bytes, Exception | None]:
        content = b""
        if request.body is None:
            return content, None
        if isinstance(request.body, bytes | str):
            return request.body.encode() if isinstance(request.body, str) else request.body, None
        limit = self.break_after() if request.method == "PATCH" else None
        body: Any = request.body
        for chunk in body:
            content += bytes(chunk)
            if limit is not None and len(content) > limit:
                return content[:limit], requests.ConnectionError("reset by peer")
        assert len(content) == int(request.headers["Content-Length"])
        return content, None

    def break_after(self) -> int | None:
        """Say after how many bytes the next upload breaks; for tests to replace."""
        return None

    def _answer(self, asked: Asked) -> Said:
        if asked.path == "/v2/":
            return Said(status=200)
        for pattern, answer in (
            (_UPLOAD, self._upload),
            (_BLOB, self._blob),
            (_MANIFEST, self._manifest),
            (_REFERRERS, self._referrers),
            (_TAGS, self._tags),
        ):
            match = pattern.fullmatch(asked.path)
            if match is not None:
                return answer(asked, match.groupdict())
        return Said(status=404)

    def _upload(self, asked: Asked, part: dict[str, Any]) -> Said:
        place = f"/v2/{part['name']}/blobs/uploads/"
        if asked.method == "POST":
            digest = asked.query.get("mount", "")
            content = self.blobs.get((asked.query.get("from", ""), digest))
            if content is not None:
                self.blobs[part["name"], digest] = content
                return Said(status=201)
            name = str(uuid.uuid4())
            self.uploads[name] = b""
            return Said(status=202, headers={"Location": f"{place}{name}?state=1"})
        if part["id"] not in self.uploads:
            return Said(status=404)
        return self._go_on(asked, part, place)

    def _go_on(self, asked: Asked, part: dict[str, Any], place: str) -> Said:
        have = self.uploads[part["id"]]
        here = {"Location": f"{place}{part['id']}?state={len(have)}", "Range": f"0-{max(0, len(have) - 1)}"}
        if asked.method == "GET":
            return Said(status=204, headers=here)
        if asked.method == "DELETE":
            del self.uploads[part["id"]]
            return Said(status=204)
        start = asked.headers.get("Content-Range", f"{len(have)}-").partition("-")[0]
        if int(start) != len(have):
            return Said(status=416)
        self.uploads[part["id"]] = have + asked.body
        if asked.method == "PATCH":
            return Said(status=202, headers=here)
        content, digest = self.uploads.pop(part["id"]), asked.query["digest"]
        if oci.digest_of(content) != digest:
            return Said(status=400, body=b"DIGEST_INVALID")
        self.blobs[part["name"], digest] = content
        return Said(status=201)

    def _blob(self, asked: Asked, part: dict[str, Any]) -> Said:
        content = self.blobs.get((part["name"], part["digest"]))
        if content is None:
            return Said(status=404)
        start = asked.headers.get("Range")
        if start is None:
            return Said(status=200, body=content)
        first = int(start.removeprefix("bytes=").rstrip("-"))
        range_ = f"bytes {first}-{len(content) - 1}/{len(content)}"
        return Said(status=206, body=content[first:], headers={"Content-Range": range_})

    def _manifest(self, asked: Asked, part: dict[str, Any]) -> Said:
        if asked.method == "PUT":
            return self._put(asked, part["name"], part["reference"])
        kind, content = self.manifests.get((part["name"], part["reference"]), ("", b""))
        if not kind:
            return Said(status=404)
        headers = {"Content-Type": kind, "Docker-Content-Digest": oci.digest_of(content)}
        return Said(status=200, body=content, headers=headers)

    def _put(self, asked: Asked, name: str, reference: str) -> Said:
        document, kind = json.loads(asked.body), asked.headers["Content-Type"]
        needed = [*document.get("layers", []), *([document["config"]] if "config" in document else [])]
        lacking = [one["digest"] for one in needed if (name, one["digest"]) not in self.blobs]
        lacking += [
            one["digest"] for one in document.get("manifests", []) if (name, one["digest"]) not in self.manifests
        ]
        if lacking:
            return Said(status=400, body=f"MANIFEST_BLOB_UNKNOWN {lacking}".encode())
        digest = oci.digest_of(asked.body)
        self.manifests[name, digest] = self.manifests[name, reference] = (kind, asked.body)
        subject = document.get("subject", {}).get("digest")
        headers = {"Docker-Content-Digest": digest}
        return Said(
            status=201, headers=headers | ({"OCI-Subject": subject} if subject and self.lists_referrers else {})
        )

    def _referrers(self, asked: Asked, part: dict[str, Any]) -> Said:
        if not self.lists_referrers:
            return Said(status=404)
        found = {}
        for (name, reference), (kind, content) in self.manifests.items():
            document = json.loads(content)
            if name == part["name"] and document.get("subject", {}).get("digest") == part["digest"]:
                one = oci.descriptor(kind, oci.digest_of(content), len(content))
                found[reference] = one | {"artifactType": document["artifactType"]}
        listed = [one for reference, one in found.items() if reference.startswith("sha256:")]
        return Said(status=200, body=json.dumps({"manifests": listed}).encode())

    def _tags(self, asked: Asked, part: dict[str, Any]) -> Said:
        tags = sorted(tag for name, tag in self.manifests if name == part["name"] and not tag.startswith("sha256:"))
        return (
            Said(status=200, body=json.dumps({"name": part["name"], "tags": tags}).encode())
            if tags
            else Said(status=404)
        )


class _Cut(io.BytesIO):
    """A body whose connection breaks at its end."""

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        if not count:
            raise ConnectionResetError("reset by peer")
        return count

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        if not content:
            raise ConnectionResetError("reset by peer")
        return content


def _response(request: requests.PreparedRequest, said: Said) -> requests.Response:
    body = b"" if request.method == "HEAD" else said.body
    headers = {"Content-Length": str(len(body))} | dict(said.headers)
    stream: io.BytesIO = io.BytesIO(body) if said.cut is None else _Cut(body[: said.cut])
    raw = urllib3.HTTPResponse(body=stream, headers=headers, status=said.status, preload_content=False)
    raw.reason = "as told"
    response: requests.Response = HTTPAdapter().build_response(request, raw)
    return response


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    """Stand in for all registries; pauses between attempts take no time."""
    registry = FakeRegistry()
    monkeypatch.setattr(HTTPAdapter, "send", lambda self, request, **_: registry.send(request))
    monkeypatch.setattr("builder.registry_retry.Patience.wait", lambda self, pause_s: self._cancel.is_set())
    return registry
