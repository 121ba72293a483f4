"""Signatures of what is pushed: those that lie beside an engine in the store, and new ones where somebody signs."""

from __future__ import annotations

from dataclasses import dataclass

from builder import trust
from builder.signature_bundle import Kind, read_bundle
from builder.signatures import sign_entry, signature_name, signatures_of
from builder.signers import CertificateSigner, KeylessSigner, KeySigner, Signer, public_half
from builder.store import Entry, Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Who signs, if anybody does. Nothing is signed twice by the same signer."""

    store: Store
    signer: Signer | None

    def engine(self, entry: Entry) -> dict[str, bytes]:
        """Return the signatures of an engine by name; its signer's is made, and kept in the store, if it is missing.

        Raises:
            EnginefarmError: STORE_CORRUPT; as the signer.

        """
        found = signatures_of(self.store, entry)
        if self.signer is not None and not any(self.is_own(bundle) for bundle in found):
            found.append(sign_entry(self.store, entry, self.signer).bundle)
        return {signature_name(bundle): bundle for bundle in reversed(found)}

    def index(self, content: bytes, model: str) -> tuple[str, bytes] | None:
        """Sign the index of a model; null where nobody signs."""
        if self.signer is None:
            return None
        bundle = trust.sign_index(content, model, self.signer)
        return signature_name(bundle), bundle

    def is_own(self, bundle: bytes) -> bool:
        """Say whether a signature is by the signer's key; without a key every keyless one passes for their own."""
        match self.signer:
            case KeySigner(key=key, passphrase=passphrase):
                read = read_bundle(bundle)
                return read.kind is Kind.KEY and read.hint == public_half(key, passphrase).hint
            case CertificateSigner(certificate=certificate):
                read = read_bundle(bundle)
                return read.kind is Kind.CERTIFICATE and read.certificates[0] == _der(certificate.read_bytes())
            case KeylessSigner():
                return read_bundle(bundle).kind is Kind.KEYLESS
        return False


def _der(pem: bytes) -> bytes:
    from cryptography import x509  # noqa: PLC0415 - slow to import
    from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

    return x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
