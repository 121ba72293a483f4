"""An engine's artifact and the index of a model as OCI documents, both ways. Nothing is read or written here."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.manifest import SCHEMA_VERSION, Manifest, load_manifest
from builder.titles import WEIGHTS

SCHEMA = 1
"""Version of this layout. A layout of a later version is refused, never half understood."""

MODEL_PLAN, MANIFEST = "model.plan", "manifest.json"
LAYERS, BENCHMARK = "layers.json", "benchmark.json"
CONFIG_TYPE = oci.MEDIA_TYPES[MANIFEST]
ENGINE_TYPE, MODEL_TYPE = oci.artifact_type("engine"), oci.artifact_type("model")
SIGNATURE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
SBOM_TYPE = "application/vnd.cyclonedx+json"
PROVENANCE_TYPE = "application/vnd.in-toto+json"
TYPES = {
    **{title: oci.MEDIA_TYPES[title] for title in (MODEL_PLAN, "key.json", "proof.json", "timing.cache", *WEIGHTS)},
    "calibration.cache": "application/vnd.enginefarm.calibration-cache.v1",
    LAYERS: "application/vnd.enginefarm.layers.v1+json",
    BENCHMARK: "application/vnd.enginefarm.benchmark.v1+json",
}
"""Files that an artifact may have, to their media types. The manifest is its config."""

PREFIX = "org.enginefarm."
LAST_SERIAL = 10**18 - 1
MAX_BYTES = 8 << 30
_REQUIRED = frozenset({MODEL_PLAN, "key.json", "proof.json", LAYERS})
# what is read into memory
_CACHE_BYTES = 1 << 30
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# ASCII digits, and few: int() refuses more than some thousand of them
_OURS = re.compile(r"application/vnd\.enginefarm\.[a-z-]+\.v(?P<version>[0-9]{1,9})(?![0-9])")
_NUMBER = re.compile(r"[0-9]{1,9}")
_ENTRY_KEYS = ("key", "job", "stack", "tensorrt", "cuda", "precision", "sms", "engine", "engine-size")


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An engine's artifact as its OCI manifest describes it: descriptors of `manifest.json` and of the files by title.

    Names, types and sizes are checked; contents are not.
    """

    descriptor: oci.Document
    config: oci.Document
    layers: Mapping[str, oci.Document]

    @property
    def files(self) -> dict[str, oci.Document]:
        """All files by title, the manifest among them."""
        return {MANIFEST: self.config, **self.layers}

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(int(one["size"]) for one in self.files.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIndex:
    """What a registry has of one model under one tag: a descriptor per engine, with annotations to choose by."""

    model: str
    serial: int
    entries: tuple[oci.Document, ...]
    digest: str


def layer_report(manifest: Manifest) -> bytes:
    """Serialise what is known of an engine's layers, for readers that want no more."""
    report = {
        "precision": {"requested": manifest.precision.requested, "realised": manifest.precision.realised},
        "source": manifest.precision.source,
        "layers": manifest.precision.layers,
        "flags": manifest.engine.flags,
    }
    return _canonical(report)


def benchmark(manifest: Manifest) -> bytes | None:
    """Serialise how fast an engine is; null where that was not measured."""
    return None if manifest.bench is None else _canonical(manifest.bench.model_dump(mode="json"))


def layer(title: str, digest: str, size: int) -> oci.Document:
    """Describe a file of an artifact."""
    return oci.descriptor(TYPES[title], digest, size, {oci.TITLE: title})


def make_artifact(manifest: bytes, layers: Iterable[oci.Document]) -> bytes:
    """Serialise the OCI manifest of an engine; equal files give equal bytes.

    `manifest`: content of manifest.json. The config has a title as well, so that general tools write it to a file.
    """
    config = oci.descriptor(CONFIG_TYPE, oci.digest_of(manifest), len(manifest), {oci.TITLE: MANIFEST})
    document = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST_TYPE,
        "artifactType": ENGINE_TYPE,
        "config": config,
        "layers": sorted(layers, key=lambda one: list(TYPES).index(one["annotations"][oci.TITLE])),
    }
    return json.dumps(document, indent=2, sort_keys=True).encode()


