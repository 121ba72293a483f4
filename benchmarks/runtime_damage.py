"""Engines that must be refused: each case damages a copy of a folder and names the reason that has to come."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any, Callable, Dict, List, NamedTuple

HEADER_VERSION = 0x18
LOCAL = {"trust": "local"}


class Damage(NamedTuple):
    """What is done to the folder, how it is loaded, and the slug of the reason."""

    name: str
    reason: str
    do: Callable[[str], None]
    options: Dict[str, Any]


def damages() -> List[Damage]:
    """List the cases."""
    return [
        Damage("engine removed", "file-missing", _remove, LOCAL),
        Damage("one bit flipped", "digest-mismatch", _flip, LOCAL),
        Damage("cut short", "digest-mismatch", _cut, LOCAL),
        Damage("longer than its manifest says", "digest-mismatch", _lengthen, LOCAL),
        Damage("another SM", "sm-mismatch", _other_sm, LOCAL),
        Damage("head of another TensorRT", "engine-header", lambda folder: _version(folder, tell=False), LOCAL),
        Damage("another TensorRT", "tensorrt-version", lambda folder: _version(folder, tell=True), LOCAL),
        Damage("no engine at all", "engine-invalid", _text, LOCAL),
        Damage(
            "another platform",
            "platform-mismatch",
            lambda folder: _edit(folder, "stack", platform="linux/s390x"),
            LOCAL,
        ),
        Damage(
            "code for the host",
            "host-code-refused",
            lambda folder: _edit(folder, "engine", needs_host_code=True),
            LOCAL,
        ),
        Damage(
            "manifest of a newer schema",
            "artifact-too-new",
            lambda folder: _edit(folder, None, schema_version=2),
            LOCAL,
        ),
        Damage("manifest cut short", "manifest-invalid", _cut_manifest, LOCAL),
        Damage("nobody vouches for it", "unsigned", _nothing, {}),
        Damage("signed was another engine", "identity-mismatch", _record, {}),
    ]


def _engine(folder: str) -> str:
    return os.path.join(folder, "model.plan")


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _nothing(folder: str) -> None:
    del folder


def _remove(folder: str) -> None:
    os.remove(_engine(folder))


def _flip(folder: str) -> None:
    content = bytearray(_read(_engine(folder)))
    content[len(content) // 2] ^= 1
    _write(_engine(folder), bytes(content))


def _cut(folder: str) -> None:
    content = _read(_engine(folder))
    _write(_engine(folder), content[: len(content) // 2])


def _lengthen(folder: str) -> None:
    _write(_engine(folder), _read(_engine(folder)) + b"\0")


def _edit(folder: str, part: Any, **fields: Any) -> None:
    path = os.path.join(folder, "manifest.json")
    manifest = json.loads(_read(path).decode())
    (manifest if part is None else manifest[part]).update(fields)
    _write(path, json.dumps(manifest).encode())


def _other_sm(folder: str) -> None:
    _edit(folder, "target", sms=["7.5"])
    _edit(folder, "build", options={"hardware_compatibility": "none", "version_compatible": False})


def _replace(folder: str, content: bytes) -> None:
    """Put another engine there, and say so in the manifest: only what comes after the digest can refuse it."""
    _write(_engine(folder), content)
    _edit(folder, "engine", sha256=hashlib.sha256(content).hexdigest(), size=len(content))


def _version(folder: str, *, tell: bool) -> None:
    content = _read(_engine(folder))
    other = bytes([content[HEADER_VERSION], content[HEADER_VERSION + 1] + 1, 0, 1])
    _replace(folder, content[:HEADER_VERSION] + other + content[HEADER_VERSION + 4 :])
    if tell:
        _edit(folder, "stack", tensorrt=".".join(map(str, other[:3])))


def _text(folder: str) -> None:
    _replace(folder, b"this is no engine" * 100)


def _cut_manifest(folder: str) -> None:
    path = os.path.join(folder, "manifest.json")
    _write(path, _read(path)[:100])


def _record(folder: str) -> None:
    manifest = hashlib.sha256(_read(os.path.join(folder, "manifest.json"))).hexdigest()
    record = {"engine_sha256": "0" * 64, "manifest_sha256": manifest, "signer": "somebody", "reference": "x/y:1"}
    _write(os.path.join(folder, "trust.json"), json.dumps(record).encode())
