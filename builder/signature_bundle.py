"""Reads signature bundles before anything else does: small, of the one form that is taken, and naming plain files only.

A bundle comes from whoever holds the registry. What passes here is written anew for the library that verifies it, so
that both see the same statement.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from builder.errors import EnginefarmError, Reason

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
SUFFIX = ".sigstore.json"
LARGEST_BUNDLE = 1 << 20
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MOST_FILES = 256
_MOST_CERTIFICATES = 8
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")


class Kind(Enum):
    """How a bundle says who signed it."""

    KEY = "publicKey"
    CERTIFICATE = "x509CertificateChain"
    KEYLESS = "certificate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What was signed. `subject`: the name given to it; `files`: SHA-256 of every file, hex, by name."""

    subject: str
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was read and not verified. `hint`: which key it says; `certificates`: DER, the signer's first.

    Neither is trusted: they choose among what the policy names. `content`: for the library, free of all else.
    """

    kind: Kind
    statement: Statement
    hint: str | None
    certificates: tuple[bytes, ...]
    content: bytes


def read_bundle(content: bytes) -> Bundle:
    """Read a sigstore bundle with a statement of model-signing.

    Raises:
        EnginefarmError: SIGNATURE_INVALID.

    """
    if len(content) > LARGEST_BUNDLE:
        raise broken(f"it is {len(content)} bytes long, at most {LARGEST_BUNDLE} are read")
    try:
        return _bundle(_json(content, "the bundle"))
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise broken(f"not a bundle of this form: {error!r}") from error
    except (ValueError, binascii.Error, RecursionError) as error:
        raise broken(str(error) or type(error).__name__) from error


def broken(why: str) -> EnginefarmError:
    """Make the error of a bundle that is none."""
    return EnginefarmError(Reason.SIGNATURE_INVALID, "the signature cannot be read", why=why)


def _bundle(document: dict[str, Any]) -> Bundle:
    _only(document, "the bundle", "mediaType", "verificationMaterial", "dsseEnvelope")
    if document["mediaType"] != MEDIA_TYPE:
        msg = f"media type {document['mediaType']!r} instead of {MEDIA_TYPE}"
        raise ValueError(msg)
    envelope = document["dsseEnvelope"]
    _only(envelope, "the envelope", "payload", "payloadType", "signatures")
    if envelope["payloadType"] != PAYLOAD_TYPE:
        msg = f"payload type {envelope['payloadType']!r} instead of {PAYLOAD_TYPE}"
        raise ValueError(msg)
    # a second signature would be looked at by nobody: several signers make several bundles
    if len(envelope["signatures"]) != 1:
        msg = f"it holds {len(envelope['signatures'])} signatures instead of one"
        raise ValueError(msg)
    (signature,) = envelope["signatures"]
    _only(signature, "the signature", "sig", "keyid")
    payload = _decode(envelope["payload"])
    material = document["verificationMaterial"]
    kind, hint, certificates = _material(material)
    clean = {
        "mediaType": MEDIA_TYPE,
        # the log's entries prove when a keyless signature was made; beside a key or a chain they prove nothing
        "verificationMaterial": material if kind is Kind.KEYLESS else {kind.value: material[kind.value]},
        "dsseEnvelope": {
            "payload": _encode(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": _encode(_decode(signature["sig"])), "keyid": signature.get("keyid") or ""}],
        },
    }
    return Bundle(
        kind=kind,
        statement=_statement(_json(payload, "the statement")),
        hint=hint,
        certificates=certificates,
        content=json.dumps(clean).encode(),
    )


def _material(material: dict[str, Any]) -> tuple[Kind, str | None, tuple[bytes, ...]]:
    _only(material, "its material", *(kind.value for kind in Kind), "tlogEntries", "timestampVerificationData")
    kinds = [kind for kind in Kind if kind.value in material]
    if len(kinds) != 1:
        msg = f"it names {len(kinds)} kinds of signers instead of one"
        raise ValueError(msg)
    (kind,) = kinds
    signer = material[kind.value]
    if kind is Kind.KEY:
        _only(signer, "its key", "hint")
        if not _HEX.fullmatch(signer["hint"]):
            msg = f"{signer['hint']!r} is no digest of a key"
            raise ValueError(msg)
        return kind, signer["hint"], ()
    if kind is Kind.KEYLESS:
        _only(signer, "its certificate", "rawBytes")
        return kind, None, (_decode(signer["rawBytes"]),)
    _only(signer, "its certificates", "certificates")
    chain = signer["certificates"]
    if not 0 < len(chain) <= _MOST_CERTIFICATES:
        msg = f"it brings {len(chain)} certificates; 1 to {_MOST_CERTIFICATES} are taken"
        raise ValueError(msg)
    for one in chain:
        _only(one, "a certificate", "rawBytes")
    return kind, None, tuple(_decode(one["rawBytes"]) for one in chain)


def _statement(document: dict[str, Any]) -> Statement:
    for name, wanted in (("_type", _STATEMENT_TYPE), ("predicateType", _PREDICATE_TYPE)):
        if document[name] != wanted:
            msg = f"{name} {document[name]!r} instead of {wanted}"
            raise ValueError(msg)
    (subject,) = document["subject"]
    serialization = document["predicate"]["serialization"]
    if (serialization["method"], serialization["hash_type"]) != ("files", "sha256"):
        msg = f"digests of {serialization['method']!r} by {serialization['hash_type']!r}; SHA-256 of files is taken"
        raise ValueError(msg)
    files = _files(document["predicate"]["resources"])
    root = hashlib.sha256(b"".join(bytes.fromhex(digest) for digest in files.values())).hexdigest()
    if subject["digest"] != {"sha256": root}:
        msg = f"the statement contradicts itself: its files make {root}"
        raise ValueError(msg)
    if not isinstance(subject["name"], str):
        msg = f"{subject['name']!r} is no name"
        raise TypeError(msg)
    return Statement(subject=subject["name"], files=files)


def _files(resources: Sequence[dict[str, Any]]) -> dict[str, str]:
    if len(resources) > _MOST_FILES:
        msg = f"it names {len(resources)} files; at most {_MOST_FILES} are taken"
        raise ValueError(msg)
    files: dict[str, str] = {}
    for resource in resources:
        name, digest = resource["name"], resource["digest"]
        if not is_plain(name):
            msg = f"it names {name!r}, which is no plain file of a folder"
            raise ValueError(msg)
        if name in files:
            msg = f"it names {name} twice"
            raise ValueError(msg)
        if resource["algorithm"] != "sha256" or not _HEX.fullmatch(digest):
            msg = f"it has no SHA-256 of {name}"
            raise ValueError(msg)
        files[name] = digest
    return files


def is_plain(name: str) -> bool:
    """Say whether a name means a file right in a folder: letters, digits and `._+-`, no dot in front."""
    return _NAME.fullmatch(name) is not None


def _only(document: Mapping[str, Any], what: str, *known: str) -> None:
    unknown = sorted(set(document) - set(known))
    if unknown:
        msg = f"{what} holds {', '.join(map(repr, unknown))}, which nobody knows"
        raise ValueError(msg)


def _json(content: bytes, what: str) -> dict[str, Any]:
    document = json.loads(content.decode(), object_pairs_hook=_once)
    if not isinstance(document, dict):
        msg = f"{what} is no object"
        raise TypeError(msg)
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        msg = "a name is given twice"
        raise ValueError(msg)
    return document


def _decode(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii"), validate=True)


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
