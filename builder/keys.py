"""Key pairs of this machine: made, listed, replaced and revoked under keys/ of the farm's home.

keys/NAME/ holds a folder for every generation of a key; the newest is the current one. A folder comes into being whole,
and nothing in it is ever written again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock

from builder import durable
from builder.errors import EnginefarmError, Reason
from builder.policy_rules import Validity
from builder.project import Home

PRIVATE, PUBLIC, ABOUT = "private.pem", "public.pem", "key.json"
_LIST = "revoked.toml"
_LIST_HEAD = "# Keys that nothing makes good again. Policies name copies of this file: revocation_lists\n"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ID = re.compile(r"[0-9a-f]{64}")
_FEWEST_DIGITS = 8
_CURVES = ("secp256r1", "secp384r1", "secp521r1")


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A public key. `key_id`: SHA-256 of its DER SubjectPublicKeyInfo, hex; `hint`: that of its PEM, as in bundles."""

    key_id: str
    hint: str
    pem: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A generation of a key of this machine. `current`: no younger one has its name."""

    name: str
    key_id: str
    created: datetime
    not_after: datetime | None
    current: bool
    folder: Path

    @property
    def validity(self) -> Validity:
        """When it may sign."""
        return Validity(not_after=self.not_after)

    @property
    def private(self) -> Path:
        """File of the private key."""
        return self.folder / PRIVATE

    @property
    def public(self) -> Path:
        """File of the public key."""
        return self.folder / PUBLIC


def revocation_list(home: Home) -> Path:
    """Name the file in which this machine notes revoked keys."""
    return home.root / "keys" / _LIST


def generate_key(home: Home, name: str, now: datetime, not_after: datetime | None, passphrase: bytes | None) -> KeyPair:
    """Make the first key of a name.

    Raises:
        EnginefarmError: NAME_UNKNOWN for a name that is none, PATH_OCCUPIED where the name has a key already,
            STORE_READ_ONLY, DISK_FULL.

    """
    if not _NAME.fullmatch(name) or name == _LIST:
        fix = "small letters, digits and ._- are taken, at most 64"
        raise EnginefarmError(Reason.NAME_UNKNOWN, f"{name!r} is no name of a key", fix=fix)
    with _locked(home):
        if _generations(home, name):
            fix = f"`enginefarm keys rotate {name}` makes a new one beside it"
            raise EnginefarmError(Reason.PATH_OCCUPIED, f"there is a key {name!r} already", fix=fix)
        return _make(home, name, now, not_after, passphrase)


def rotate_key(home: Home, name: str, now: datetime, not_after: datetime | None, passphrase: bytes | None) -> KeyPair:
    """Make a new key of a name, which is the current one from now on; the older ones stay.

    Without an end of its own the new key lives as long as the one before it did.

    Raises:
        EnginefarmError: NAME_UNKNOWN, STORE_READ_ONLY, DISK_FULL.

    """
    with _locked(home):
        older = find_key(home, name)
        if not_after is None and older.not_after is not None:
            not_after = now + (older.not_after - older.created)
        return _make(home, name, now, not_after, passphrase)


def list_keys(home: Home) -> tuple[KeyPair, ...]:
    """List the keys of this machine by name, the current one of each name first."""
    names = sorted(path.name for path in (home.root / "keys").glob("*/") if _NAME.fullmatch(path.name))
    return tuple(key for name in names for key in _generations(home, name))


def find_key(home: Home, name: str) -> KeyPair:
    """Find the current key of a name.

    Raises:
        EnginefarmError: NAME_UNKNOWN.

    """
    found = _generations(home, name) if _NAME.fullmatch(name) else ()
    if not found:
        names = sorted({key.name for key in list_keys(home)})
        fix = f"the keys of this machine: {', '.join(names)}" if names else "`enginefarm keys generate NAME` makes one"
        raise EnginefarmError(Reason.NAME_UNKNOWN, f"there is no key {name!r}", fix=fix)
    return found[0]


def find_key_id(home: Home, text: str) -> str:
    """Complete the id of a key of this machine; the whole id of anybody's key is taken as it is.

    Raises:
        EnginefarmError: NAME_UNKNOWN.

    """
    if _ID.fullmatch(text):
        return text
    found = [key.key_id for key in list_keys(home) if len(text) >= _FEWEST_DIGITS and key.key_id.startswith(text)]
    if len(found) != 1:
        what = f"{text!r} is the id of {len(found) or 'no'} keys of this machine"
        fix = f"write all 64 digits, or {_FEWEST_DIGITS} and more of a key that `enginefarm keys list` shows"
        raise EnginefarmError(Reason.NAME_UNKNOWN, what, fix=fix)
    return found[0]


def revoke_key(home: Home, key_id: str, why: str, now: datetime) -> Path:
    """Note in this machine's list that a key was revoked; what is noted already stays.

    Raises:
        EnginefarmError: STORE_READ_ONLY, DISK_FULL.

    """
    path = revocation_list(home)
    with _locked(home), durable.writing(str(path)):
        text = path.read_text(encoding="utf-8") if path.exists() else _LIST_HEAD
        if f'key = "{key_id}"' not in text:
            # JSON's strings are TOML's basic strings, but for one character that JSON leaves as it is
            said = json.dumps(why or "no reason was given", ensure_ascii=False).replace("\x7f", "\\u007f")
            text += f'\n[[revoked]]\nkey = "{key_id}"\nwhy = {said}\nat = {now:%Y-%m-%dT%H:%M:%SZ}\n'
            durable.write_atomically(path, text.encode(errors="replace"), path.parent)
    return path


def open_to_others(path: Path) -> bool:
    """Say whether others than its owner may read a file."""
    with suppress(OSError):
        return bool(path.stat().st_mode & 0o077)
    return False


def is_encrypted(path: Path) -> bool:
    """Say whether a private key has a passphrase."""
    with suppress(OSError):
        return b"ENCRYPTED" in path.read_bytes()[:4096]
    return False


def describe_public_key(pem: bytes) -> PublicKey:
    """Read a public key.

    Raises:
        ValueError: no PEM of a public key on a curve that signatures are made with; a private key.

    """
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - slow to import
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    if b"PRIVATE KEY" in pem:
        msg = "it holds a private key; name the public one"
        raise ValueError(msg)
    try:
        key = serialization.load_pem_public_key(pem)
    except Exception as error:
        msg = "it is no public key in PEM"
        raise ValueError(msg) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        msg = "it is no key on the curves P-256, P-384 or P-521"
        raise ValueError(msg)
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    text = key.public_bytes(serialization.Encoding.PEM, form)
    return PublicKey(
        key_id=hashlib.sha256(key.public_bytes(serialization.Encoding.DER, form)).hexdigest(),
        hint=hashlib.sha256(text).hexdigest(),
        pem=text,
    )


def _locked(home: Home) -> FileLock:
    folder = home.root / "keys"
    with durable.writing(str(folder)):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return FileLock(folder / ".lock")


def _generations(home: Home, name: str) -> tuple[KeyPair, ...]:
    """List the keys of a name, newest first."""
    found = []
    for path in (home.root / "keys" / name).glob(f"[0-9a-f]*/{ABOUT}"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(path.read_text(encoding="utf-8"))
            ends = about["not_after"]
            found.append(
                KeyPair(
                    name=name,
                    key_id=str(about["id"]),
                    created=datetime.fromisoformat(about["created"]),
                    not_after=None if ends is None else datetime.fromisoformat(ends),
                    current=False,
                    folder=path.parent,
                )
            )
    found.sort(key=lambda key: (key.created, key.key_id), reverse=True)
    return tuple(replace(key, current=index == 0) for index, key in enumerate(found))


def _make(home: Home, name: str, now: datetime, not_after: datetime | None, passphrase: bytes | None) -> KeyPair:
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - slow to import
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    cover: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        cover = serialization.BestAvailableEncryption(passphrase)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, cover)
    public = describe_public_key(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    about = {
        "id": public.key_id,
        "name": name,
        "created": now.astimezone(timezone.utc).isoformat(),
        "not_after": None if not_after is None else not_after.astimezone(timezone.utc).isoformat(),
    }
    folder = home.root / "keys" / name
    with durable.writing(str(folder)):
        folder.mkdir(mode=0o700, exist_ok=True)
        # a folder of its own, renamed when it is whole: a key that is there is never written to
        temp = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
        try:
            _write(temp / PRIVATE, private, 0o600)
            _write(temp / PUBLIC, public.pem, 0o644)
            _write(temp / ABOUT, json.dumps(about, indent=2).encode() + b"\n", 0o644)
            durable.sync_folder(temp)
            temp.rename(folder / public.key_id[:16])
        except BaseException:
            shutil.rmtree(temp, ignore_errors=True)
            raise
        durable.sync_folder(folder)
    return next(one for one in _generations(home, name) if one.key_id == public.key_id)


def _write(path: Path, content: bytes, mode: int) -> None:
    # the mode counts from the first byte on
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
