"""What a signature covers, and every way in which files, bundles and statements do not hold."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from builder import trust
from builder.errors import Reason
from builder.signature_bundle import LARGEST_BUNDLE
from builder.titles import ENGINE, KEY, MANIFEST
from builder.trust import check_signature
from tests.engines import job_id
from tests.signing import (
    MODEL,
    NOW,
    Artifact,
    Json,
    envelope,
    flip,
    flipped,
    policy_of,
    refused,
    reseal,
    signed_artifact,
    trusted_key,
)


@pytest.fixture
def signed(tmp_path: Path) -> Artifact:
    """Make an artifact that Alice has signed."""
    return signed_artifact(tmp_path)


def test_good_signature_names_who_vouches(signed: Artifact) -> None:
    """The signer is whom the policy calls so, by the key's own id."""
    key = trusted_key()
    found = check_signature(signed.folder, [signed.bundle], policy_of(key), MODEL, NOW)
    assert found == trust.Trusted(signer="alice", key_id=key.key_id, signed_at=None, host_code=False)


def test_statement_names_job_and_all_files(signed: Artifact) -> None:
    """A reader of the bundle alone learns what was signed."""
    envelope = json.loads(signed.bundle)["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    assert statement["subject"][0]["name"] == job_id()
    assert {one["name"]: one["digest"] for one in statement["predicate"]["resources"]} == {
        name: hashlib.sha256((signed.folder / name).read_bytes()).hexdigest() for name in (ENGINE, MANIFEST, KEY)
    }


def first_resource(statement: Json) -> Json:
    """Find the first file of a statement."""
    found: Json = statement["predicate"]["resources"][0]
    return found


def named(name: str) -> Callable[[Json], None]:
    """Give the first file another name."""
    return lambda statement: first_resource(statement).update(name=name)


FILES: dict[str, Callable[[Path], object]] = {
    "first bit of the engine": lambda folder: flip(folder / ENGINE, 0),
    "last bit of the engine": lambda folder: flip(folder / ENGINE, -1),
    "a bit of the manifest": lambda folder: flip(folder / MANIFEST, 50),
    "a bit of the key document": lambda folder: flip(folder / KEY, 3),
    "engine cut short": lambda folder: os.truncate(folder / ENGINE, 10),
    "engine empty": lambda folder: (folder / ENGINE).write_bytes(b""),
    "file missing": lambda folder: (folder / KEY).unlink(),
    "manifest missing": lambda folder: (folder / MANIFEST).unlink(),
    "file too many": lambda folder: (folder / "model.plan2").write_bytes(b"x"),
    "two files swapped": lambda folder: [
        (folder / KEY).rename(folder / "aside"),
        (folder / ENGINE).rename(folder / KEY),
        (folder / "aside").rename(folder / ENGINE),
    ],
}


@pytest.mark.parametrize("tamper", FILES.values(), ids=FILES)
def test_changed_files_are_refused(signed: Artifact, tamper: Callable[[Path], object]) -> None:
    """Every file counts, whole, and no other."""
    tamper(signed.folder)
    assert refused(signed).reason is Reason.SIGNATURE_INVALID


def link_engine(folder: Path) -> None:
    """Keep the engine elsewhere and point to it."""
    (folder / ENGINE).rename(folder.parent / "elsewhere")
    (folder / ENGINE).symlink_to(folder.parent / "elsewhere")


UNSAFE: dict[str, Callable[[Path], object]] = {
    "file that git would hide": lambda folder: (folder / ".gitignore").write_bytes(b"x"),
    "hidden file": lambda folder: (folder / ".hidden").write_bytes(b"x"),
    "link instead of the engine": link_engine,
    "folder inside": lambda folder: (folder / "more").mkdir(),
    "pipe": lambda folder: os.mkfifo(folder / "pipe"),
}


@pytest.mark.parametrize("tamper", UNSAFE.values(), ids=UNSAFE)
def test_what_is_no_plain_file_is_refused(signed: Artifact, tamper: Callable[[Path], object]) -> None:
    """Nothing in the folder escapes the signature by its kind or name."""
    tamper(signed.folder)
    assert refused(signed).reason is Reason.NAME_UNSAFE


BUNDLES: dict[str, Callable[[Json], object]] = {
    "bit of the signature": lambda one: envelope(one)["signatures"][0].update(
        sig=flipped(envelope(one)["signatures"][0]["sig"])
    ),
    "bit of the statement": lambda one: envelope(one).update(payload=flipped(envelope(one)["payload"])),
    "no signature": lambda one: envelope(one).update(signatures=[]),
    "two signatures": lambda one: envelope(one)["signatures"].append(envelope(one)["signatures"][0]),
    "no envelope": lambda one: one.pop("dsseEnvelope"),
    "statement is a list": lambda one: envelope(one).update(payload=base64.b64encode(b"[]").decode()),
    "statement is no JSON": lambda one: envelope(one).update(payload=base64.b64encode(b"{").decode()),
    "not Base64": lambda one: envelope(one).update(payload="!" + envelope(one)["payload"]),
    "number for text": lambda one: envelope(one).update(payload=7),
    "other payload type": lambda one: envelope(one).update(payloadType="text/plain"),
    "second spelling of the envelope": lambda one: one.update(dsse_envelope=envelope(one)),
    "other media type": lambda one: one.update(mediaType="application/vnd.dev.sigstore.bundle+json;version=0.1"),
    "message signature": lambda one: one.update(messageSignature={}),
    "no hint": lambda one: one["verificationMaterial"]["publicKey"].pop("hint"),
    "hint empty": lambda one: one["verificationMaterial"]["publicKey"].update(hint=""),
    "key brought along": lambda one: one["verificationMaterial"]["publicKey"].update(rawBytes="AAAA"),
    "two kinds of signers": lambda one: one["verificationMaterial"].update(certificate={"rawBytes": "AAAA"}),
    "certificate that is none": lambda one: one.update(
        verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}]}}
    ),
    "endless chain": lambda one: one.update(
        verificationMaterial={"x509CertificateChain": {"certificates": [{"rawBytes": "AAAA"}] * 9}}
    ),
}


