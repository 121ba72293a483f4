"""Who may sign which models, as data. `builder.policy` reads it from policy.toml."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path

from builder.errors import EnginefarmError, Reason


class Unsigned(str, Enum):
    """What becomes of an engine that nobody has signed."""

    REFUSE = "refuse"
    ALLOW = "allow"


class IndexRule(str, Enum):
    """Whether a registry's list of a model's engines must be signed as well."""

    ANY = "any"
    SIGNED = "signed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """From when until when; null is without end."""

    not_before: datetime | None = None
    not_after: datetime | None = None

    def require(self, signer: str, moment: datetime) -> None:
        """Refuse a moment outside.

        Raises:
            EnginefarmError: KEY_EXPIRED, also where the time has not yet come.

        """
        if self.not_before is not None and moment < self.not_before:
            why = f"it is valid from {self.not_before:%Y-%m-%d %H:%M} UTC, and it is {moment:%Y-%m-%d %H:%M}"
            raise EnginefarmError(Reason.KEY_EXPIRED, f"the key of {signer} is not valid yet", why=why)
        if self.not_after is not None and moment > self.not_after:
            why = f"it was valid until {self.not_after:%Y-%m-%d %H:%M} UTC, and it is {moment:%Y-%m-%d %H:%M}"
            raise EnginefarmError(Reason.KEY_EXPIRED, f"the key of {signer} has expired", why=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A public key that may sign. `key_id`: see `builder.keys`; `hint`: what bundles call it; `pem`: the key."""

    name: str
    key_id: str
    hint: str
    pem: bytes
    validity: Validity


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedCertificate:
    """An authority, in PEM, that may name signers, and the one it must name: e-mail, URI or DNS name."""

    name: str
    authority: bytes
    identity: str
    validity: Validity


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedIdentity:
    """Somebody who signs without keys. `trust_config`: of a Sigstore of one's own; null asks the public one."""

    name: str
    issuer: str
    subject: str
    trust_config: Path | None
    validity: Validity


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may sign the models that a glob matches. `host_code`: whether their engines may bring code for the host."""

    models: tuple[str, ...]
    keys: tuple[TrustedKey, ...] = ()
    certificates: tuple[TrustedCertificate, ...] = ()
    identities: tuple[TrustedIdentity, ...] = ()
    host_code: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is trusted. Without a file: nobody, and nothing unsigned.

    `revoked`: ids of keys that nothing makes good again, and why. `where`: the file, for messages.
    """

    rules: tuple[Rule, ...] = ()
    unsigned: Unsigned = Unsigned.REFUSE
    index: IndexRule = IndexRule.ANY
    revoked: Mapping[str, str] = field(default_factory=dict)
    where: str | None = None

    def rule_for(self, model: str) -> Rule | None:
        """Return the first rule with a glob that matches the model: it alone decides."""
        return next((rule for rule in self.rules if any(fnmatchcase(model, glob) for glob in rule.models)), None)

    def require_not_revoked(self, signer: str, key_id: str) -> None:
        """Refuse a key that was revoked.

        Raises:
            EnginefarmError: KEY_REVOKED.

        """
        if key_id in self.revoked:
            why = f"{key_id}: {self.revoked[key_id]}"
            raise EnginefarmError(Reason.KEY_REVOKED, f"the key of {signer} was revoked", why=why)