def parse_artifact(content: bytes, where: str, max_bytes: int = MAX_BYTES) -> Artifact:
    """Check the OCI manifest of an engine.

    `where` names it in messages. All files together may have `max_bytes`.

    Raises:
        EnginefarmError: ARTIFACT_INVALID, ARTIFACT_TOO_NEW, NAME_UNSAFE, SIZE_REFUSED.

    """
    document = _document(content, where)
    _check_type(document, oci.MANIFEST_TYPE, ENGINE_TYPE, where)
    config = _descriptor(document.get("config"), where)
    if config["mediaType"] != CONFIG_TYPE:
        _refuse_newer(config["mediaType"], where)
        raise _invalid(where, f"its config is {config['mediaType']!r}, not {CONFIG_TYPE}")
    _check_size(MANIFEST, config["size"], oci.DOCUMENT_BYTES, where)
    listed = document.get("layers")
    if not isinstance(listed, list):
        raise _invalid(where, "it has no list of layers")
    layers: dict[str, oci.Document] = {}
    for one in listed:
        described = _descriptor(one, where)
        title = _title(described, where)
        if title in layers:
            raise _invalid(where, f"it has two files {title!r}")
        _check_size(title, described["size"], _limit(title, max_bytes), where)
        layers[title] = described
    missing = sorted(_REQUIRED - layers.keys())
    if missing:
        raise _invalid(where, f"it lacks {', '.join(missing)}")
    descriptor = oci.descriptor(oci.MANIFEST_TYPE, oci.digest_of(content), len(content))
    artifact = Artifact(descriptor=descriptor | {"artifactType": ENGINE_TYPE}, config=config, layers=layers)
    _check_size("the artifact", artifact.size, max_bytes, where)
    if len({(one["digest"], one["size"]) for one in artifact.files.values()}) != len(
        {one["digest"] for one in artifact.files.values()}
    ):
        raise _invalid(where, "it gives one content two sizes")
    return artifact


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Parse manifest.json of an artifact.

    Raises:
        EnginefarmError: ARTIFACT_TOO_NEW, MANIFEST_INVALID.

    """
    try:
        version = json.loads(content).get("schema_version")
    except (ValueError, AttributeError, RecursionError):
        version = None
    if type(version) is int and version > SCHEMA_VERSION:
        raise _too_new(where, f"{MANIFEST} has schema {version}, this version reads {SCHEMA_VERSION}")
    return load_manifest(content, where)


def check_files(artifact: Artifact, manifest: Manifest, where: str) -> None:
    """Check that artifact and manifest speak of the same engine, and that what follows from the manifest does.

    Raises:
        EnginefarmError: IDENTITY_MISMATCH.

    """
    expected: dict[str, tuple[str, int]] = {MODEL_PLAN: (f"sha256:{manifest.engine.sha256}", manifest.engine.size)}
    told: dict[str, tuple[str, int]] = {one.file: (f"sha256:{one.sha256}", one.size) for one in manifest.engine.weights}
    others = [title for title in WEIGHTS if title in artifact.layers and title not in told]
    if others:
        raise _mismatch(where, f"the manifest tells of no {', '.join(others)}")
    expected |= told
    for title, content in ((LAYERS, layer_report(manifest)), (BENCHMARK, benchmark(manifest))):
        if content is not None:
            expected[title] = (oci.digest_of(content), len(content))
        elif title in artifact.layers:
            raise _mismatch(where, f"the manifest tells of no {title}")
    for title, (digest, size) in expected.items():
        one = artifact.layers.get(title)
        actual = (one["digest"], one["size"]) if one is not None else "none"
        if actual != (digest, size):
            raise _mismatch(where, f"{title} by the manifest: {digest}, {size} bytes\nin the artifact: {actual}")


def engine_entry(manifest: Manifest, descriptor: oci.Document) -> oci.Document:
    """Describe an engine for the index of its model. The annotations are hints: the manifest decides after a download.

    `descriptor`: of the engine's artifact.
    """
    stack, build, engine = manifest.stack, manifest.build, manifest.engine
    system, _, machine = stack.platform.partition("/")
    tuned, options = build.tuned_on, build.options
    facts: dict[str, str | None] = {
        "key": manifest.key,
        "job": manifest.job,
        "stack": stack.name,
        "tensorrt": stack.tensorrt,
        "cuda": stack.cuda,
        "precision": manifest.precision.requested,
        "sms": ",".join(manifest.target.sms),
        "device": tuned.name if tuned is not None else None,
        "driver": tuned.driver if tuned is not None else None,
        "hardware-compatibility": str(options.get("hardware_compatibility", "none")),
        "version-compatible": _yes(options.get("version_compatible")),
        "host-code": _yes(engine.needs_host_code),
        "plugins": ",".join(options.get("plugins") or ()) or None,
        "stripped": "true" if options.get("strip_weights") else None,
        "refit": "true" if options.get("refit") else None,
        "weights": manifest.recipe.weights,
        "engine-verified": _yes(manifest.proof.engine_verified),
        "engine": engine.sha256,
        "engine-size": str(engine.size),
    }
    annotations = {f"{PREFIX}{name}": value for name, value in facts.items() if value is not None}
    return {
        **oci.descriptor(oci.MANIFEST_TYPE, descriptor["digest"], descriptor["size"], annotations),
        "artifactType": ENGINE_TYPE,
        "platform": {"os": system, "architecture": machine},
    }


def slot_of(entry: oci.Document) -> tuple[str, str, str]:
    """Name the place in an index that an entry takes: job, TensorRT, GPU it was tuned on. A newer one replaces it."""
    annotations = entry["annotations"]
    job, tensorrt, device = (annotations.get(f"{PREFIX}{name}", "") for name in ("job", "tensorrt", "device"))
    return job, tensorrt, device


def make_index(model: str, entries: Collection[oci.Document], serial: int) -> bytes:
    """Serialise the index of a model; the order of entries is that of their places."""
    document = {
        "schemaVersion": 2,
        "mediaType": oci.INDEX_TYPE,
        "artifactType": MODEL_TYPE,
        "manifests": sorted(entries, key=slot_of),
        "annotations": {f"{PREFIX}model": model, f"{PREFIX}schema": str(SCHEMA), f"{PREFIX}serial": str(serial)},
    }
    return json.dumps(document, indent=2, sort_keys=True).encode()


def parse_index(content: bytes, where: str, model: str | None = None) -> ModelIndex:
    """Check the index of a model. `model`: whose it must be, if that is known.

    Raises:
        EnginefarmError: ARTIFACT_INVALID, ARTIFACT_TOO_NEW, IDENTITY_MISMATCH.

    """
    document = _document(content, where)
    annotations = _annotations(document, where)
    schema = annotations.get(f"{PREFIX}schema", "")
    if _NUMBER.fullmatch(schema) and int(schema) > SCHEMA:
        raise _too_new(where, f"the index has schema {schema}, this version reads {SCHEMA}")
    _check_type(document, oci.INDEX_TYPE, MODEL_TYPE, where)
    serial, found = annotations.get(f"{PREFIX}serial", ""), annotations.get(f"{PREFIX}model", "")
    if schema != str(SCHEMA) or not re.fullmatch(r"[0-9]{1,18}", serial) or not found:
        raise _invalid(where, f"model {found!r}, schema {schema!r} or serial {serial!r} of the index is wrong")
    if model is not None and found != model:
        raise _mismatch(where, f"it is the index of {found!r}, not of {model!r}")
    listed = document.get("manifests")
    if not isinstance(listed, list):
        raise _invalid(where, "the index lists nothing")
    entries = tuple(_entry(one, where) for one in listed)
    slots = [slot_of(entry) for entry in entries]
    if len(set(slots)) != len(slots):
        raise _invalid(where, "the index lists two engines in one place")
    return ModelIndex(model=found, serial=int(serial), entries=entries, digest=oci.digest_of(content))


def _entry(one: object, where: str) -> oci.Document:
    entry = _descriptor(one, where)
    _refuse_newer(str(entry.get("artifactType")), where)
    if entry["mediaType"] != oci.MANIFEST_TYPE or entry.get("artifactType") != ENGINE_TYPE:
        raise _invalid(where, f"the index lists {entry.get('artifactType')!r}, which is no engine")
    annotations = _annotations(entry, where)
    missing = [name for name in _ENTRY_KEYS if not annotations.get(f"{PREFIX}{name}")]
    if missing:
        raise _invalid(where, f"an entry of the index lacks {', '.join(missing)}")
    platform = entry.get("platform")
    if not isinstance(platform, dict) or not all(isinstance(platform.get(n), str) for n in ("os", "architecture")):
        raise _invalid(where, "an entry of the index lacks its platform")
    _check_size("an OCI manifest", entry["size"], oci.DOCUMENT_BYTES, where)
    return entry


def _document(content: bytes, where: str) -> dict[str, Any]:
    _check_size("the document", len(content), oci.DOCUMENT_BYTES, where)
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _invalid(where, f"it is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise _invalid(where, "it is not a JSON object")
    return document


def _check_type(document: dict[str, Any], media_type: str, artifact_type: str, where: str) -> None:
    found = document.get("artifactType")
    if found != artifact_type:
        _refuse_newer(str(found), where)
        raise _invalid(where, f"its type is {found!r}, not {artifact_type}")
    if document.get("schemaVersion") != 2 or document.get("mediaType") != media_type:
        raise _invalid(where, f"it is not of media type {media_type}")


def _refuse_newer(media_type: str, where: str) -> None:
    match = _OURS.match(media_type)
    if match is not None and int(match["version"]) > SCHEMA:
        raise _too_new(where, f"{media_type} is of version {match['version']}, this version reads {SCHEMA}")


def _descriptor(one: object, where: str) -> oci.Document:
    if not isinstance(one, dict):
        raise _invalid(where, "a descriptor is not a JSON object")
    digest, size, media_type = one.get("digest"), one.get("size"), one.get("mediaType")
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest) or not isinstance(media_type, str):
        raise _invalid(where, f"digest {digest!r} or type {media_type!r} of a descriptor is wrong")
    if type(size) is not int or size < 0:
        raise _invalid(where, f"a descriptor says that {digest} has {size!r} bytes")
    # contents come from the registry that is asked, and from nowhere else
    if "urls" in one or "data" in one:
        raise _invalid(where, "a descriptor carries content or places of its own")
    return one


def _annotations(document: Mapping[str, Any], where: str) -> dict[str, str]:
    found = document.get("annotations", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _invalid(where, "annotations are not text")
    return found


def _title(described: oci.Document, where: str) -> str:
    title = _annotations(described, where).get(oci.TITLE, "")
    unsafe = not title or title in {".", ".."} or any(c in "/\\:" or not c.isprintable() for c in title)
    if unsafe:
        raise EnginefarmError(Reason.NAME_UNSAFE, f"a file of the artifact is called {title!r}", where=where)
    if title not in TYPES:
        raise _invalid(where, f"it has a file {title!r}, which is none of {', '.join(TYPES)}")
    if described["mediaType"] != TYPES[title]:
        _refuse_newer(described["mediaType"], where)
        raise _invalid(where, f"{title} is {described['mediaType']!r}, not {TYPES[title]}")
    return title


def _limit(title: str, max_bytes: int) -> int:
    if title in {MODEL_PLAN, *WEIGHTS}:
        return max_bytes
    return oci.DOCUMENT_BYTES if title.endswith(".json") else min(_CACHE_BYTES, max_bytes)


def _check_size(what: str, size: int, limit: int, where: str) -> None:
    if size > limit:
        why = f"{what} has {size} bytes, {limit} are allowed"
        raise EnginefarmError(Reason.SIZE_REFUSED, f"{what} is too large", where=where, why=why)


def _invalid(where: str, why: str) -> EnginefarmError:
    return EnginefarmError(Reason.ARTIFACT_INVALID, "this is not an engine's artifact", where=where, why=why)


def _too_new(where: str, why: str) -> EnginefarmError:
    return EnginefarmError(Reason.ARTIFACT_TOO_NEW, "a newer enginefarm wrote this artifact", where=where, why=why)


def _mismatch(where: str, why: str) -> EnginefarmError:
    return EnginefarmError(Reason.IDENTITY_MISMATCH, "the artifact does not fit together", where=where, why=why)


def _canonical(document: object) -> bytes:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _yes(value: object) -> str:
    return "true" if value else "false"
