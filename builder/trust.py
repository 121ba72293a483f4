"""Signs the files of an artifact and checks signatures against the policy, by the OpenSSF's model-signing.

An engine is code. Nothing deserializes one before `check_signature` has named who vouches for it. What a bundle says of
itself only chooses among what the policy names; no key that comes in a bundle is ever trusted.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from builder import durable, trust_certificates
from builder.errors import EnginefarmError, Reason
from builder.policy_rules import IndexRule, Policy, TrustedCertificate, TrustedIdentity, TrustedKey, Unsigned
from builder.signature_bundle import MEDIA_TYPE, Bundle, Kind, is_plain, read_bundle
from builder.signers import Signer, known_digests, sign_digests, sigstore_away

if TYPE_CHECKING:
    from model_signing import verifying

__all__ = [
    "INDEX",
    "MEDIA_TYPE",
    "Signer",
    "Trusted",
    "check_files",
    "check_index",
    "check_signature",
    "folder_digests",
    "read_manifest",
    "sign_files",
    "sign_folder",
    "sign_index",
]

INDEX = "index.json"
_MANIFEST, _ENGINE = "manifest.json", "model.plan"
_LARGEST_MANIFEST = 4 << 20
_MOST_BUNDLES = 64
_NO_POLICY_FIX = (
    "`enginefarm keys export NAME --policy` prints one where the key is; if you trust it, put it into policy.toml of "
    "this farm's home"
)
# how far a check came, the furthest last: of several signatures that fail, the best one is told
_ORDER = (
    Reason.SIGNATURE_INVALID,
    Reason.IDENTITY_MISMATCH,
    Reason.SIGNER_UNKNOWN,
    Reason.FETCH_FAILED,
    Reason.KEY_EXPIRED,
    Reason.KEY_REVOKED,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trusted:
    """Who vouches for an artifact. `signed_at`: where the bundle proves it; `host_code`: whether the rule allows it."""

    signer: str
    key_id: str
    signed_at: datetime | None
    host_code: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What a signature must be of: files with their SHA-256, and the names that its statement may give them."""

    files: Mapping[str, str]
    names: Collection[str]


def sign_folder(folder: Path, signer: Signer, *, digests: Mapping[str, str] | None = None) -> bytes:
    """Sign all files of an artifact's folder and return the bundle. The statement names the manifest's job.

    `digests`: SHA-256 of every file, hex, where they were computed just now.

    Raises:
        EnginefarmError: ARTIFACT_INVALID where manifest and engine do not fit, NAME_UNSAFE; as the signer.

    """
    files = folder_digests(folder) if digests is None else digests
    return sign_files(files, read_manifest(folder), signer, str(folder))


def sign_files(files: Mapping[str, str], manifest: bytes, signer: Signer, where: str) -> bytes:
    """Sign an artifact by the SHA-256, hex, of all its files; else as `sign_folder`. `manifest`: its manifest.json."""
    identity = _identity(manifest)
    if identity is None or identity.engine_sha256 != files.get(_ENGINE):
        why = f"it needs {_ENGINE} and the {_MANIFEST} that belongs to it"
        fix = "name a folder as `enginefarm export` writes it"
        raise EnginefarmError(Reason.ARTIFACT_INVALID, f"{where} is not an engine's artifact", why=why, fix=fix)
    return sign_digests(identity.job, files, signer)


def sign_index(content: bytes, model: str, signer: Signer) -> bytes:
    """Sign a model's index document, as the only file of a folder, and return the bundle.

    Raises:
        EnginefarmError: as the signer.

    """
    return sign_digests(model, {INDEX: hashlib.sha256(content).hexdigest()}, signer)


def check_signature(
    folder: Path,
    bundles: Sequence[bytes],
    policy: Policy,
    model: str,
    now: datetime,
    *,
    digests: Mapping[str, str] | None = None,
) -> Trusted | None:
    """Say who vouches for the files of a folder as an engine of this model; null if the policy takes it unsigned.

    One good signature is enough; what others attach beside it spoils nothing. `digests`: SHA-256 of every file, hex,
    where they were computed just now, while the files were written.

    Raises:
        EnginefarmError: UNSIGNED, SIGNATURE_INVALID, IDENTITY_MISMATCH, SIGNER_UNKNOWN, KEY_EXPIRED, KEY_REVOKED,
            NAME_UNSAFE for what is no plain file, FETCH_FAILED where a keyless signature's Sigstore cannot be asked.

    """
    files: Mapping[str, str] = {}
    if bundles:
        files = folder_digests(folder) if digests is None else digests
    return check_files(files, read_manifest(folder), bundles, policy, model, now)