@pytest.mark.parametrize("tamper", BUNDLES.values(), ids=BUNDLES)
def test_broken_bundles_are_refused(signed: Artifact, tamper: Callable[[Json], object]) -> None:
    """Whatever is not exactly the form is no signature, and no exception of a library comes out."""
    signed.change(tamper)
    assert refused(signed).reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize(
    "bundle",
    [b"", b"\xff\xfe", b"null", b"[]", b'{"a": 1, "a": 2}', b"[" * 100_000, b" " * (LARGEST_BUNDLE + 1)],
    ids=["empty", "no text", "null", "list", "name twice", "deep", "huge"],
)
def test_what_is_no_bundle_is_refused(signed: Artifact, bundle: bytes) -> None:
    """Junk costs little and says that it is junk."""
    signed.bundle = bundle
    assert refused(signed).reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda bundle: bundle + b" " * LARGEST_BUNDLE, "at most 1048576 are read"),
        (lambda bundle: bundle.replace(b"{", b'{"mediaType": "another", ', 1), "a name is given twice"),
    ],
    ids=["huge", "name twice"],
)
def test_good_bundle_in_a_bad_form_is_refused(signed: Artifact, spoil: Callable[[bytes], bytes], said: str) -> None:
    """The signature in it would hold: another reader might see another one."""
    signed.bundle = spoil(signed.bundle)
    assert said in str(refused(signed))


STATEMENTS: dict[str, Callable[[Json], object]] = {
    "name leads up": named("../model.plan"),
    "absolute name": named("/etc/passwd"),
    "name in a folder": named("more/model.plan"),
    "name with a zero": named("model.plan\0"),
    "name is a number": lambda one: first_resource(one).update(name=5),
    "a name twice": lambda one: one["predicate"]["resources"].append(first_resource(one)),
    "no file": lambda one: one["predicate"].update(resources=[]),
    "another digest": lambda one: first_resource(one).update(digest="0" * 64),
    "digest of another kind": lambda one: first_resource(one).update(algorithm="blake2b"),
    "files hashed in shards": lambda one: one["predicate"]["serialization"].update(method="shards"),
    "the engine left out": lambda one: one["predicate"].update(
        resources=[file for file in one["predicate"]["resources"] if file["name"] != ENGINE]
    ),
    "two subjects": lambda one: one["subject"].append(one["subject"][0]),
    "older kind of statement": lambda one: one.update(predicateType="https://model_signing/Digests/v0.1"),
    "provenance for a signature": lambda one: one.update(predicateType="https://slsa.dev/provenance/v1"),
    "a million files": lambda one: one["predicate"].update(resources=[first_resource(one)] * 1000),
}


@pytest.mark.parametrize("change", STATEMENTS.values(), ids=STATEMENTS)
def test_statements_of_other_things_are_refused(signed: Artifact, change: Callable[[Json], object]) -> None:
    """Even the right key can only sign the files that are there, each by name and SHA-256."""

    def sealed(statement: Json) -> None:
        change(statement)
        reseal(statement)

    signed.resign(sealed)
    assert refused(signed).reason is Reason.SIGNATURE_INVALID


def test_name_twice_is_refused_even_if_the_digests_fit(signed: Artifact) -> None:
    """Another reader might take the other one."""

    def twice(statement: Json) -> None:
        statement["predicate"]["resources"].insert(0, {**first_resource(statement), "digest": "0" * 64})

    signed.resign(twice)
    assert f"names {KEY} twice" in str(refused(signed))


def test_statement_that_contradicts_itself_is_refused(signed: Artifact) -> None:
    """The digest of all must be that of all."""
    signed.resign(lambda one: one["subject"][0]["digest"].update(sha256="0" * 64))
    assert "contradicts itself" in str(refused(signed))


def test_what_a_statement_wants_ignored_is_not(signed: Artifact) -> None:
    """The signer's word that a file does not matter lets nothing in."""
    (signed.folder / "extra").write_bytes(b"x")
    signed.resign(lambda one: one["predicate"]["serialization"].update(ignore_paths=["extra"]))
    assert "extra is not signed" in str(refused(signed))


def test_resigning_by_the_right_key_holds(signed: Artifact) -> None:
    """The tests above refuse because of what they change, not because of how they sign."""
    signed.resign(lambda one: one["predicate"]["serialization"].update(ignore_paths=[".git"]))
    assert check_signature(signed.folder, [signed.bundle], policy_of(trusted_key()), MODEL, NOW) is not None
