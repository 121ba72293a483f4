"""Keys, authorities and signed folders for tests of trust."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from builder.errors import EnginefarmError
from builder.keys import describe_public_key
from builder.policy_rules import Policy, Rule, TrustedCertificate, TrustedKey, Validity
from builder.signers import CertificateSigner, KeySigner
from builder.trust import check_signature, sign_folder
from tests.artifacts import refusal
from tests.engines import engine_bytes, key_document, manifest

NOW = datetime(2026, 11, 21, 12, tzinfo=timezone.utc)
DAY = timedelta(days=1)
MODEL = "tiny"
Json = dict[str, Any]


@cache
def private_key(name: str) -> ec.EllipticCurvePrivateKey:
    """Make a key of its own for every name."""
    assert name
    return ec.generate_private_key(ec.SECP256R1())


def private_pem(name: str) -> bytes:
    """Write it as the farm does."""
    return private_key(name).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_pem(name: str) -> bytes:
    """Write its public half."""
    return (
        private_key(name)
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def key_signer(folder: Path, name: str = "alice") -> KeySigner:
    """Sign with the key of this name."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.pem"
    path.write_bytes(private_pem(name))
    return KeySigner(key=path)


def trusted_key(name: str = "alice", **validity: Any) -> TrustedKey:
    """Trust the key of this name."""
    public = describe_public_key(public_pem(name))
    return TrustedKey(name=name, key_id=public.key_id, hint=public.hint, pem=public.pem, validity=Validity(**validity))


def policy_of(*keys: TrustedKey, **changes: Any) -> Policy:
    """Trust these keys for all models."""
    return Policy(**{"rules": (Rule(models=("*",), keys=keys),), "where": "policy.toml", **changes})


def engine_folder(folder: Path, model: str = MODEL) -> Path:
    """Write the files of an engine's artifact."""
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(engine_bytes(model, "fp16", 0))
    (folder / "manifest.json").write_text(manifest(model).to_json(), encoding="utf-8")
    (folder / "key.json").write_text(json.dumps(key_document(model, "fp16")), encoding="utf-8")
    return folder


@dataclass
class Artifact:
    """A folder and its signature, both to be tampered with."""

    folder: Path
    bundle: bytes

    def change(self, change: Callable[[Json], object]) -> None:
        """Change the bundle as a document; the signature stays as it is."""
        document = json.loads(self.bundle)
        change(document)
        self.bundle = json.dumps(document).encode()

    def resign(self, change: Callable[[Json], object], name: str = "alice") -> None:
        """Change the statement and sign it anew, as somebody with the key could."""
        document = json.loads(self.bundle)
        envelope = document["dsseEnvelope"]
        statement = json.loads(base64.b64decode(envelope["payload"]))
        change(statement)
        payload = json.dumps(statement).encode()
        envelope["payload"] = base64.b64encode(payload).decode()
        framed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
        signature = private_key(name).sign(framed, ec.ECDSA(hashes.SHA256()))
        envelope["signatures"] = [{"sig": base64.b64encode(signature).decode()}]
        self.bundle = json.dumps(document).encode()


def signed_artifact(tmp_path: Path, name: str = "alice", model: str = MODEL) -> Artifact:
    """Make an artifact that is signed as it should be."""
    folder = engine_folder(tmp_path / model, model)
    return Artifact(folder=folder, bundle=sign_folder(folder, key_signer(tmp_path / "keys", name)))


def reseal(statement: Json) -> None:
    """Make the root digest of a changed statement fit again."""
    digests = b"".join(bytes.fromhex(one["digest"]) for one in statement["predicate"]["resources"])
    statement["subject"][0]["digest"]["sha256"] = hashlib.sha256(digests).hexdigest()


@dataclass(frozen=True)
class Authority:
    """A certificate authority with the files of one who was certified."""

    pem: bytes
    signer: CertificateSigner

    def trust(self, identity: str = "ci@example.org", **validity: Any) -> TrustedCertificate:
        """Trust it to name somebody."""
        return TrustedCertificate(name="builders", authority=self.pem, identity=identity, validity=Validity(**validity))


def authority(
    folder: Path,
    name: str = "authority",
    *,
    begins: datetime = NOW - DAY,
    days: int = 30,
    issuer: str | None = None,
    named: bool = True,
    signs: bool = True,
) -> Authority:
    """Make an authority, one between, and a certificate of ci@example.org. `issuer`: as keyless ones name it.

    `named`, `signs`: whether the certificate says whose it is, and that it is for signatures.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root = _certificate(name, name, NOW - 900 * DAY, 2000, authority_for=1)
    between = _certificate(f"{name}-between", name, NOW - 900 * DAY, 2000, authority_for=0)
    to_sign: dict[str, Any] = {"authority_for": None, "says": issuer, "named": named, "signs": signs}
    leaf = _certificate(f"{name}-leaf", f"{name}-between", begins, days, **to_sign)
    paths = {label: folder / f"{name}-{label}.pem" for label in ("leaf", "between", "key")}
    paths["leaf"].write_bytes(leaf)
    paths["between"].write_bytes(between)
    paths["key"].write_bytes(private_pem(f"{name}-leaf"))
    signer = CertificateSigner(key=paths["key"], certificate=paths["leaf"], chain=(paths["between"],))
    return Authority(pem=root, signer=signer)


def _certificate(
    name: str,
    issuer: str,
    begins: datetime,
    days: int,
    *,
    authority_for: int | None,
    says: str | None = None,
    named: bool = True,
    signs: bool = True,
) -> bytes:
    is_authority = authority_for is not None
    usage = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"),
        False,
    )  # fmt: skip
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(private_key(name).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + days * DAY)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=authority_for), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=signs and not is_authority, key_cert_sign=is_authority, crl_sign=is_authority, **usage
            ),
            critical=True,
        )
    )
    if named and not is_authority:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.RFC822Name("ci@example.org")]), critical=False
        )
    if says is not None:
        text = b"\x0c" + bytes([len(says)]) + says.encode()
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), text)
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(private_key(issuer), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def refused(artifact: Artifact, policy: Policy | None = None, model: str = MODEL) -> EnginefarmError:
    """Check an artifact that must not pass."""
    trusting = policy or policy_of(trusted_key())
    return refusal(lambda: check_signature(artifact.folder, [artifact.bundle], trusting, model, NOW))


def flip(path: Path, place: int) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


def envelope(document: Json) -> Json:
    """Find the envelope of a bundle."""
    found: Json = document["dsseEnvelope"]
    return found


def flipped(text: str) -> str:
    """Change one bit of what Base64 stands for."""
    content = bytearray(base64.b64decode(text))
    content[len(content) // 2] ^= 1
    return base64.b64encode(bytes(content)).decode()
