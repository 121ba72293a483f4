"""How signatures are made: with a key, with a key and its certificates, or with an identity and no key at all."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from builder.errors import EnginefarmError, Reason
from builder.keys import PublicKey, describe_public_key, find_key, list_keys, revocation_list
from builder.policy import Policy, Validity, read_revocations
from builder.project import Home
from builder.trust_certificates import why_no_signer

if TYPE_CHECKING:
    from model_signing import hashing, signing

# names of variables, which hold what must not stand on a command line
PASSPHRASE = "ENGINEFARM_KEY_PASSPHRASE"  # noqa: S105
TOKEN = "ENGINEFARM_IDENTITY_TOKEN"  # noqa: S105


class Signer(Protocol):
    """Something that can sign: it tells model-signing how."""

    def prepare(self, config: signing.Config) -> None:
        """Choose the kind of signature.

        Raises:
            EnginefarmError: POLICY_INVALID, FETCH_FAILED.

        """


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySigner:
    """Signs with a private key in PEM."""

    key: Path
    passphrase: bytes | None = None

    def prepare(self, config: signing.Config) -> None:
        """Load the key."""
        public_half(self.key, self.passphrase)
        # the library says text and hands it to a function that wants bytes
        config.use_elliptic_key_signer(private_key=self.key, password=cast("str | None", self.passphrase))


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSigner:
    """Signs with a private key, without a passphrase, that an authority vouches for."""

    key: Path
    certificate: Path
    chain: Sequence[Path] = ()

    def prepare(self, config: signing.Config) -> None:
        """Load key and certificates."""
        public_half(self.key, None)
        _require_fit(self.certificate)
        # an empty chain would not be PEM; the certificate itself may stand in it
        chain = list(self.chain) or [self.certificate]
        try:
            config.use_certificate_signer(
                private_key=self.key, signing_certificate=self.certificate, certificate_chain=chain
            )
        except (OSError, ValueError) as error:
            raise _unusable(self.certificate, str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class KeylessSigner:
    """Signs with an identity that a Sigstore certifies for minutes, as CI jobs have one. Needs a network.

    `token`: an identity token; null takes that of the surroundings, as CI services offer it.
    `trust_config`: of a Sigstore of one's own; null means the public one.
    """

    token: str | None = None
    trust_config: Path | None = None

    def prepare(self, config: signing.Config) -> None:
        """Ask the Sigstore what it trusts."""
        try:
            config.use_sigstore_signer(
                identity_token=self.token,
                use_ambient_credentials=self.token is None,
                trust_config=self.trust_config,
                force_oob=True,
            )
        except Exception as error:
            raise sigstore_away(error) from error


def sign_digests(name: str, files: Mapping[str, str], signer: Signer) -> bytes:
    """Sign files by their SHA-256, hex, under a name, and return the bundle.

    Raises:
        EnginefarmError: POLICY_INVALID for a key that cannot sign, FETCH_FAILED without the network that it takes.

    """
    from model_signing import signing  # noqa: PLC0415 - a third of a second

    config = signing.Config()  # type: ignore[no-untyped-call]  # it takes nothing and says so nowhere
    config.set_hashing_config(known_digests(name, files))
    signer.prepare(config)
    with tempfile.TemporaryDirectory(prefix="enginefarm-sign-") as folder:
        path = Path(folder) / "bundle.json"
        try:
            config.sign(Path(folder), path)
        except Exception as error:
            if isinstance(signer, KeylessSigner):
                raise sigstore_away(error) from error
            raise
        return path.read_bytes()


def known_digests(name: str, files: Mapping[str, str]) -> hashing.Config:
    """Tell model-signing what files hold, where that is known: they are read once, whoever signs or signed them."""
    from model_signing import hashing, manifest  # noqa: PLC0415 - a third of a second
    from model_signing._hashing.hashing import Digest  # noqa: PLC0415 - part of what manifests are made of

    form = manifest.SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False})
    items = [form.new_item(file, Digest("sha256", bytes.fromhex(files[file]))) for file in sorted(files)]
    made = manifest.Manifest(name, items, form)

    class Known(hashing.Config):
        def hash(self, model_path: object, *, files_to_hash: object = None) -> manifest.Manifest:  # noqa: ARG002
            return made

    return Known()  # type: ignore[no-untyped-call]  # as above


def sigstore_away(error: Exception) -> EnginefarmError:
    """Make the error of a Sigstore that cannot be asked."""
    return EnginefarmError(
        Reason.FETCH_FAILED,
        "the Sigstore does not do its part",
        why=f"{type(error).__name__}: {error}",
        fix="keyless signatures need a network, or a Sigstore of your own (trust_config); keys and certificates do not",
    )


def own_signer(home: Home, key: str, passphrase: bytes | None, now: datetime) -> KeySigner:
    """Sign with the key in a file, or with the current key of this name among those of this machine.

    Raises:
        EnginefarmError: NAME_UNKNOWN, POLICY_INVALID for a key that cannot sign, KEY_EXPIRED, KEY_REVOKED: nobody would
            take what it signs.

    """
    path = key_file(home, key)
    public = public_half(path, passphrase)
    validity = next((one.validity for one in list_keys(home) if one.key_id == public.key_id), Validity())
    validity.require(key, now)
    listed = revocation_list(home)
    revoked = read_revocations(listed) if listed.exists() else {}
    Policy(revoked=revoked).require_not_revoked(key, public.key_id)
    return KeySigner(key=path, passphrase=passphrase)


def key_file(home: Home, key: str) -> Path:
    """Find a private key: a file, or the current key of a name.

    Raises:
        EnginefarmError: NAME_UNKNOWN.

    """
    return Path(key) if Path(key).is_file() else find_key(home, key).private


def public_half(path: Path, passphrase: bytes | None) -> PublicKey:
    """Read the public half of a private key.

    Raises:
        EnginefarmError: POLICY_INVALID.

    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - slow to import
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    try:
        key = serialization.load_pem_private_key(path.read_bytes(), passphrase).public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return describe_public_key(key.public_bytes(serialization.Encoding.PEM, form))
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _unusable(path, _why_not(error)) from error


def _require_fit(certificate: Path) -> None:
    """Refuse to sign with a certificate whose signatures no check would take."""
    try:
        why = why_no_signer(certificate.read_bytes())
    except (OSError, ValueError) as error:
        raise _unusable(certificate, str(error)) from error
    if why is not None:
        what, fix = "nobody would take a signature by this certificate", "ask the authority for one that does"
        raise EnginefarmError(Reason.POLICY_INVALID, what, where=str(certificate), why=why, fix=fix)


def _unusable(path: Path, why: str) -> EnginefarmError:
    fix = f"name a private key as `enginefarm keys generate` makes them; ${PASSPHRASE} holds its passphrase"
    return EnginefarmError(Reason.POLICY_INVALID, "the key cannot sign", where=str(path), why=why, fix=fix)


def _why_not(error: Exception) -> str:
    text = str(error)
    if "not given but private key is encrypted" in text:
        return "it has a passphrase, and none was given"
    if "given but private key is not encrypted" in text:
        return "a passphrase was given, and it has none"
    if "password" in text:
        return "the passphrase is wrong"
    return text.splitlines()[0] if text else type(error).__name__
