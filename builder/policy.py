"""Reads policy.toml and revocation lists. Every problem is reported at once, with its line."""

from __future__ import annotations

import os
import re
import shlex
import stat
import sys
from collections.abc import Sequence
from datetime import date, datetime, time, timezone
from pathlib import Path
from typing import Annotated, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError
from pydantic_core import ErrorDetails

from builder.errors import EnginefarmError, ErrorGroup, Reason
from builder.keys import describe_public_key, revocation_list
from builder.policy_rules import (
    IndexRule,
    Policy,
    Rule,
    TrustedCertificate,
    TrustedIdentity,
    TrustedKey,
    Unsigned,
    Validity,
)
from builder.project import find_home
from builder.targets import suggestion
from builder.toml_places import Step, locate

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["FILE", "VARIABLE", "IndexRule", "Policy", "Rule", "Unsigned", "Validity", "load_policy", "read_revocations"]

FILE = "policy.toml"
VARIABLE = "ENGINEFARM_POLICY"
_LARGEST = 1 << 20


def _moment(value: object, end: time) -> datetime:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            msg = f"{value.isoformat()} lacks its time zone: write {value.isoformat()}Z for UTC"
            raise ValueError(msg)
        try:
            return value.astimezone(timezone.utc)
        except OverflowError:
            msg = f"{value.isoformat()} lies beyond the calendar in UTC"
            raise ValueError(msg) from None
    if isinstance(value, date):
        return datetime.combine(value, end, timezone.utc)
    msg = "must be a date without quotes, such as 2027-01-31"
    raise ValueError(msg)


# a date alone counts whole: from its first to its last moment in UTC
_Start = Annotated[datetime, BeforeValidator(lambda value: _moment(value, time.min))]
_End = Annotated[datetime, BeforeValidator(lambda value: _moment(value, time.max))]
_Text = Annotated[str, StringConstraints(min_length=1)]
_KeyId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Signer(_Part):
    name: _Text
    not_before: _Start | None = None
    not_after: _End | None = None

    @property
    def validity(self) -> Validity:
        return Validity(not_before=self.not_before, not_after=self.not_after)


class _Key(_Signer):
    file: str | None = None
    pem: str | None = None


class _Certificate(_Signer):
    ca: _Text
    identity: _Text


class _Identity(_Signer):
    issuer: _Text
    subject: _Text
    trust_config: str | None = None


class _Rule(_Part):
    models: list[_Text] = Field(min_length=1)
    host_code: bool = Field(default=False, strict=True)
    keys: list[_Key] = Field(default_factory=list)
    certificates: list[_Certificate] = Field(default_factory=list)
    identities: list[_Identity] = Field(default_factory=list)


class _PolicyFile(_Part):
    unsigned: Unsigned = Unsigned.REFUSE
    index: IndexRule = IndexRule.ANY
    revoked: list[_KeyId] = Field(default_factory=list)
    revocation_lists: list[_Text] = Field(default_factory=list)
    rules: list[_Rule] = Field(default_factory=list)


class _Revocation(_Part):
    key: _KeyId
    why: _Text
    at: _Start | None = None


class _RevocationFile(_Part):
    revoked: list[_Revocation] = Field(default_factory=list)


_Model = TypeVar("_Model", bound=BaseModel)


def load_policy(path: Path | None = None) -> Policy:
    """Read the policy: the file given, $ENGINEFARM_POLICY or policy.toml of the farm's home; else trust nobody.

    What `enginefarm keys revoke` has revoked on this machine counts with every policy.

    Raises:
        EnginefarmError: POLICY_INVALID, holding every problem.

    """
    home = find_home()
    named = path or (Path(value) if (value := os.environ.get(VARIABLE)) else None)
    listed = revocation_list(home)
    own = read_revocations(listed) if listed.exists() else {}
    if named is None and not (home.root / FILE).exists():
        return Policy(revoked=own)
    policy = _File(named or home.root / FILE).policy()
    return Policy(
        rules=policy.rules,
        unsigned=policy.unsigned,
        index=policy.index,
        revoked={**own, **policy.revoked},
        where=policy.where,
    )


def read_revocations(path: Path) -> dict[str, str]:
    """Read a revocation list: ids of keys and why.

    Raises:
        EnginefarmError: POLICY_INVALID.

    """
    file = _File(path)
    parsed = file.parse(_RevocationFile)
    return {one.key: one.why for one in parsed.revoked}


