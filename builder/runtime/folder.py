"""An engine's folder, read and checked before TensorRT sees a byte: digests, trust record, manifest, header.

What is hashed is what is deserialized: the file is read once.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shlex
import stat
import tempfile
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple

from builder.engine_header import BYTES_NEEDED, Header, read_header

from .reasons import EngineRefused

ENGINE, MANIFEST, TRUST = "model.plan", "manifest.json", "trust.json"
WEIGHTS, WEIGHTS_DATA = "weights.onnx", "lowered.onnx.data"
SCHEMA_VERSION = 1
# a manifest or a trust record larger than this is none
LARGEST_JSON = 64 << 20
LOCAL = "local"


class File(NamedTuple):
    """A file beside an engine, as the manifest tells it."""

    sha256: str
    size: int


class Facts(NamedTuple):
    """What a manifest says that loading depends on. `job` is for messages.

    `stripped`: the engine was built without its weights; `weights`: the files that have them, by name.
    """

    job: str
    sha256: str
    size: int
    tensorrt: str
    sms: Tuple[str, ...]
    platform: str
    hardware_compatibility: str
    version_compatible: bool
    host_code: bool
    stripped: bool = False
    weights: Mapping[str, File] = MappingProxyType({})


class Checked(NamedTuple):
    """An engine whose file is what it should be. `facts` is None for a bare file without a manifest.

    `weights`: content of the ONNX file that has the weights of an engine built without them; empty for any other.
    """

    path: str
    content: bytes
    header: Header
    facts: Optional[Facts]
    weights: bytes = b""


def read_engine(path: str, *, trust: Optional[str] = None, allow_untrusted: bool = False) -> Checked:
    """Read an engine and everything beside it that says what it is.

    Raises:
        EngineRefused: file-missing, unsigned, manifest-invalid, artifact-too-new, digest-mismatch, identity-mismatch,
            engine-header or engine-invalid.

    """
    try:
        return _read_engine(path, trust, allow_untrusted=allow_untrusted)
    except OSError as error:
        raise EngineRefused("file-missing", f"{path} cannot be read", why=str(error)) from error


def _read_engine(path: str, trust: Optional[str], *, allow_untrusted: bool) -> Checked:
    folder, name = (path, ENGINE) if os.path.isdir(path) else os.path.split(path)
    engine, manifest = os.path.join(folder, name), os.path.join(folder, MANIFEST)
    bare = not os.path.isfile(manifest) or name != ENGINE
    if not os.path.isfile(engine):
        raise EngineRefused("file-missing", f"there is no engine {engine}", fix="pull or export it")
    if bare and not allow_untrusted:
        what = f"{engine} has no manifest beside it, so nothing says what it is"
        raise EngineRefused("unsigned", what, fix="pull it, or name a folder that `enginefarm export` wrote")
    if bare:
        # gigabytes of something else are not worth reading
        _head(engine, _read(engine, BYTES_NEEDED))
        return _checked(engine, _read(engine, None), None)
    text = _read(manifest, LARGEST_JSON)
    facts = _facts(text, manifest)
    record = _record(os.path.join(folder, TRUST))
    if record is None and not allow_untrusted:
        _refuse_untrusted(folder, trust)
    size = os.path.getsize(engine)
    if size != facts.size:
        why = f"the manifest says {facts.size} bytes, the file has {size}"
        raise EngineRefused("digest-mismatch", f"{engine} is not what its manifest says", why=why, fix=_AGAIN)
    content = _read(engine, facts.size)
    actual = hashlib.sha256(content).hexdigest()
    if record is not None:
        _compare(record, "engine_sha256", actual, engine)
        _compare(record, "manifest_sha256", hashlib.sha256(text).hexdigest(), manifest)
    if actual != facts.sha256:
        why = f"expected {facts.sha256}\nactual   {actual}"
        raise EngineRefused("digest-mismatch", f"{engine} is not what its manifest says", why=why, fix=_AGAIN)
    return _checked(engine, content, facts)._replace(weights=_read_weights(folder, facts))


def _read_weights(folder: str, facts: Facts) -> bytes:
    if not facts.stripped:
        return b""
    if WEIGHTS not in facts.weights:
        what = f"{facts.job} was built without its weights, and its manifest does not say what they are"
        raise EngineRefused("file-missing", what, fix="build it again, or without build.strip_weights")
    path = os.path.join(folder, WEIGHTS)
    content = _read(path, facts.weights[WEIGHTS].size)
    _check(path, hashlib.sha256(content).hexdigest(), facts.weights[WEIGHTS])
    return content


@contextmanager
def weights_place(checked: Checked) -> Iterator[str]:
    """Name a path that the engine's weights can be read from as if they lay there; empty if they are in one file.

    What does not fit into an ONNX file TensorRT reads by itself: from a copy that only this user can change, whose
    digest is that of the bytes that were written.

    Raises:
        EngineRefused: file-missing, digest-mismatch, disk-full.

    """
    if checked.facts is None or WEIGHTS_DATA not in checked.facts.weights:
        yield ""
        return
    source = os.path.join(os.path.dirname(checked.path), WEIGHTS_DATA)
    with tempfile.TemporaryDirectory(prefix="enginefarm-weights-") as private:
        try:
            digest = _copy(source, os.path.join(private, WEIGHTS_DATA))
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            what = f"there is no room for {source} in {private}" if full else f"{source} cannot be read"
            fix = "let TMPDIR name a folder with room" if full else _AGAIN
            raise EngineRefused("disk-full" if full else "file-missing", what, why=str(error), fix=fix) from error
        _check(source, digest, checked.facts.weights[WEIGHTS_DATA])
        yield os.path.join(private, WEIGHTS)


def _copy(source: str, target: str) -> str:
    digest = hashlib.sha256()
    with open(source, "rb") as read, open(target, "wb") as write:
        for chunk in iter(lambda: read.read(_CHUNK), b""):
            digest.update(chunk)
            write.write(chunk)
    return digest.hexdigest()


def _check(path: str, actual: str, wanted: File) -> None:
    if actual != wanted.sha256:
        why = f"expected {wanted.sha256}\nactual   {actual}"
        raise EngineRefused("digest-mismatch", f"{path} is not what the manifest says", why=why, fix=_AGAIN)


_AGAIN = "pull or export it again"
_CHUNK = 1 << 20


def _head(path: str, content: bytes) -> Header:
    header = read_header(content[:BYTES_NEEDED])
    if header.kind is None or header.version is None:
        what = f"{os.path.basename(path)} is no engine of TensorRT"
        raise EngineRefused("engine-invalid", what, why="it does not begin as one", fix=_AGAIN)
    return header


def _checked(path: str, content: bytes, facts: Optional[Facts]) -> Checked:
    header = _head(path, content)
    if facts is not None and _release(str(header.version)) != _release(facts.tensorrt):
        why = f"its head says TensorRT {header.version}, the manifest {facts.tensorrt}"
        raise EngineRefused("engine-header", f"{path} is of another TensorRT than its manifest says", why=why)
    return Checked(path, content, header, facts)


def _release(version: str) -> str:
    return ".".join(version.split(".")[:3])


def _read(path: str, most: Optional[int]) -> bytes:
    with open(path, "rb") as file:
        return file.read() if most is None else file.read(most + 1)


def _document(text: bytes, path: str) -> Dict[str, Any]:
    try:
        document = json.loads(text.decode("utf-8")) if len(text) <= LARGEST_JSON else None
    except (ValueError, RecursionError) as error:
        raise EngineRefused("manifest-invalid", f"{path} is not readable", why=str(error), fix=_AGAIN) from error
    if not isinstance(document, dict):
        raise EngineRefused("manifest-invalid", f"{path} is not readable", why="it is no JSON object", fix=_AGAIN)
    return document


def _facts(text: bytes, path: str) -> Facts:
    document = _document(text, path)
    version = document.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        what = f"{path} is of schema version {version}, this is a runtime for {SCHEMA_VERSION}"
        raise EngineRefused("artifact-too-new", what, fix="update enginefarm")
    if type(version) is not int or version != SCHEMA_VERSION:
        what = f"{path} is not an engine's manifest"
        raise EngineRefused("manifest-invalid", what, why=f"its schema version is {version!r}", fix=_AGAIN)
    try:
        engine, stack, options = document["engine"], document["stack"], document["build"]["options"]
        return Facts(
            job=str(document["job"]),
            sha256=str(engine["sha256"]),
            size=int(engine["size"]),
            tensorrt=str(stack["tensorrt"]),
            sms=tuple(str(sm) for sm in document["target"]["sms"]),
            platform=str(stack["platform"]),
            hardware_compatibility=str(options["hardware_compatibility"]),
            # unclear is unsafe: what is no plain False counts as code that would run
            version_compatible=options["version_compatible"] is True,
            host_code=engine["needs_host_code"] is not False,
            stripped=options.get("strip_weights", False) is not False,
            weights={str(one["file"]): File(str(one["sha256"]), int(one["size"])) for one in engine.get("weights", ())},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = f"{type(error).__name__}: {error}"
        raise EngineRefused("manifest-invalid", f"{path} is not an engine's manifest", why=why, fix=_AGAIN) from error


def _record(path: str) -> Optional[Dict[str, Any]]:
    if not os.path.lexists(path):
        return None
    if os.path.exists(path) and not os.path.isfile(path):
        # a pipe would never end
        raise EngineRefused("manifest-invalid", f"{path} is no file", fix=_AGAIN)
    return _document(_read(path, LARGEST_JSON), path)


def _refuse_untrusted(folder: str, trust: Optional[str]) -> None:
    if trust != LOCAL:
        what = f"nobody vouches for the engine in {folder}: there is no {TRUST}"
        fix = 'pull it, or load it with trust="local" if this machine built or exported it'
        raise EngineRefused("unsigned", what, fix=fix)
    for name in ("", ENGINE, MANIFEST):
        path = os.path.join(folder, name)
        if os.stat(path).st_mode & stat.S_IWOTH:
            what = f"{path} can be changed by every user, so it is nobody's"
            raise EngineRefused("unsigned", what, fix=f"chmod o-w {shlex.quote(path)}")


def _compare(record: Dict[str, Any], field: str, actual: str, path: str) -> None:
    if record.get(field) != actual:
        why = f"expected {record.get(field)}\nactual   {actual}"
        what = f"{path} is not the file whose signature was checked"
        raise EngineRefused("identity-mismatch", what, why=why, fix="pull it again")