def check_files(
    files: Mapping[str, str], manifest: bytes, bundles: Sequence[bytes], policy: Policy, model: str, now: datetime
) -> Trusted | None:
    """Check by the SHA-256, hex, of all files of an artifact; else as `check_signature`. `manifest`: manifest.json."""
    if not bundles:
        if policy.unsigned is Unsigned.ALLOW:
            return None
        raise EnginefarmError(Reason.UNSIGNED, f"nobody has signed this engine of {model}")
    identity = _identity(manifest)
    if identity is not None and identity.model != model:
        what = f"the engine is one of {identity.model}, not of {model}"
        raise EnginefarmError(Reason.IDENTITY_MISMATCH, what)
    names = {model} if identity is None else {model, identity.job}
    return _first_trusted(bundles, _Subject(files=files, names=names), policy, model, now)


def check_index(content: bytes, bundles: Sequence[bytes], policy: Policy, model: str, now: datetime) -> Trusted | None:
    """Say who vouches for a model's index document; null if nobody has signed it and the policy takes that.

    Raises:
        EnginefarmError: as `check_signature`.

    """
    if not bundles:
        if policy.index is IndexRule.ANY:
            return None
        raise EnginefarmError(
            Reason.UNSIGNED, f"nobody has signed the list of engines of {model}", fix="push it again with --key"
        )
    subject = _Subject(files={INDEX: hashlib.sha256(content).hexdigest()}, names={model})
    return _first_trusted(bundles, subject, policy, model, now)


