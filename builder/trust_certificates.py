"""What certificates say: whom they name, whose keys they hold, and whether a chain of them holds at a moment."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from builder.errors import EnginefarmError, Reason

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

# issuer of a keyless certificate, as text; the older one holds it bare
_ISSUER, _OLD_ISSUER = "1.3.6.1.4.1.57264.1.8", "1.3.6.1.4.1.57264.1.1"
_OUT_OF_TIME = {9, 10}


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a certificate says of its holder: `names` (e-mail, URI, DNS), `issuer` where it is a keyless one."""

    names: frozenset[str]
    issuer: str | None
    key_id: str
    not_before: datetime


def read_certificate(der: bytes) -> Named:
    """Read a certificate that nobody has verified.

    Raises:
        EnginefarmError: SIGNATURE_INVALID.

    """
    from cryptography import x509  # noqa: PLC0415 - slow to import

    try:
        certificate = x509.load_der_x509_certificate(der)
        return Named(
            names=_names(certificate),
            issuer=_issuer(certificate),
            key_id=_key_id(certificate),
            not_before=certificate.not_valid_before_utc,
        )
    except Exception as error:
        what = "the signature brings a certificate that cannot be read"
        raise EnginefarmError(Reason.SIGNATURE_INVALID, what, why=str(error)) from error


def require_chain(certificates: Sequence[bytes], authority: bytes, signer: str, now: datetime) -> tuple[str, ...]:
    """Require that a chain of certificates, DER, the signer's first, leads to an authority, PEM, and holds now.

    Returns the ids of the keys on the way, the authority's included.

    Raises:
        EnginefarmError: KEY_EXPIRED, SIGNER_UNKNOWN.

    """
    from cryptography import x509  # noqa: PLC0415 - slow to import
    from OpenSSL import crypto  # noqa: PLC0415

    store = crypto.X509Store()
    for one in x509.load_pem_x509_certificates(authority):
        store.add_cert(crypto.X509.from_cryptography(one))
    store.set_time(now.astimezone(timezone.utc))
    leaf, *others = (crypto.X509.from_cryptography(x509.load_der_x509_certificate(one)) for one in certificates)
    try:
        chain = crypto.X509StoreContext(store, leaf, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        if error.errors and error.errors[0] in _OUT_OF_TIME:
            what = f"the certificate of {signer} is not valid now"
            raise EnginefarmError(Reason.KEY_EXPIRED, what, why=str(error)) from error
        raise stranger(signer, error) from error
    return tuple(_key_id(one.to_cryptography()) for one in chain)


def why_no_signer(pem: bytes) -> str | None:
    """Say why signatures by a certificate would always be refused; null where nothing speaks against it.

    Raises:
        ValueError: it is no certificate.

    """
    from cryptography import x509  # noqa: PLC0415 - slow to import
    from cryptography.x509.oid import ExtendedKeyUsageOID  # noqa: PLC0415

    certificate = x509.load_pem_x509_certificate(pem)
    if not _names(certificate):
        return "it names nobody: no e-mail address, URI or DNS name in subjectAltName"
    usage = [one.value for one in certificate.extensions]
    signs = any(isinstance(one, x509.KeyUsage) and one.digital_signature for one in usage)
    signs |= any(isinstance(one, x509.ExtendedKeyUsage) and ExtendedKeyUsageOID.CODE_SIGNING in one for one in usage)
    return None if signs else "it has neither digitalSignature in keyUsage nor codeSigning in extendedKeyUsage"


def stranger(signer: str, error: Exception) -> EnginefarmError:
    """Make the error of a certificate that does not come from the authority that the policy names."""
    what = f"the certificate does not come from the authority named for {signer}"
    return EnginefarmError(Reason.SIGNER_UNKNOWN, what, why=str(error))


def _names(certificate: Certificate) -> frozenset[str]:
    from cryptography import x509  # noqa: PLC0415 - slow to import

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return frozenset()
    kinds = (x509.RFC822Name, x509.UniformResourceIdentifier, x509.DNSName)
    return frozenset(str(name) for kind in kinds for name in names.get_values_for_type(kind))


def _issuer(certificate: Certificate) -> str | None:
    from cryptography import x509  # noqa: PLC0415 - slow to import

    found = {one.oid.dotted_string: one.value for one in certificate.extensions}
    for oid, head in ((_ISSUER, 2), (_OLD_ISSUER, 0)):
        value = found.get(oid)
        if isinstance(value, x509.UnrecognizedExtension):
            # the newer one is a DER string of less than 128 bytes: two bytes in front
            return value.value[head:].decode()
    return None


def _key_id(certificate: Certificate) -> str:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - slow to import

    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der = certificate.public_key().public_bytes(serialization.Encoding.DER, form)
    return hashlib.sha256(der).hexdigest()
