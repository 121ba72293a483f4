"""Keys of this machine: made whole, never overwritten, found by name, replaced and revoked."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from builder import keys
from builder.errors import Reason
from builder.policy import load_policy, read_revocations
from builder.project import Home
from builder.report.keys import key_json, key_rows, policy_lines, state
from builder.signers import KeySigner, key_file, own_signer, public_half, sign_digests
from tests.artifacts import refusal
from tests.signing import DAY, NOW, private_pem, public_pem


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """An empty home."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    return Home(root=tmp_path / "home")


def generate(
    home: Home, name: str = "release", not_after: datetime | None = None, passphrase: bytes | None = None
) -> keys.KeyPair:
    """Make a key."""
    return keys.generate_key(home, name, NOW, not_after, passphrase)


def mode(path: Path) -> int:
    """Permissions of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_key_is_p256_and_its_id_is_that_of_its_der(home: Home) -> None:
    """Anybody can compute the id: SHA-256 of SubjectPublicKeyInfo."""
    made = generate(home)
    private = serialization.load_pem_private_key(made.private.read_bytes(), None)
    public = serialization.load_pem_public_key(made.public.read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.curve.name == "secp256r1"
    assert private.public_key() == public
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert made.key_id == hashlib.sha256(der).hexdigest()


def test_private_key_is_its_owners_whatever_the_umask(home: Home) -> None:
    """From its first byte on."""
    before = os.umask(0)
    try:
        made = generate(home)
    finally:
        os.umask(before)
    assert (mode(made.private), mode(made.folder), mode(home.root / "keys")) == (0o600, 0o700, 0o700)
    assert keys.open_to_others(made.private) is False
    assert keys.open_to_others(made.public) is True
    assert keys.open_to_others(home.root / "none") is False


def test_key_is_never_overwritten(home: Home) -> None:
    """Not even by the same name."""
    made = generate(home)
    content = made.private.read_bytes()
    assert refusal(lambda: generate(home)).reason is Reason.PATH_OCCUPIED
    assert made.private.read_bytes() == content
    assert len(keys.list_keys(home)) == 1


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "Release", "x" * 65, "-x", "revoked.toml"])
def test_names_are_plain(home: Home, name: str) -> None:
    """A name is a folder's."""
    assert refusal(lambda: generate(home, name)).reason is Reason.NAME_UNKNOWN
    assert refusal(lambda: keys.find_key(home, name)).reason is Reason.NAME_UNKNOWN


