"""How signatures are made: with a key, with a key and its certificates, or with an identity and no key at all."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from builder.errors import EnginefarmError, Reason

if TYPE_CHECKING:
    from model_signing import hashing, signing

TOKEN = "ENGINEFARM_IDENTITY_TOKEN"  # noqa: S105 - the name of a variable


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
        # the library says text and hands it to a function that wants bytes
        password = cast("str | None", self.passphrase)
        try:
            config.use_elliptic_key_signer(private_key=self.key, password=password)
        except OSError as error:
            raise _unusable(self.key, str(error)) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise _unusable(self.key, _why_not(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateSigner:
    """Signs with a private key, without a passphrase, that an authority vouches for."""

    key: Path
    certificate: Path
    chain: Sequence[Path] = ()

    def prepare(self, config: signing.Config) -> None:
        """Load key and certificates."""
        try:
            # an empty chain would not be PEM; the certificate itself may stand in it
            chain = list(self.chain) or [self.certificate]
            config.use_certificate_signer(
                private_key=self.key, signing_certificate=self.certificate, certificate_chain=chain
            )
        except OSError as error:
            raise _unusable(self.key, str(error)) from error
        except (ValueError, TypeError, AttributeError) as error:
            raise _unusable(self.key, _why_not(error)) from error


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

    config = signing.Config().set_hashing_config(known_digests(name, files))
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

    return Known()


def sigstore_away(error: Exception) -> EnginefarmError:
    """Make the error of a Sigstore that cannot be asked."""
    return EnginefarmError(
        Reason.FETCH_FAILED,
        "the Sigstore does not do its part",
        why=f"{type(error).__name__}: {error}",
        fix="keyless signatures need a network, or a Sigstore of your own (trust_config); keys and certificates do not",
    )


def _unusable(path: Path, why: str) -> EnginefarmError:
    fix = "name a private key as `enginefarm keys generate` makes them"
    return EnginefarmError(Reason.POLICY_INVALID, "the key cannot sign", where=str(path), why=why, fix=fix)


def _why_not(error: Exception) -> str:
    text = str(error)
    if "not given but private key is encrypted" in text:
        return "it has a passphrase, and none was given"
    if "given but private key is not encrypted" in text:
        return "a passphrase was given, and it has none"
    if isinstance(error, AttributeError):
        return "it is no key on the curves P-256, P-384 or P-521"
    return text.splitlines()[0] if text else type(error).__name__
