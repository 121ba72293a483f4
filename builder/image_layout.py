"""A container image as a folder, the OCI image layout: written blob by blob, each under its digest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from builder import durable, oci
from builder.errors import EnginefarmError, Reason

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
INDEX_TYPES = (oci.INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFEST_TYPES = (oci.MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")


class ImageLayout:
    """An image in a folder. It is complete once `finish` has named its manifest."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def complete(self) -> bool:
        """True once the index is written."""
        return (self.folder / "index.json").is_file()

    def blob(self, digest: str) -> Path:
        """Path of a blob, there or not."""
        algorithm, _, value = digest.partition(":")
        return self.folder / "blobs" / algorithm / value

    def add(self, content: bytes) -> tuple[str, int]:
        """Write a small blob; return its digest and size."""
        digest = oci.digest_of(content)
        path = self.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return digest, len(content)

    def adopt(self, file: Path) -> tuple[str, int]:
        """Move a file in; return its digest and size."""
        digest = f"sha256:{durable.sha256_file(file)}"
        path = self.blob(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = file.stat().st_size
        file.replace(path)
        return digest, size

    def finish(self, digest: str, size: int, media_type: str = oci.MANIFEST_TYPE) -> None:
        """Name the image's manifest."""
        (self.folder / "oci-layout").write_text(json.dumps(oci.LAYOUT), encoding="utf-8")
        (self.folder / "index.json").write_bytes(oci.index([oci.descriptor(media_type, digest, size)]))

    @property
    def digest(self) -> str:
        """Digest of the image's manifest.

        Raises:
            EnginefarmError: IMAGE_INVALID where the folder holds no single image.

        """
        try:
            manifests = json.loads((self.folder / "index.json").read_bytes())["manifests"]
        except (OSError, ValueError, KeyError) as error:
            raise EnginefarmError(Reason.IMAGE_INVALID, f"{self.folder} holds no image", why=repr(error)) from error
        if len(manifests) != 1:
            raise EnginefarmError(Reason.IMAGE_INVALID, f"{self.folder} holds {len(manifests)} images, not one")
        return str(manifests[0]["digest"])

    def read(self, digest: str) -> dict[str, Any]:
        """Read a JSON blob."""
        document: dict[str, Any] = json.loads(self.blob(digest).read_bytes())
        return document

    def manifest(self) -> dict[str, Any]:
        """Read the image's manifest."""
        return self.read(self.digest)

    def config(self) -> dict[str, Any]:
        """Read the image's configuration."""
        return self.read(self.manifest()["config"]["digest"])

    def layers(self) -> Iterator[tuple[str, str, int, Path]]:
        """Yield digest, media type, compressed size and file of each layer, lowest first."""
        for layer in self.manifest()["layers"]:
            yield layer["digest"], layer["mediaType"], int(layer["size"]), self.blob(layer["digest"])


def write_single_layer(
    folder: Path, layer: Path, platform: str, created: str, labels: Mapping[str, str], env: list[str]
) -> ImageLayout:
    """Make an image of one uncompressed layer, which is moved in. `created`: RFC 3339."""
    layout = ImageLayout(folder)
    digest, size = layout.adopt(layer)
    system, _, machine = platform.partition("/")
    config = {
        "architecture": machine,
        "os": system,
        "created": created,
        "config": {"Env": env, "Labels": dict(labels)},
        "rootfs": {"type": "layers", "diff_ids": [digest]},
        "history": [{"created": created, "created_by": "enginefarm"}],
    }
    config_digest, config_size = layout.add(json.dumps(config, sort_keys=True).encode())
    manifest = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST_TYPE,
        "config": oci.descriptor(CONFIG_TYPE, config_digest, config_size),
        "layers": [oci.descriptor(LAYER_TYPE, digest, size)],
    }
    layout.finish(*layout.add(json.dumps(manifest, sort_keys=True).encode()))
    return layout
