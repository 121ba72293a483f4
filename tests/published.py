"""Engines in folders and registries, as `enginefarm push` leaves them and as those who mean harm would."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from builder import oci
from builder.artifact import (
    LAYERS,
    MODEL_PLAN,
    SIGNATURE_TYPE,
    engine_entry,
    layer,
    layer_report,
    make_artifact,
    make_index,
)
from builder.compat import Wish
from builder.key import canonical, make_key
from builder.keys import KeyPair, describe_public_key, generate_key
from builder.machine import Facts, GpuFacts
from builder.manifest import Manifest, WeightsFile
from builder.places import Place
from builder.policy_rules import Policy, Rule, TrustedKey, Validity
from builder.project import Home
from builder.pull_checks import Machine
from builder.signers import KeySigner, Signer, sign_digests
from builder.store import Entry, Store
from builder.titles import PROOF_ANNOTATION
from tests.engines import key_document, manifest

MODEL = "tiny"
TENSORRT = "1.7.1.116"
ONNX = b"the lowered model" * 1000
NOW = datetime.now(tz=timezone.utc)


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """The files of an engine's artifact, and what its index says of it. `entry`: changes of annotations, null drops."""

    files: Mapping[str, bytes]
    told: Manifest
    entry: Mapping[str, str | None] = field(default_factory=dict)

    def changed(self, **files: bytes) -> Parcel:
        """Exchange files: `model_plan=...` stands for model.plan."""
        return replace(self, files={**self.files, **{title.replace("_", "."): one for title, one in files.items()}})

    def entitled(self, **entry: str | None) -> Parcel:
        """Let the index say something else: `engine_size=...` stands for org.enginefarm.engine-size."""
        return replace(self, entry={name.replace("_", "-"): value for name, value in entry.items()})


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was published: digests of the index and of each artifact, in the order given."""

    index: str
    artifacts: tuple[str, ...]


def header(version: str = TENSORRT, magic: bytes = b"vtrt") -> bytes:
    """Make the head of an engine."""
    return magic + bytes(0x14) + bytes(int(number) for number in version.split("."))


def parcel(
    recipe: str = MODEL, precision: str = "fp16", variant: int = 0, engine: bytes = b"", **changes: Any
) -> Parcel:
    """Make an engine that fits Ampere with TensorRT-RTX 1.7.1; `changes` replace parts of its manifest."""
    engine = engine or header() + f"{recipe} {precision} {variant}".encode() * 500
    key = make_key("engine", key_document(recipe, precision, variant))
    proof = make_key("proof", {"engine": key.sha256})
    plain = manifest(recipe, precision, variant=variant)
    options = {"hardware_compatibility": "none", "version_compatible": False}
    parts: dict[str, Any] = {
        "engine": plain.engine.model_copy(update={"sha256": sha256(engine), "size": len(engine)}),
        "build": plain.build.model_copy(update={"options": options}),
        "proof": plain.proof.model_copy(update={"key": proof.sha256}),
    }
    told = plain.model_copy(update=parts | changes)
    files = {
        MODEL_PLAN: engine,
        "manifest.json": told.to_json().encode(),
        "key.json": canonical(key.document),
        "proof.json": canonical(proof.document),
        LAYERS: layer_report(told),
    }
    return Parcel(files=files, told=told)


def stripped(sm: str = "8.6", variant: int = 0, data: bytes = b"") -> Parcel:
    """Make an engine that was built without its weights, for one SM."""
    plain = parcel(variant=variant)
    files = {"weights.onnx": ONNX} | ({"lowered.onnx.data": data} if data else {})
    told = tuple(
        WeightsFile.model_validate({"file": title, "sha256": sha256(content), "size": len(content)})
        for title, content in files.items()
    )
    options = {"hardware_compatibility": "none", "version_compatible": False, "strip_weights": True}
    made = plain.told.model_copy(
        update={
            "job": f"{MODEL}-fp16-trtrtx1.7-cuda13-sm{sm.replace('.', '')}",
            "target": plain.told.target.model_copy(update={"sms": [sm]}),
            "engine": plain.told.engine.model_copy(update={"weights": told}),
            "build": plain.told.build.model_copy(update={"options": options}),
        }
    )
    contents = {"manifest.json": made.to_json().encode(), **files}
    return replace(plain, files={**plain.files, **contents}, told=made)


def publish(
    place: Place,
    parcels: Sequence[Parcel],
    *,
    model: str = MODEL,
    serial: int = 1,
    tag: str = "latest",
    signer: Signer | None = None,
    index_signer: Signer | None = None,
    schema: int = 1,
) -> Published:
    """Publish engines; those of `signer` are signed."""
    entries = [publish_engine(place, one, signer) for one in parcels]
    content = make_index(model, entries, serial)
    if schema != 1:
        document = json.loads(content)
        document["annotations"]["org.enginefarm.schema"] = str(schema)
        content = json.dumps(document).encode()
    subject = place.put_manifest(tag, content, oci.INDEX_TYPE)
    if index_signer is not None:
        attach(place, subject, sign_digests(model, {"index.json": sha256(content)}, index_signer))
    return Published(index=subject["digest"], artifacts=tuple(one["digest"] for one in entries))


def publish_engine(place: Place, one: Parcel, signer: Signer | None = None) -> oci.Document:
    """Publish one engine and return its entry of an index."""
    layers = [layer(title, *put(place, content)) for title, content in one.files.items() if title != "manifest.json"]
    put(place, one.files["manifest.json"])
    content = make_artifact(one.files["manifest.json"], layers)
    return finish_engine(place, one, content, signer)


def finish_engine(place: Place, one: Parcel, content: bytes, signer: Signer | None = None) -> oci.Document:
    """Put an artifact whose files are there, and return its entry of an index."""
    subject = place.put_manifest(oci.digest_of(content), content, oci.MANIFEST_TYPE)
    if signer is not None:
        digests = {title: sha256(blob) for title, blob in one.files.items()}
        attach(place, subject, sign_digests(one.told.job, digests, signer))
    entry = engine_entry(one.told, subject)
    for name, value in one.entry.items():
        if value is None:
            entry["annotations"].pop(f"org.enginefarm.{name}")
        else:
            entry["annotations"][f"org.enginefarm.{name}"] = value
    return entry


def put(place: Place, content: bytes) -> tuple[str, int]:
    """Put a blob; return digest and size."""
    digest = oci.digest_of(content)
    place.push(content, digest, len(content))
    return digest, len(content)


def attach(place: Place, subject: oci.Document, bundle: bytes, kind: str = SIGNATURE_TYPE) -> oci.Document:
    """Attach a document to a manifest."""
    put(place, oci.EMPTY)
    digest, size = put(place, bundle)
    content = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST_TYPE,
            "artifactType": kind,
            "config": oci.descriptor(oci.EMPTY_TYPE, oci.digest_of(oci.EMPTY), len(oci.EMPTY)),
            "layers": [oci.descriptor(kind, digest, size, {oci.TITLE: "bundle.json"})],
            "subject": {name: subject[name] for name in ("mediaType", "digest", "size")},
        }
    ).encode()
    attached = place.put_manifest(oci.digest_of(content), content, oci.MANIFEST_TYPE) | {"artifactType": kind}
    place.ensure_listed(subject["digest"], [attached])
    return attached


def key_pair(folder: Path, name: str = "farm") -> KeyPair:
    """Make a key."""
    return generate_key(Home(root=folder), name, NOW, None, None)


def signer_of(pair: KeyPair) -> KeySigner:
    """Sign with a key."""
    return KeySigner(key=pair.private)


def policy_for(*pairs: KeyPair, expired: bool = False, models: str = "*", **changes: Any) -> Policy:
    """Trust keys."""
    validity = Validity(not_after=NOW - timedelta(days=1) if expired else None)
    keys = tuple(_trusted(pair, validity) for pair in pairs)
    return Policy(rules=(Rule(models=(models,), keys=keys),), **changes)


def _trusted(pair: KeyPair, validity: Validity) -> TrustedKey:
    public = describe_public_key(pair.public.read_bytes())
    return TrustedKey(name=pair.name, key_id=public.key_id, hint=public.hint, pem=public.pem, validity=validity)


def machine(sm: str = "8.6", **changes: Any) -> Machine:
    """Describe a machine with an RTX 3090 and TensorRT-RTX 1.7.1."""
    gpu = GpuFacts(name="NVIDIA GeForce RTX 3090", sm=sm, memory_bytes=24 << 30)
    known: dict[str, Any] = {
        "os": "linux",
        "architecture": "amd64",
        "driver": "580.65.06",
        "driver_cuda": "13.0",
        "gpus": (gpu,),
        "tensorrt_rtx": TENSORRT,
    }
    return Machine(facts=Facts(**known | changes), wish=Wish(), known_bad=())


def sha256(content: bytes) -> str:
    """Hash, hex."""
    return hashlib.sha256(content).hexdigest()


def add_parcel(store: Store, one: Parcel) -> Entry:
    """Put an engine into a store, as a build leaves it."""
    files = {title: content for title, content in one.files.items() if title != LAYERS}
    annotations = {PROOF_ANNOTATION: one.told.proof.key}
    return store.add(kind="engine", key=one.told.key, name=one.told.job, files=files, annotations=annotations)
