"""Pushes engines of the store to a registry: blobs first, then artifacts and what belongs to them, the index last."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from builder import artifact, oci
from builder.errors import EnginefarmError, Reason
from builder.events import Listener
from builder.export_dir import choose_engines
from builder.manifest import Manifest
from builder.provenance import provenance
from builder.publish_index import TAG_LENGTH, ModelIndexFile
from builder.publish_seal import Seal
from builder.query import list_engines
from builder.registry import Registry, is_tag, parse_reference
from builder.sbom import engine_materials
from builder.steps import told
from builder.store import Blob, Entry, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where to push to: one repository per model below `prefix`, under one tag."""

    registry: str
    prefix: str
    tag: str
    plain_http: bool = False

    def repository(self, model: str) -> str:
        """Name the repository of a model."""
        return f"{self.prefix}/{model}" if self.prefix else model


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedEngine:
    """An engine in a registry. `new`: it was not there before; `referrers`: kind to digest of what is beside it."""

    job: str
    digest: str
    engine_sha256: str
    engine_bytes: int
    new: bool
    referrers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """A model in a registry. `changed`: whether its index did; `listed`: how many engines the index has now."""

    model: str
    reference: str
    digest: str
    serial: int
    changed: bool
    listed: int
    engines: tuple[PushedEngine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """An engine of the store as it goes to a registry.

    `raw`: its OCI manifest; `files`: all of the artifact's, by title; `listed`: its entry in the index of its model.
    """

    entry: Entry
    manifest: Manifest
    raw: bytes
    files: Mapping[str, Path | bytes]
    parsed: artifact.Artifact
    listed: oci.Document

    @property
    def sha256(self) -> dict[str, str]:
        """SHA-256 of the files by title, hex."""
        return {title: one["digest"].removeprefix("sha256:") for title, one in self.parsed.files.items()}


def parse_destination(text: str, tag: str, *, plain_http: bool = False) -> Destination:
    """Read `REGISTRY[/PREFIX]`.

    Raises:
        EnginefarmError: REFERENCE_INVALID.

    """
    reference = parse_reference(f"{text.rstrip('/')}/model")
    if not is_tag(tag) or len(tag) > TAG_LENGTH:
        why = f"letters, digits, . _ -, at most {TAG_LENGTH}"
        raise EnginefarmError(Reason.REFERENCE_INVALID, f"{tag!r} is no tag for a model", why=why, fix="shorten it")
    prefix = reference.repository.rpartition("/")[0]
    return Destination(registry=reference.registry, prefix=prefix, tag=tag, plain_http=plain_http)


def choose_packages(store: Store, patterns: Sequence[str]) -> list[Package]:
    """Gather the engines whose job ids match one of the globs (none: all), the newest of each job, TensorRT and GPU.

    Raises:
        EnginefarmError: NAME_UNKNOWN, STORE_CORRUPT, MANIFEST_INVALID.

    """
    names = {entry.name for entry in choose_engines(store, patterns)}
    newest: dict[tuple[str, ...], Package] = {}
    for entry in list_engines(store):
        if entry.name in names:
            blobs = store.files(entry)
            content = store.read(entry, artifact.MANIFEST)
            package = make_package(entry, content, blobs)
            newest[artifact.slot_of(package.listed)] = package
    return list(newest.values())


def make_package(entry: Entry, content: bytes, blobs: Mapping[str, Blob]) -> Package:
    """Make the artifact of an engine. `content`: of manifest.json; `blobs`: the files beside it, by title.

    Raises:
        EnginefarmError: MANIFEST_INVALID, ARTIFACT_INVALID where a file is missing, IDENTITY_MISMATCH.

    """
    manifest = artifact.parse_manifest(content, artifact.MANIFEST)
    files: dict[str, Path | bytes] = {title: one.path for title, one in blobs.items() if title in artifact.TYPES}
    layers = [artifact.layer(title, blobs[title].digest, blobs[title].size) for title in files]
    derived = {artifact.LAYERS: artifact.layer_report(manifest), artifact.BENCHMARK: artifact.benchmark(manifest)}
    for title, document in derived.items():
        if document is not None:
            files[title] = document
            layers.append(artifact.layer(title, oci.digest_of(document), len(document)))
    raw = artifact.make_artifact(content, layers)
    parsed = artifact.parse_artifact(raw, manifest.job)
    artifact.check_files(parsed, manifest, manifest.job)
    files[artifact.MANIFEST] = content
    listed = artifact.engine_entry(manifest, parsed.descriptor)
    return Package(entry=entry, manifest=manifest, raw=raw, files=files, parsed=parsed, listed=listed)


def push_engines(  # what, where to, who signs, and whom to tell
    packages: Sequence[Package],
    destination: Destination,
    *,
    cancel: threading.Event,
    listen: Listener,
    seal: Seal,
) -> list[Pushed]:
    """Push engines, one model after the other; doing it again changes nothing.

    Raises:
        EnginefarmError: REGISTRY_UNREACHABLE, REGISTRY_REFUSED, INDEX_CONTESTED, STORE_CORRUPT, INTERRUPTED;
            ARTIFACT_INVALID, ARTIFACT_TOO_NEW where the tag holds something else.

    """
    models: dict[str, list[Package]] = {}
    for package in packages:
        models.setdefault(package.manifest.recipe.name, []).append(package)
    pushed, places = [], dict[str, str]()
    for model, its in models.items():
        repository = destination.repository(model)
        subject = f"{repository}:{destination.tag}"
        registry = Registry(
            destination.registry,
            repository,
            plain_http=destination.plain_http,
            cancel=cancel,
            listen=listen,
            subject=subject,
        )
        push = _ModelPush(registry, model, destination.tag, places, listen, seal)
        with told(listen, subject, "push"):
            pushed.append(push.run(its))
    return pushed


class _ModelPush:
    """`places`: digests that this run has brought to a repository of the same registry, for mounting."""

    def __init__(
        self,
        registry: Registry,
        model: str,
        tag: str,
        places: dict[str, str],
        listen: Listener,
        seal: Seal,
    ) -> None:
        self._registry = registry
        self._model = model
        self._places = places
        self._seal = seal
        sign = self._sign_index if seal.signer is not None else None
        self._index = ModelIndexFile(registry, model, tag, listen, sign)

    def run(self, packages: Sequence[Package]) -> Pushed:
        # before anything is sent: a tag that holds something else stays as it is
        before = self._index.read()
        fresh = [package for package in packages if not self._is_there(package)]
        # engines of one model can share a file, as those without weights do theirs
        blobs = {one["digest"]: (package, title) for package in fresh for title, one in package.parsed.files.items()}
        self._registry.together([partial(self._blob, package, title) for package, title in blobs.values()])
        engines = [self._engine(package, new=package in fresh) for package in packages]
        for package in packages:
            self._index.mark(package.listed, package.raw)
        index = self._index.settle([package.listed for package in packages])
        for package, engine in zip(packages, engines, strict=True):
            # somebody may have written the list of referrers at the same time
            self._registry.ensure_listed(package.parsed.descriptor["digest"], list(engine[1].values()))
        return Pushed(
            model=self._model,
            reference=self._index.where,
            digest=index.digest,
            serial=index.serial,
            changed=before is None or before.digest != index.digest,
            listed=len(index.entries),
            engines=tuple(engine[0] for engine in engines),
        )

    def _is_there(self, package: Package) -> bool:
        digest = package.parsed.descriptor["digest"]
        return self._registry.resolve(digest, (oci.MANIFEST_TYPE,)) is not None

    def _blob(self, package: Package, title: str) -> None:
        one = package.parsed.files[title]
        digest = one["digest"]
        source = self._places.get(digest)
        source = None if source == self._registry.repository else source
        self._registry.push(package.files[title], digest, one["size"], mount_from=source)
        self._places.setdefault(digest, self._registry.repository)

    def _engine(self, package: Package, *, new: bool) -> tuple[PushedEngine, dict[str, oci.Document]]:
        """Write the artifact, still without a tag, and put beside it what belongs to it."""
        subject = package.parsed.descriptor
        if new:
            self._registry.put_manifest(subject["digest"], package.raw, oci.MANIFEST_TYPE)
        # no commit: the checkout may have moved on since the engine was built
        statement = provenance(package.manifest.model_dump(mode="json"), package.sha256)
        documents = {
            "sbom": (artifact.SBOM_TYPE, "sbom.cdx.json", oci.as_json(engine_materials(package.manifest))),
            "provenance": (artifact.PROVENANCE_TYPE, "provenance.intoto.json", oci.as_json(statement)),
            **{
                f"signature {name}": (artifact.SIGNATURE_TYPE, name, bundle)
                for name, bundle in self._seal.engine(package.entry).items()
            },
        }
        entries = {kind: self._registry.attach(subject, *document) for kind, document in documents.items()}
        pushed = PushedEngine(
            job=package.manifest.job,
            digest=subject["digest"],
            engine_sha256=package.manifest.engine.sha256,
            engine_bytes=package.manifest.engine.size,
            new=new,
            referrers={kind: one["digest"] for kind, one in entries.items()},
        )
        return pushed, entries

    def _sign_index(self, content: bytes) -> None:
        subject = oci.descriptor(oci.INDEX_TYPE, oci.digest_of(content), len(content))
        for one in self._registry.referrers(subject["digest"], artifact.SIGNATURE_TYPE):
            with suppress(EnginefarmError):
                # every signature is another one, even by the same key; what is broken or another's counts for nothing
                if self._seal.is_own(self._registry.attached(one)):
                    return
        made = self._seal.index(content, self._model)
        if made is not None:
            self._registry.attach(subject, artifact.SIGNATURE_TYPE, *made)