def test_half_made_key_is_none(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash leaves no key, and the next try makes one."""

    def fail(path: Path, content: bytes, mode: int) -> None:
        if path.name == keys.ABOUT:
            raise OSError(5, "the plug was pulled")
        real(path, content, mode)

    real = keys._write
    with monkeypatch.context() as patch:
        patch.setattr(keys, "_write", fail)
        with pytest.raises(OSError, match="the plug"):
            generate(home)
    assert keys.list_keys(home) == ()
    assert [path.name for path in (home.root / "keys" / "release").iterdir()] == []
    # and what kill -9 leaves counts for nothing
    left = home.root / "keys" / "release" / ".new-abc"
    left.mkdir()
    (left / keys.ABOUT).write_text(json.dumps({"id": "0" * 64, "created": NOW.isoformat(), "not_after": None}))
    assert keys.list_keys(home) == ()
    assert generate(home).current


def test_rotation_keeps_the_older_key(home: Home) -> None:
    """The name means the newest; a lifetime is taken over."""
    first = generate(home, not_after=NOW + 90 * DAY)
    second = keys.rotate_key(home, "release", NOW + 80 * DAY, None, None)
    assert keys.find_key(home, "release") == second
    assert second.not_after == NOW + 170 * DAY
    assert [(one.key_id, one.current) for one in keys.list_keys(home)] == [(second.key_id, True), (first.key_id, False)]
    assert first.private.is_file()
    assert key_file(home, "release") == second.private
    assert key_file(home, str(first.private)) == first.private


def test_unknown_key_is_said_with_those_there_are(home: Home) -> None:
    """Nobody has to look for the list."""
    assert "keys generate" in str(refusal(lambda: keys.rotate_key(home, "release", NOW, None, None)))
    generate(home, "other")
    assert "the keys of this machine: other" in str(refusal(lambda: keys.find_key(home, "release")))


def test_passphrase_covers_the_key(home: Home) -> None:
    """Nothing but it opens the key, and the signer says what is wrong."""
    made = generate(home, passphrase=b"correct horse")
    assert keys.is_encrypted(made.private)
    assert not keys.is_encrypted(home.root / "none")
    assert public_half(made.private, b"correct horse").key_id == made.key_id
    assert "the passphrase is wrong" in str(refusal(lambda: public_half(made.private, b"battery")))
    assert "none was given" in str(refusal(lambda: public_half(made.private, None)))
    assert sign_digests("x", {"a": "0" * 64}, KeySigner(key=made.private, passphrase=b"correct horse"))


def test_what_cannot_sign_is_said(home: Home, tmp_path: Path) -> None:
    """A public key, a key of another kind, no key, no file."""
    path = tmp_path / "key.pem"
    path.write_bytes(public_pem("alice"))
    assert refusal(lambda: public_half(path, None)).reason is Reason.POLICY_INVALID
    other = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(
        other.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    assert "P-256" in str(refusal(lambda: public_half(path, None)))
    path.write_bytes(private_pem("alice"))
    assert "it has none" in str(refusal(lambda: public_half(path, b"x")))
    assert refusal(lambda: public_half(tmp_path / "none", None)).reason is Reason.POLICY_INVALID
    assert refusal(lambda: own_signer(home, "nobody", None, NOW)).reason is Reason.NAME_UNKNOWN


def test_expired_and_revoked_keys_sign_nothing(home: Home) -> None:
    """Nobody would take it: better said where it is signed."""
    made = generate(home, not_after=NOW + DAY)
    assert own_signer(home, "release", None, NOW).key == made.private
    assert refusal(lambda: own_signer(home, "release", None, NOW + 2 * DAY)).reason is Reason.KEY_EXPIRED
    assert refusal(lambda: own_signer(home, str(made.private), None, NOW + 2 * DAY)).reason is Reason.KEY_EXPIRED
    keys.revoke_key(home, made.key_id, "lost", NOW)
    assert refusal(lambda: own_signer(home, "release", None, NOW)).reason is Reason.KEY_REVOKED


@pytest.mark.parametrize("why", ["lost", 'said "so"\n\ttwice', "backslash \\ and \x7f", "Ünïcode 🔑", "' '' '''"])
def test_revocations_come_back_as_they_were_noted(home: Home, why: str) -> None:
    """Whatever people write."""
    path = keys.revoke_key(home, "ab" * 32, why, NOW)
    keys.revoke_key(home, "cd" * 32, "another", NOW)
    assert read_revocations(path) == {"ab" * 32: why, "cd" * 32: "another"}
    assert load_policy().revoked == {"ab" * 32: why, "cd" * 32: "another"}


def test_revocation_without_a_reason_breaks_no_list(home: Home) -> None:
    """An empty one would be refused whenever the list is read."""
    keys.revoke_key(home, "ab" * 32, "", NOW)
    assert load_policy().revoked == {"ab" * 32: "no reason was given"}


def test_second_revocation_changes_nothing(home: Home) -> None:
    """The first reason stays."""
    path = keys.revoke_key(home, "ab" * 32, "first", NOW)
    keys.revoke_key(home, "ab" * 32, "second", NOW)
    assert read_revocations(path) == {"ab" * 32: "first"}


def test_ids_are_completed_for_own_keys_only(home: Home) -> None:
    """Eight digits of a key that is here, all of one that is not."""
    made = generate(home)
    assert keys.find_key_id(home, made.key_id[:8]) == made.key_id
    assert keys.find_key_id(home, "ef" * 32) == "ef" * 32
    for text in (made.key_id[:7], "zz" * 32, "0123456789", ""):
        assert refusal(lambda text=text: keys.find_key_id(home, text)).reason is Reason.NAME_UNKNOWN  # type: ignore[misc]


@pytest.mark.parametrize(
    "content", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", private_pem("alice")]
)
def test_only_public_keys_are_described(content: bytes) -> None:
    """A private key least of all."""
    with pytest.raises(ValueError, match="key"):
        keys.describe_public_key(content)


def test_hint_is_what_bundles_call_the_key() -> None:
    """The digest of the key in PEM, as the library writes it."""
    public = keys.describe_public_key(public_pem("alice").replace(b"\n", b"\r\n"))
    assert public.pem == public_pem("alice")
    assert public.hint == hashlib.sha256(public_pem("alice")).hexdigest()


def test_list_says_what_each_key_is_good_for(home: Home) -> None:
    """Current, replaced, expired, revoked."""
    first = generate(home, not_after=NOW + DAY)
    second = keys.rotate_key(home, "release", NOW + DAY / 2, NOW + 9 * DAY, None)
    rows = key_rows(keys.list_keys(home), NOW + DAY / 2, {}, 100, lambda text, *_: text)
    assert ["current" in rows[1], "replaced" in rows[2], "2026-11-30" in rows[1]] == [True] * 3
    assert state(first, NOW + 2 * DAY, {}) == "expired"
    assert key_json(second, NOW, {second.key_id: "lost"}) == {
        "name": "release",
        "id": second.key_id,
        "state": "revoked",
        "created": "2026-11-22T00:00:00+00:00",
        "not_after": "2026-11-30T12:00:00+00:00",
        "private": str(second.private),
        "public": str(second.public),
        "revoked": "lost",
    }


def test_lines_for_a_policy_are_a_policy(home: Home) -> None:
    """What `keys export --policy` prints needs only a rule above it."""
    made = generate(home, not_after=NOW + DAY)
    lines = policy_lines(made, made.public.read_text(encoding="utf-8"))
    path = home.root / "policy.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    (key,) = load_policy().rules[0].keys
    assert (key.name, key.key_id) == ("release", made.key_id)
    assert key.validity.not_after == datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def test_reason_in_no_encoding_is_noted_all_the_same(home: Home) -> None:
    """A command line may hold any bytes; the key is revoked whatever they are."""
    path = keys.revoke_key(home, "ab" * 32, "bytes \udcff", NOW)
    assert read_revocations(path) == {"ab" * 32: "bytes ?"}