def folder_digests(folder: Path, besides: Collection[str] = ()) -> dict[str, str]:
    """Return SHA-256, hex, of every file of a folder by name; `besides`: names that are left out.

    Raises:
        EnginefarmError: NAME_UNSAFE for links, folders and names that are not plain; FILE_MISSING.

    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.name not in besides)
        for path in paths:
            if path.is_symlink() or not path.is_file() or not is_plain(path.name):
                what = f"{path.name!r} is no plain file"
                raise EnginefarmError(Reason.NAME_UNSAFE, what, where=str(folder), fix="take it out of the folder")
        return {path.name: durable.sha256_file(path) for path in paths}
    except OSError as error:
        raise EnginefarmError(Reason.FILE_MISSING, f"{folder} cannot be read", why=str(error)) from error


def _first_trusted(bundles: Sequence[bytes], subject: _Subject, policy: Policy, model: str, now: datetime) -> Trusted:
    if len(bundles) > _MOST_BUNDLES:
        what = f"{len(bundles)} signatures are attached; at most {_MOST_BUNDLES} are looked at"
        raise EnginefarmError(Reason.SIGNATURE_INVALID, what)
    errors = []
    for content in bundles:
        try:
            return _check(content, subject, policy, model, now)
        except EnginefarmError as error:
            errors.append(error)
    best = max(errors, key=lambda error: _ORDER.index(error.reason))
    if len(errors) > 1:
        others = [f"another signature: {error.what}" for error in errors if error is not best]
        best.why = "\n".join([*([best.why] if best.why else []), *others[:5]])
    raise best


def _check(content: bytes, subject: _Subject, policy: Policy, model: str, now: datetime) -> Trusted:
    bundle = read_bundle(content)
    _require_files(bundle.statement.files, subject.files)
    if bundle.statement.subject not in subject.names:
        wanted = " or ".join(sorted(subject.names))
        what = f"the signature is of {bundle.statement.subject!r}, not of {wanted}"
        raise EnginefarmError(Reason.IDENTITY_MISMATCH, what)
    rule = policy.rule_for(model)
    if rule is None:
        why = f"no rule of {policy.where} matches this model" if policy.where else "there is no policy"
        fix = None if policy.where else _NO_POLICY_FIX
        raise EnginefarmError(Reason.SIGNER_UNKNOWN, f"nobody is trusted to sign {model}", why=why, fix=fix)
    if bundle.kind is Kind.KEY:
        signer, key_id, signed_at = _by_key(bundle, subject, rule.keys, now)
    elif bundle.kind is Kind.CERTIFICATE:
        signer, key_id, signed_at = _by_certificate(bundle, subject, rule.certificates, policy, now)
    else:
        signer, key_id, signed_at = _by_identity(bundle, subject, rule.identities)
    policy.require_not_revoked(signer, key_id)
    return Trusted(signer=signer, key_id=key_id, signed_at=signed_at, host_code=rule.host_code)


def _require_files(signed: Mapping[str, str], present: Mapping[str, str]) -> None:
    faults = [f"{name} was changed" for name in sorted(signed) if present.get(name, signed[name]) != signed[name]]
    faults += [f"{name} is signed and missing" for name in sorted(set(signed) - set(present))]
    faults += [f"{name} is not signed" for name in sorted(set(present) - set(signed))]
    if faults:
        raise EnginefarmError(Reason.SIGNATURE_INVALID, "the files are not those signed", why="\n".join(faults[:20]))


_Found = tuple[str, str, datetime | None]


def _by_key(bundle: Bundle, subject: _Subject, keys: Sequence[TrustedKey], now: datetime) -> _Found:
    key = next((one for one in keys if one.hint == bundle.hint), None)
    if key is None:
        raise _unknown(f"a key whose public.pem has the SHA-256 {bundle.hint}", [one.name for one in keys])
    with tempfile.TemporaryDirectory(prefix="enginefarm-trust-") as folder:
        path = Path(folder) / "key.pem"
        path.write_bytes(key.pem)
        _verify(bundle, subject, lambda config: config.use_elliptic_key_verifier(public_key=path))
    key.validity.require(key.name, now)
    return key.name, key.key_id, None


def _by_certificate(
    bundle: Bundle, subject: _Subject, rules: Sequence[TrustedCertificate], policy: Policy, now: datetime
) -> _Found:
    from OpenSSL.crypto import X509StoreContextError  # noqa: PLC0415 - slow to import

    holder = trust_certificates.read_certificate(bundle.certificates[0])
    named = [one for one in rules if one.identity in holder.names]
    error = _unknown(" or ".join(sorted(holder.names)) or "nobody by name", [one.identity for one in rules])
    for one in named:
        try:
            with tempfile.TemporaryDirectory(prefix="enginefarm-trust-") as folder:
                path = Path(folder) / "ca.pem"
                path.write_bytes(one.authority)
                _verify(bundle, subject, partial(_use_authority, path))
        except X509StoreContextError as fault:
            error = trust_certificates.stranger(one.name, fault)
            continue
        # the library judges a chain by the day on which its first certificate began: no proof that it was signed then
        ids = trust_certificates.require_chain(bundle.certificates, one.authority, one.name, now)
        one.validity.require(one.name, now)
        for key_id in ids:
            policy.require_not_revoked(one.name, key_id)
        return one.name, holder.key_id, None
    raise error


def _by_identity(bundle: Bundle, subject: _Subject, rules: Sequence[TrustedIdentity]) -> _Found:
    holder = trust_certificates.read_certificate(bundle.certificates[0])
    for one in rules:
        if one.issuer == holder.issuer and one.subject in holder.names:
            _verify(bundle, subject, partial(_use_sigstore, one))
            # such a certificate lives for minutes, and the log proves that it was used within them
            one.validity.require(one.name, holder.not_before)
            return one.name, holder.key_id, holder.not_before
    names = " or ".join(sorted(holder.names)) or "nobody by name"
    raise _unknown(f"{names} (says {holder.issuer})", [f"{one.subject} ({one.issuer})" for one in rules])


def _use_authority(path: Path, config: verifying.Config) -> None:
    config.use_certificate_verifier(certificate_chain=[path])


def _use_sigstore(rule: TrustedIdentity, config: verifying.Config) -> None:
    try:
        config.use_sigstore_verifier(identity=rule.subject, oidc_issuer=rule.issuer, trust_config=rule.trust_config)
    except Exception as error:
        raise sigstore_away(error) from error


def _verify(bundle: Bundle, subject: _Subject, choose: Callable[[verifying.Config], object]) -> None:
    from model_signing import verifying  # noqa: PLC0415 - a third of a second
    from OpenSSL.crypto import X509StoreContextError  # noqa: PLC0415

    config = verifying.Config()  # type: ignore[no-untyped-call]  # it takes nothing and says so nowhere
    config.set_hashing_config(known_digests(bundle.statement.subject, subject.files))
    with tempfile.TemporaryDirectory(prefix="enginefarm-trust-") as folder:
        path = Path(folder) / "bundle.json"
        path.write_bytes(bundle.content)
        try:
            choose(config)
            config.verify(Path(folder), path)
        except (EnginefarmError, X509StoreContextError):
            raise
        except Exception as error:
            # whatever stops the library: what it has not verified is not signed
            why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            what = "the signature does not hold"
            raise EnginefarmError(Reason.SIGNATURE_INVALID, what, why=why) from error


def _unknown(who: str, known: Sequence[str]) -> EnginefarmError:
    why = f"the policy names {', '.join(known)} for it" if known else "the policy names nobody of this kind for it"
    return EnginefarmError(Reason.SIGNER_UNKNOWN, f"a stranger signed it: {who}", why=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Identity:
    model: str
    job: str
    engine_sha256: str


def read_manifest(folder: Path) -> bytes:
    """Read a folder's manifest.json; empty where there is none that can be read."""
    path = folder / _MANIFEST
    try:
        is_plain = path.is_file() and not path.is_symlink()
        return path.read_bytes() if is_plain and path.stat().st_size <= _LARGEST_MANIFEST else b""
    except OSError:
        return b""


def _identity(manifest: bytes) -> _Identity | None:
    """Read what a manifest says the engine is; null where it does not say it."""
    try:
        document: Any = json.loads(manifest)
        found = (document["recipe"]["name"], document["job"], document["engine"]["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not all(isinstance(one, str) for one in found):
        return None
    return _Identity(model=found[0], job=found[1], engine_sha256=found[2])
