"""The OCI image layout as data: descriptors, manifests and the index. No file is touched here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

LAYOUT = {"imageLayoutVersion": "1.0.0"}
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
TITLE = "org.opencontainers.image.title"
REF_NAME = "org.opencontainers.image.ref.name"
# as much as registries take for a manifest
DOCUMENT_BYTES = 4 << 20
CREATED = "org.opencontainers.image.created"
KIND = "org.enginefarm.kind"
KEY = "org.enginefarm.key"

MEDIA_TYPES = {
    "model.plan": "application/vnd.enginefarm.engine.v1",
    "manifest.json": "application/vnd.enginefarm.manifest.v1+json",
    "key.json": "application/vnd.enginefarm.key.v1+json",
    "proof.json": "application/vnd.enginefarm.key.v1+json",
    "model.onnx": "application/vnd.enginefarm.onnx.v1",
    "timing.cache": "application/vnd.enginefarm.timing-cache.v1",
    "weights.onnx": "application/vnd.enginefarm.weights.v1+onnx",
    "lowered.onnx.data": "application/vnd.enginefarm.weights-data.v1",
}

Document = dict[str, Any]


def digest_of(content: bytes) -> str:
    """Return the OCI digest of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def descriptor(media_type: str, digest: str, size: int, annotations: Mapping[str, str] | None = None) -> Document:
    """Describe a blob."""
    document: Document = {"mediaType": media_type, "digest": digest, "size": size}
    return document | ({"annotations": dict(annotations)} if annotations else {})


def layer(title: str, digest: str, size: int) -> Document:
    """Describe a file of an artifact by its title."""
    media_type = MEDIA_TYPES.get(title, "application/octet-stream")
    return descriptor(media_type, digest, size, {TITLE: title})


def artifact_type(kind: str) -> str:
    """Name the type of an artifact of the farm."""
    return f"application/vnd.enginefarm.{kind}.v1"


def manifest(kind: str, layers: list[Document]) -> bytes:
    """Serialise an artifact manifest without a config of its own."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": artifact_type(kind),
        "config": descriptor(EMPTY_TYPE, digest_of(EMPTY), len(EMPTY)),
        "layers": layers,
    }
    return json.dumps(document, indent=2, sort_keys=True).encode()


def as_json(document: Mapping[str, Any]) -> bytes:
    """Serialise a document for people and programs: indented, keys in order."""
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def referrer(
    subject: Mapping[str, Any], kind: str, title: str, content: bytes, annotations: Mapping[str, str] | None = None
) -> bytes:
    """Serialise the manifest of a document that belongs to another manifest, its subject. `kind`: a media type."""
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": kind,
        "config": descriptor(EMPTY_TYPE, digest_of(EMPTY), len(EMPTY)),
        "layers": [descriptor(kind, digest_of(content), len(content), {TITLE: title})],
        "subject": {name: subject[name] for name in ("mediaType", "digest", "size")},
        **({"annotations": dict(annotations)} if annotations else {}),
    }
    return json.dumps(document, sort_keys=True).encode()


def index(descriptors: list[Document]) -> bytes:
    """Serialise index.json, one descriptor a line: json indents ten times slower than it writes."""
    lines = ",\n".join(json.dumps(one, sort_keys=True) for one in descriptors)
    return f'{{"schemaVersion": 2, "mediaType": "{INDEX_TYPE}", "manifests": [\n{lines}\n]}}\n'.encode()
