"""Pulls a base image by digest from a registry into an OCI layout, blob by blob, each checked."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import oras.provider
import requests
from oras.container import Container

from builder import durable, oci
from builder.bases import Base
from builder.errors import EnginefarmError, Reason
from builder.fetch import OnBytes
from builder.image_layout import INDEX_TYPES, MANIFEST_TYPES, ImageLayout

_CHUNK = 1 << 20
_KNOCK_S = (5.0, 15.0)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_DOCKER_HUB = {"docker.io": "registry-1.docker.io"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """Where images come from instead. `registry`: host and optional path that stand for every registry's host."""

    registry: str | None = None
    ca_file: Path | None = None


class BasePull:
    """One pull. Blobs that an earlier attempt has fetched are not fetched again."""

    def __init__(
        self, base: Base, platform: str, mirror: Mirror, cancel: threading.Event, on_bytes: OnBytes | None
    ) -> None:
        self._base = base
        self._platform = platform
        self._cancel = cancel
        self._on_bytes = on_bytes
        self._container = Container(_where(base.ref, mirror))
        host = str(self._container.registry)
        plain = host.rsplit(":", 1)[0] in _LOOPBACK
        self._verify: bool | str = str(mirror.ca_file) if mirror.ca_file else True
        self._registry = oras.provider.Registry(host, insecure=plain, tls_verify=self._verify)
        self._registry.auth.load_configs(self._container)

    def into(self, layout: ImageLayout) -> None:
        """Fetch manifest, configuration and layers.

        Raises:
            EnginefarmError: BASE_UNAVAILABLE, DIGEST_MISMATCH, DISK_FULL, INTERRUPTED.

        """
        try:
            self._knock()
            digest, manifest = self._manifest(layout)
            blobs = [manifest["config"], *manifest["layers"]]
            total, done = sum(int(blob["size"]) for blob in blobs), 0
            for blob in blobs:
                self._blob(layout, blob["digest"], done, total)
                done += int(blob["size"])
        except requests.RequestException as error:
            raise self._unavailable(str(error)) from error
        layout.finish(digest, layout.blob(digest).stat().st_size, manifest.get("mediaType", oci.MANIFEST_TYPE))

    def _knock(self) -> None:
        # the library tries for minutes where nobody is
        url = f"{self._registry.prefix}://{self._container.registry}/v2/"
        self._registry.session.get(url, timeout=_KNOCK_S, verify=self._verify).close()

    def _manifest(self, layout: ImageLayout) -> tuple[str, dict[str, Any]]:
        digest = self._base.digest
        document = self._document(layout, digest)
        if document.get("mediaType") in INDEX_TYPES or "manifests" in document:
            digest = self._of_platform(document)
            document = self._document(layout, digest)
        return digest, document

    def _document(self, layout: ImageLayout, digest: str) -> dict[str, Any]:
        url = f"{self._registry.prefix}://{self._container.manifest_url(digest)}"
        content = self._ask(url, {"Accept": ", ".join((*INDEX_TYPES, *MANIFEST_TYPES))}).content
        if oci.digest_of(content) != digest:
            why = f"expected {digest}\nactual   {oci.digest_of(content)}"
            raise EnginefarmError(Reason.DIGEST_MISMATCH, f"the registry gave another {self._base.ref}", why=why)
        layout.add(content)
        document: dict[str, Any] = json.loads(content)
        return document

    def _of_platform(self, index: dict[str, Any]) -> str:
        system, _, machine = self._platform.partition("/")
        for entry in index["manifests"]:
            platform = entry.get("platform", {})
            if platform.get("os") == system and platform.get("architecture") == machine:
                return str(entry["digest"])
        raise self._unavailable(f"its index has no {self._platform}")

    def _blob(self, layout: ImageLayout, digest: str, before: int, total: int) -> None:
        path = layout.blob(digest)
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        url = f"{self._registry.prefix}://{self._container.get_blob_url(digest)}"
        temp = path.with_suffix(".part")
        with self._ask(url, {}) as response, durable.writing(digest), temp.open("wb") as out:
            for chunk in response.iter_content(_CHUNK):
                if self._cancel.is_set():
                    raise EnginefarmError(Reason.INTERRUPTED, "pulling a base was stopped")
                out.write(chunk)
                before += len(chunk)
                if self._on_bytes is not None:
                    self._on_bytes(before, total)
        actual = f"sha256:{durable.sha256_file(temp)}"
        if actual != digest:
            temp.unlink()
            why = f"expected {digest}\nactual   {actual}"
            raise EnginefarmError(
                Reason.DIGEST_MISMATCH, f"the registry gave another blob of {self._base.ref}", why=why
            )
        temp.replace(path)

    def _ask(self, url: str, headers: dict[str, str]) -> requests.Response:
        response: requests.Response = self._registry.do_request(url, "GET", headers=headers, stream=True)
        if response.status_code != requests.codes.ok:
            raise self._unavailable(f"{url}: {response.status_code} {response.reason}")
        return response

    def _unavailable(self, why: str) -> EnginefarmError:
        return EnginefarmError(Reason.BASE_UNAVAILABLE, f"base {self._base.pinned} could not be pulled", why=why)


def _where(ref: str, mirror: Mirror) -> str:
    """Name the repository to pull from, without a tag."""
    host, _, rest = ref.rpartition(":")[0].partition("/")
    return f"{mirror.registry.rstrip('/')}/{rest}" if mirror.registry else f"{_DOCKER_HUB.get(host, host)}/{rest}"
