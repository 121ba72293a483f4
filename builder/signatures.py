"""Where signatures lie: beside an engine in the store, and in a folder of an engine."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from builder import artifact, durable, trust, trust_certificates
from builder.errors import EnginefarmError, Reason
from builder.manifest import Manifest, load_manifest
from builder.policy_rules import Policy
from builder.signature_bundle import LARGEST_BUNDLE, SUFFIX, Kind, read_bundle
from builder.signers import Signer
from builder.store import Entry, Store
from builder.titles import ENGINE, MANIFEST
from builder.trust import Trusted

# what a pull notes of its check; it is of this machine and no part of the artifact
NOTE = "trust.json"
_KIND = "signature"
_SUBJECT = "org.enginefarm.subject"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """What was signed. `name`: the job, or the model of an index; `sha256`: of the engine or the index, hex.

    `where`: the signature's file, or the reference of what it is attached to; null for an engine of the store.
    """

    name: str
    sha256: str
    where: str | None
    bundle: bytes


def sign_entry(store: Store, entry: Entry, signer: Signer) -> Signed:
    """Sign an engine of the store, as the artifact that a push makes of it, and keep the signature beside it.

    Raises:
        EnginefarmError: STORE_CORRUPT; as `trust.sign_files`.

    """
    store.check(entry)
    manifest = store.read(entry, MANIFEST)
    files = artifact_digests(store, entry)
    bundle = trust.sign_files(files, manifest, signer, entry.name)
    keep_signature(store, entry, bundle)
    return Signed(name=entry.name, sha256=files[ENGINE], where=None, bundle=bundle)


def keep_signature(store: Store, entry: Entry, bundle: bytes) -> None:
    """Keep a signature beside an engine of the store; it takes the place of an older one of its name.

    Raises:
        EnginefarmError: STORE_CORRUPT, STORE_READ_ONLY, DISK_FULL.

    """
    title = signature_name(bundle)
    older = [one for one in _signatures(store, entry) if title in store.files(one)]
    if any(store.read(one, title) == bundle for one in older):
        return
    store.add(kind=_KIND, key=entry.key, name=entry.name, files={title: bundle}, annotations={_SUBJECT: entry.digest})
    for one in older:
        store.remove(one)


def signatures_of(store: Store, entry: Entry) -> list[bytes]:
    """Read the signatures of exactly this entry, the newest first; one that a later proof or bench made has its own."""
    found = []
    for one in _signatures(store, entry):
        found += [store.read(one, title) for title in store.files(one)]
        store.touch(one)
    return found


def check_entry(
    store: Store, entry: Entry, policy: Policy, now: datetime, model: str | None = None
) -> tuple[str, Trusted | None]:
    """Check an engine of the store against the signatures beside it; else as `check_folder`.

    Raises:
        EnginefarmError: STORE_CORRUPT; as `trust.check_files`.

    """
    store.check(entry)
    content = store.read(entry, MANIFEST)
    model = model or load_manifest(content, entry.name).recipe.name
    files = artifact_digests(store, entry)
    return model, trust.check_files(files, content, signatures_of(store, entry), policy, model, now)


def artifact_digests(store: Store, entry: Entry) -> dict[str, str]:
    """Return SHA-256, hex, of every file of the artifact that a push makes of an engine."""
    manifest = load_manifest(store.read(entry, MANIFEST), entry.name)
    titles = {MANIFEST, *artifact.TYPES}
    blobs = {title: blob for title, blob in store.files(entry).items() if title in titles}
    files = {title: blob.digest.removeprefix("sha256:") for title, blob in blobs.items()}
    return files | {title: hashlib.sha256(content).hexdigest() for title, content in _derived(manifest).items()}


def sign_in_folder(folder: Path, signer: Signer) -> Signed:
    """Sign the files of an engine's folder and write the signature into it.

    Raises:
        EnginefarmError: ARTIFACT_INVALID, NAME_UNSAFE, FILE_MISSING, STORE_READ_ONLY; as the signer.

    """
    files = trust.folder_digests(folder, _beside(folder))
    bundle = trust.sign_folder(folder, signer, digests=files)
    path = folder / signature_name(bundle)
    with durable.writing(str(path)):
        durable.write_atomically(path, bundle, folder)
    job = read_bundle(bundle).statement.subject
    return Signed(name=job, sha256=files[ENGINE], where=str(path), bundle=bundle)


def check_folder(folder: Path, policy: Policy, now: datetime, model: str | None = None) -> tuple[str, Trusted | None]:
    """Check the files of an engine's folder against the signatures in it. Returns the model, and who vouches for it.

    Raises:
        EnginefarmError: ARTIFACT_INVALID where no manifest says what the engine is; as `trust.check_signature`.

    """
    beside = _beside(folder)
    try:
        names = sorted(name for name in beside if name.endswith(SUFFIX))
        bundles = [_read_limited(folder / name) for name in names]
    except OSError as error:
        raise EnginefarmError(Reason.FILE_MISSING, f"{folder} cannot be read", why=str(error)) from error
    if model is None:
        content = trust.read_manifest(folder)
        if not content:
            what = f"{folder} is not the folder of an engine"
            raise EnginefarmError(Reason.ARTIFACT_INVALID, what, why=f"it has no {MANIFEST}")
        model = artifact.parse_manifest(content, str(folder / MANIFEST)).recipe.name
    files = trust.folder_digests(folder, beside)
    return model, trust.check_signature(folder, bundles, policy, model, now, digests=files)


def signature_name(bundle: bytes) -> str:
    """Name the file of a signature after its signer's key: signing again replaces what that key has signed."""
    read = read_bundle(bundle)
    signer = read.hint if read.kind is Kind.KEY else trust_certificates.read_certificate(read.certificates[0]).key_id
    return f"{str(signer)[:16]}{SUFFIX}"


def _signatures(store: Store, entry: Entry) -> list[Entry]:
    return [one for one in store.find(_KIND, entry.key) if one.annotations.get(_SUBJECT) == entry.digest]


def _derived(manifest: Manifest) -> dict[str, bytes]:
    files = {artifact.LAYERS: artifact.layer_report(manifest)}
    bench = artifact.benchmark(manifest)
    return files if bench is None else {**files, artifact.BENCHMARK: bench}


def _beside(folder: Path) -> list[str]:
    try:
        return [path.name for path in folder.iterdir() if path.name.endswith(SUFFIX) or path.name == NOTE]
    except OSError as error:
        raise EnginefarmError(Reason.FILE_MISSING, f"{folder} cannot be read", why=str(error)) from error


def _read_limited(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        # a pipe would be waited for
        what = f"{path.name!r} is no plain file"
        raise EnginefarmError(Reason.NAME_UNSAFE, what, where=str(path.parent), fix="take it out of the folder")
    # one byte more than is taken: the check then says that it is too long
    with path.open("rb") as stream:
        return stream.read(LARGEST_BUNDLE + 1)