class _File:
    """A TOML file with its text at hand, so that problems have lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = _read(path)
        self._errors: list[EnginefarmError] = []

    def parse(self, model: type[_Model]) -> _Model:
        try:
            content = tomllib.loads(self._text)
        except tomllib.TOMLDecodeError as error:
            what, _, place = str(error).partition(" (at ")
            digits = re.findall(r"[0-9]+", place) or [str(len(self._text.splitlines())), "1"]
            raise _invalid(f"not TOML: {what}", f"{self._path}:{digits[0]}:{digits[-1]}") from error
        except (ValueError, RecursionError) as error:
            # numbers too long and lists too deep for the reader, which does not say where
            raise _invalid(f"cannot be read as TOML: {error}", f"{self._path}:1:1") from error
        try:
            return model.model_validate(content)
        except ValidationError as error:
            self._errors += [self._translate(item, model) for item in error.errors()]
            self._raise()
            raise AssertionError from error

    def policy(self) -> Policy:
        parsed = self.parse(_PolicyFile)
        rules = tuple(self._rule(rule, index) for index, rule in enumerate(parsed.rules))
        revoked = dict.fromkeys(parsed.revoked, f"listed in {self._path}")
        for index, name in enumerate(parsed.revocation_lists):
            if (path := self._beside(name, ("revocation_lists", index))) is not None:
                revoked |= read_revocations(path)
        self._raise()
        return Policy(rules=rules, unsigned=parsed.unsigned, index=parsed.index, revoked=revoked, where=str(self._path))

    def _rule(self, rule: _Rule, index: int) -> Rule:
        place = ("rules", index)
        keys = [self._key(key, (*place, "keys", number)) for number, key in enumerate(rule.keys)]
        authorities = [
            self._certificate(one, (*place, "certificates", number)) for number, one in enumerate(rule.certificates)
        ]
        identities = [
            TrustedIdentity(
                name=one.name,
                issuer=one.issuer,
                subject=one.subject,
                trust_config=self._beside(one.trust_config, (*place, "identities", number, "trust_config")),
                validity=one.validity,
            )
            for number, one in enumerate(rule.identities)
        ]
        return Rule(
            models=tuple(rule.models),
            keys=tuple(key for key in keys if key is not None),
            certificates=tuple(one for one in authorities if one is not None),
            identities=tuple(identities),
            host_code=rule.host_code,
        )

    def _key(self, key: _Key, place: tuple[Step, ...]) -> TrustedKey | None:
        if (key.file is None) == (key.pem is None):
            self._complain(place, f"key {key.name!r} needs one of file and pem")
            return None
        place = (*place, "file" if key.pem is None else "pem")
        content = key.pem.encode() if key.pem is not None else self._content(key.file, place)
        if content is None:
            return None
        try:
            public = describe_public_key(content)
        except ValueError as error:
            self._complain(place, f"key {key.name!r}: {error}")
            return None
        return TrustedKey(name=key.name, key_id=public.key_id, hint=public.hint, pem=public.pem, validity=key.validity)

    def _certificate(self, one: _Certificate, place: tuple[Step, ...]) -> TrustedCertificate | None:
        from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415 - slow, and few have authorities

        place = (*place, "ca")
        content = self._content(one.ca, place)
        if content is None:
            return None
        try:
            load_pem_x509_certificates(content)
        except ValueError as error:
            self._complain(place, f"{one.ca} holds no certificates in PEM: {error}")
            return None
        return TrustedCertificate(name=one.name, authority=content, identity=one.identity, validity=one.validity)

    def _content(self, name: str | None, place: tuple[Step, ...]) -> bytes | None:
        path = self._beside(name, place)
        if path is None:
            return None
        try:
            _refuse_writable(path)
            return path.read_bytes()
        except EnginefarmError as error:
            self._complain(place, f"{path}: {error.why}", error.fix)
        except OSError as error:
            self._complain(place, f"{path} cannot be read: {error.strerror}")
        return None

    def _beside(self, name: str | None, place: tuple[Step, ...]) -> Path | None:
        if name is None:
            return None
        try:
            path = self._path.parent / Path(name).expanduser()
            if path.is_file():
                return path
            self._complain(place, f"there is no file {path}")
        except (OSError, RuntimeError) as error:
            # longer than any name, or in the home of nobody
            self._complain(place, f"there is no such file: {error}")
        return None

    def _translate(self, item: ErrorDetails, model: type[BaseModel]) -> EnginefarmError:
        place, kind = item["loc"], item["type"]
        name = str(place[-1]) if place else ""
        shown = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")
        if kind == "missing":
            return self._error(place, f"{name} is missing in {shown.rpartition('.')[0] or 'the file'}", None)
        if kind == "extra_forbidden":
            return self._error(place, f"unknown key {name!r}", suggestion(name, _fields(model, place), "known keys"))
        return self._error(place, f"{shown}: {item['msg'].removeprefix('Value error, ')}", None)

    def _complain(self, place: Sequence[Step], what: str, fix: str | None = None) -> None:
        self._errors.append(self._error(place, what, fix))

    def _error(self, place: Sequence[Step], what: str, fix: str | None) -> EnginefarmError:
        line, column = locate(self._text, place)
        return _invalid(what, f"{self._path}:{line}:{column}", fix)

    def _raise(self) -> None:
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            what = f"{self._path} has {len(self._errors)} problems"
            raise ErrorGroup(Reason.POLICY_INVALID, what, tuple(self._errors))


def _read(path: Path) -> str:
    try:
        status = _refuse_writable(path)
        if status.st_size > _LARGEST:
            raise _invalid("a policy is at most 1 MiB long", str(path))
        return path.read_bytes().decode()
    except OSError as error:
        raise _invalid(f"the file cannot be read: {error.strerror}", str(path)) from error
    except UnicodeDecodeError as error:
        raise _invalid(f"byte {error.start} is not UTF-8", str(path), "save the file as UTF-8") from error


def _refuse_writable(path: Path) -> os.stat_result:
    status = path.stat()
    if status.st_mode & stat.S_IWOTH:
        why = f"everybody may write to it (mode {stat.S_IMODE(status.st_mode):o})"
        fix = f"chmod o-w {shlex.quote(str(path))}"
        raise EnginefarmError(Reason.POLICY_INVALID, "this file decides nothing", where=str(path), why=why, fix=fix)
    return status


def _invalid(what: str, where: str, fix: str | None = None) -> EnginefarmError:
    return EnginefarmError(Reason.POLICY_INVALID, what, where=where, fix=fix)


def _fields(model: type[BaseModel], place: Sequence[Step]) -> list[str]:
    """List the keys that are known where the last step of a place stands."""
    current: type[BaseModel] = model
    for step in place[:-1]:
        if isinstance(step, str):
            (current,) = get_args(current.model_fields[step].annotation)
    return list(current.model_fields)
