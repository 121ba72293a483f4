"""Signs what lies in a registry already, as far as this machine knows it: signatures are attached, nothing is moved."""

from __future__ import annotations

from builder import artifact, oci
from builder.errors import EnginefarmError, Reason
from builder.publish_seal import Seal
from builder.query import list_engines
from builder.registry import Registry
from builder.signatures import Signed, artifact_digests
from builder.store import Entry
from builder.titles import ENGINE, MANIFEST


def sign_in_registry(registry: Registry, version: str, seal: Seal) -> list[Signed]:
    """Sign an engine by the digest of its artifact, or by a tag all engines of a model and the list of them.

    Only what the store holds too is signed: a registry must not choose what somebody vouches for. Nothing is signed
    where one engine is missing.

    Raises:
        EnginefarmError: ARTIFACT_MISSING, ARTIFACT_INVALID, IDENTITY_MISMATCH; as the registry and the signer.

    """
    place = f"{registry.registry}/{registry.repository}"
    content, descriptor = _fetch(registry, version)
    if descriptor["mediaType"] != oci.INDEX_TYPE:
        return [_attach(registry, descriptor, _known(registry, descriptor, content, seal), seal)]
    index = artifact.parse_index(content, f"{place}:{version}")
    found = [_fetch(registry, str(entry["digest"])) for entry in index.entries]
    known = [(one, _known(registry, one, raw, seal)) for raw, one in found]
    for told, (one, entry) in zip(index.entries, known, strict=True):
        _require_true(told, one, entry, seal, f"{place}:{version}")
    signed = [_attach(registry, one, entry, seal) for one, entry in known]
    made = seal.index(content, index.model)
    if made is not None:
        registry.attach(descriptor, artifact.SIGNATURE_TYPE, *made)
        digest = str(descriptor["digest"])
        where = f"{place}@{digest}"
        signed.append(Signed(name=index.model, sha256=digest.removeprefix("sha256:"), where=where, bundle=made[1]))
    return signed


def _known(registry: Registry, descriptor: oci.Document, raw: bytes, seal: Seal) -> Entry:
    """Find the engine of the store that has the very files of an artifact."""
    place = f"{registry.registry}/{registry.repository}@{descriptor['digest']}"
    files = artifact.parse_artifact(raw, place).files
    digests = {title: str(one["digest"]).removeprefix("sha256:") for title, one in files.items()}
    for entry in list_engines(seal.store):
        engine = seal.store.files(entry)[ENGINE].digest.removeprefix("sha256:")
        if engine == digests.get(ENGINE) and artifact_digests(seal.store, entry) == digests:
            return entry
    what = f"the store does not hold {place}"
    fix = "sign where the engine was built, or pull it and look at it first"
    raise EnginefarmError(Reason.ARTIFACT_MISSING, what, fix=fix)


def _require_true(told: oci.Document, one: oci.Document, entry: Entry, seal: Seal, where: str) -> None:
    """Refuse to vouch for a list that says something else of an engine than its manifest: it decides who gets which."""
    manifest = artifact.parse_manifest(seal.store.read(entry, MANIFEST), entry.name)
    true = artifact.engine_entry(manifest, one)
    facts, listed = {**true["annotations"], **true["platform"]}, {**told["annotations"], **told["platform"]}
    wrong = [f"{name}: {listed.get(name)!r}, not {facts[name]!r}" for name in facts if listed.get(name) != facts[name]]
    if wrong:
        what = f"the list says of {entry.name} what is not so"
        fix = "push it anew; whoever wrote this list does not mean well, or has a fault"
        raise EnginefarmError(Reason.IDENTITY_MISMATCH, what, where=where, why="\n".join(wrong), fix=fix)


def _attach(registry: Registry, descriptor: oci.Document, entry: Entry, seal: Seal) -> Signed:
    bundles = seal.engine(entry)
    for name, bundle in bundles.items():
        registry.attach(descriptor, artifact.SIGNATURE_TYPE, name, bundle)
    own = next(bundle for bundle in reversed(bundles.values()) if seal.is_own(bundle))
    sha256 = seal.store.files(entry)[ENGINE].digest.removeprefix("sha256:")
    where = f"{registry.registry}/{registry.repository}@{descriptor['digest']}"
    return Signed(name=entry.name, sha256=sha256, where=where, bundle=own)


def _fetch(registry: Registry, version: str) -> tuple[bytes, oci.Document]:
    found = registry.manifest(version, (oci.INDEX_TYPE, oci.MANIFEST_TYPE))
    if found is None:
        what = f"{registry.registry}/{registry.repository} has no {version}"
        raise EnginefarmError(Reason.ARTIFACT_MISSING, what)
    return found
