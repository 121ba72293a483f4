"""What is signed, who may sign it, and every way in which a signature does not hold."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder import trust
from builder.errors import EnginefarmError, Reason
from builder.jobs import ENGINE, KEY, MANIFEST
from builder.policy_rules import IndexRule, Policy, Rule, TrustedIdentity, Unsigned, Validity
from builder.signature_bundle import LARGEST_BUNDLE
from builder.signers import sign_digests
from builder.trust import check_index, check_signature, sign_folder, sign_index
from tests.artifacts import refusal
from tests.engines import job_id, manifest
from tests.signing import (
    DAY,
    MODEL,
    NOW,
    Artifact,
    Json,
    authority,
    engine_folder,
    key_signer,
    policy_of,
    reseal,
    signed_artifact,
    trusted_key,
)

ALICES, BOBS = (Rule(models=("*",), keys=(trusted_key(name),)) for name in ("alice", "bob"))


@pytest.fixture
def signed(tmp_path: Path) -> Artifact:
    """Make an artifact that Alice has signed."""
    return signed_artifact(tmp_path)


def refused(artifact: Artifact, policy: Policy | None = None, model: str = MODEL) -> EnginefarmError:
    """Check an artifact that must not pass."""
    trusting = policy or policy_of(trusted_key())
    return refusal(lambda: check_signature(artifact.folder, [artifact.bundle], trusting, model, NOW))


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


def flip(path: Path, place: int) -> None:
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


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


def envelope(document: Json) -> Json:
    """Find the envelope of a bundle."""
    found: Json = document["dsseEnvelope"]
    return found


def flipped(text: str) -> str:
    """Change one bit of what Base64 stands for."""
    content = bytearray(base64.b64decode(text))
    content[len(content) // 2] ^= 1
    return base64.b64encode(bytes(content)).decode()


def other_key(document: Json) -> None:
    """Let the signature of a stranger pass for Alice's."""
    document["verificationMaterial"]["publicKey"]["hint"] = trusted_key().hint


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


def test_engine_of_another_model_is_refused(tmp_path: Path) -> None:
    """A good signature of one model is none of another, though the same key may sign both."""
    other = signed_artifact(tmp_path, model="other")
    error = refused(other)
    assert (error.reason, error.what) == (Reason.IDENTITY_MISMATCH, "the engine is one of other, not of tiny")


def test_statement_with_another_name_is_refused(signed: Artifact) -> None:
    """Neither may the statement itself name another model."""
    signed.resign(lambda one: one["subject"][0].update(name="other-fp16"))
    assert refused(signed).reason is Reason.IDENTITY_MISMATCH


def test_unsigned_is_refused_unless_the_policy_takes_it(signed: Artifact) -> None:
    """Nobody vouches for it then, and nothing says that its host code may run."""
    assert refusal(lambda: check_signature(signed.folder, [], Policy(), MODEL, NOW)).reason is Reason.UNSIGNED
    assert check_signature(signed.folder, [], Policy(unsigned=Unsigned.ALLOW), MODEL, NOW) is None


def test_bad_signature_is_worse_than_none(signed: Artifact) -> None:
    """Where unsigned engines are taken, one that a stranger signed still is not."""
    assert refused(signed, policy_of(unsigned=Unsigned.ALLOW)).reason is Reason.SIGNER_UNKNOWN


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (Policy(), "there is no policy"),
        (Policy(where="p.toml"), "no rule of p.toml matches"),
        (policy_of(trusted_key("bob")), "the policy names bob for it"),
        (policy_of(), "names nobody of this kind"),
        (policy_of(rules=(Rule(models=("other*",), keys=(trusted_key(),)),)), "no rule of policy.toml matches"),
        (policy_of(rules=(BOBS, ALICES)), "the policy names bob"),
    ],
)
def test_strangers_are_refused(signed: Artifact, policy: Policy, text: str) -> None:
    """The first rule that matches a model decides alone; a wide one after it lets nobody in."""
    error = refused(signed, policy)
    assert error.reason is Reason.SIGNER_UNKNOWN
    assert text in str(error)


def test_stranger_with_a_known_hint_is_refused(tmp_path: Path) -> None:
    """What a bundle says of its key only chooses the key that is tried."""
    forged = signed_artifact(tmp_path, "mallory")
    assert refused(forged).reason is Reason.SIGNER_UNKNOWN
    forged.change(other_key)
    assert refused(forged).reason is Reason.SIGNATURE_INVALID


@pytest.mark.parametrize(
    ("validity", "reason"),
    [
        ({"not_after": NOW - DAY}, Reason.KEY_EXPIRED),
        ({"not_before": NOW + DAY}, Reason.KEY_EXPIRED),
        ({"not_before": NOW - DAY, "not_after": NOW + DAY}, None),
        ({"not_after": NOW}, None),
    ],
)
def test_keys_have_their_time(signed: Artifact, validity: dict[str, Any], reason: Reason | None) -> None:
    """Without proof of when it was signed, now counts."""
    policy = policy_of(trusted_key(**validity))
    if reason is None:
        assert check_signature(signed.folder, [signed.bundle], policy, MODEL, NOW) is not None
    else:
        assert refused(signed, policy).reason is reason


def test_revoked_key_is_refused_with_the_reason(signed: Artifact) -> None:
    """Whoever is refused reads what happened."""
    key = trusted_key()
    error = refused(signed, policy_of(key, revoked={key.key_id: "stolen laptop"}))
    assert error.reason is Reason.KEY_REVOKED
    assert "stolen laptop" in str(error)


def test_one_good_signature_is_enough(signed: Artifact, tmp_path: Path) -> None:
    """While keys are replaced two have signed; and nobody can spoil an artifact by attaching junk."""
    expired = sign_folder(signed.folder, key_signer(tmp_path / "keys", "old"))
    policy = policy_of(trusted_key("old", not_after=NOW - DAY), trusted_key())
    found = check_signature(signed.folder, [b"junk", expired, signed.bundle], policy, MODEL, NOW)
    assert found is not None
    assert found.signer == "alice"


def test_of_bad_signatures_the_best_is_told(signed: Artifact, tmp_path: Path) -> None:
    """The one that came furthest is what somebody can act on; the others are named."""
    expired = sign_folder(signed.folder, key_signer(tmp_path / "keys", "old"))
    policy = policy_of(trusted_key("old", not_after=NOW - DAY))
    bundles = [b"junk", expired, signed.bundle]
    error = refusal(lambda: check_signature(signed.folder, bundles, policy, MODEL, NOW))
    assert error.reason is Reason.KEY_EXPIRED
    assert "another signature: a stranger signed it" in str(error)
    assert "another signature: the signature cannot be read" in str(error)


def test_endless_signatures_are_not_read(signed: Artifact) -> None:
    """A registry could attach millions."""
    error = refusal(lambda: check_signature(signed.folder, [b"junk"] * 65, Policy(), MODEL, NOW))
    assert error.reason is Reason.SIGNATURE_INVALID


def test_host_code_is_the_rules_to_allow(signed: Artifact) -> None:
    """A rule that trusts a signer with host code says so of what it signed."""
    rule = Rule(models=("tiny",), keys=(trusted_key(),), host_code=True)
    found = check_signature(signed.folder, [signed.bundle], Policy(rules=(rule,)), MODEL, NOW)
    assert found is not None
    assert found.host_code


def test_known_digests_are_not_computed_again(signed: Artifact) -> None:
    """What was hashed while it was written need not be read once more; it counts as it was told."""
    policy = policy_of(trusted_key())
    digests = trust.folder_digests(signed.folder)
    wrong = {**digests, ENGINE: "0" * 64}
    assert check_signature(signed.folder, [signed.bundle], policy, MODEL, NOW, digests=digests) is not None
    error = refusal(lambda: check_signature(signed.folder, [signed.bundle], policy, MODEL, NOW, digests=wrong))
    assert "model.plan was changed" in str(error)


@pytest.mark.parametrize("name", ["manifest", "engine"])
def test_only_whole_engines_are_signed(tmp_path: Path, name: str) -> None:
    """Nobody vouches by mistake for an engine that is not the manifest's."""
    folder = engine_folder(tmp_path / "e")
    if name == "manifest":
        (folder / MANIFEST).unlink()
    else:
        flip(folder / ENGINE, 0)
    error = refusal(lambda: sign_folder(folder, key_signer(tmp_path)))
    assert error.reason is Reason.ARTIFACT_INVALID


def test_missing_folder_is_said(tmp_path: Path) -> None:
    """Not a traceback."""
    assert refusal(lambda: trust.folder_digests(tmp_path / "none")).reason is Reason.FILE_MISSING


def test_certificates_by_their_authority(tmp_path: Path) -> None:
    """An authority that the policy names vouches for a key that it does not name."""
    folder, ours = engine_folder(tmp_path / "e"), authority(tmp_path / "ca")
    bundle = sign_folder(folder, ours.signer)
    policy = Policy(rules=(Rule(models=("*",), certificates=(ours.trust(),)),))
    found = check_signature(folder, [bundle], policy, MODEL, NOW)
    assert found is not None
    assert (found.signer, found.signed_at) == ("builders", None)
    assert len(found.key_id) == 64


def certificate_refusal(
    tmp_path: Path, *, begins: int = -1, identity: str = "ci@example.org", foreign: bool = False, **validity: Any
) -> EnginefarmError:
    """Sign with a certificate that does not do."""
    folder, ours = engine_folder(tmp_path / "e"), authority(tmp_path / "ca", begins=NOW + begins * DAY)
    bundle = sign_folder(folder, ours.signer)
    known = authority(tmp_path / "other", "other") if foreign else ours
    policy = Policy(rules=(Rule(models=("*",), certificates=(known.trust(identity, **validity),)),))
    return refusal(lambda: check_signature(folder, [bundle], policy, MODEL, NOW))


def test_certificate_of_another_authority_is_refused(tmp_path: Path) -> None:
    """The same name certified by somebody else is somebody else."""
    assert certificate_refusal(tmp_path, foreign=True).reason is Reason.SIGNER_UNKNOWN


def test_certificate_of_somebody_else_is_refused(tmp_path: Path) -> None:
    """The authority certifies many; the policy means one."""
    assert certificate_refusal(tmp_path, identity="boss@example.org").reason is Reason.SIGNER_UNKNOWN


@pytest.mark.parametrize("begins", [-60, 5], ids=["ended", "to come"])
def test_certificate_out_of_its_time_is_refused(tmp_path: Path, begins: int) -> None:
    """Its own first day, by which the library judges, proves nothing."""
    assert certificate_refusal(tmp_path, begins=begins).reason is Reason.KEY_EXPIRED


def test_policy_may_end_a_certificate_earlier(tmp_path: Path) -> None:
    """The rule's dates count as well."""
    assert certificate_refusal(tmp_path, not_after=NOW - DAY).reason is Reason.KEY_EXPIRED


def test_revoked_authority_vouches_for_nobody(tmp_path: Path) -> None:
    """Any key on the way may be revoked, the one in the middle too."""
    folder, ours = engine_folder(tmp_path / "e"), authority(tmp_path / "ca")
    bundle = sign_folder(folder, ours.signer)
    between = trusted_key("authority-between").key_id
    policy = Policy(rules=(Rule(models=("*",), certificates=(ours.trust(),)),), revoked={between: "moved"})
    error = refusal(lambda: check_signature(folder, [bundle], policy, MODEL, NOW))
    assert error.reason is Reason.KEY_REVOKED


def test_changed_file_under_a_certificate_is_refused(tmp_path: Path) -> None:
    """The chain holds and the signature does not."""
    folder, ours = engine_folder(tmp_path / "e"), authority(tmp_path / "ca")
    signed = Artifact(folder=folder, bundle=sign_folder(folder, ours.signer))
    policy = Policy(rules=(Rule(models=("*",), certificates=(ours.trust(),)),))
    signed.change(lambda one: envelope(one)["signatures"][0].update(sig=flipped(envelope(one)["signatures"][0]["sig"])))
    assert refused(signed, policy).reason is Reason.SIGNATURE_INVALID


def test_keyless_stranger_is_refused_before_any_network(signed: Artifact, tmp_path: Path) -> None:
    """An identity that no rule names needs no log to be refused."""
    ours = authority(tmp_path / "ca")
    leaf = ours.signer.certificate.read_text(encoding="utf-8").splitlines()
    signed.change(
        lambda one: one.update(
            verificationMaterial={"certificate": {"rawBytes": "".join(leaf[1:-1])}, "tlogEntries": []}
        )
    )
    identity = TrustedIdentity(
        name="ci", issuer="https://issuer.example", subject="ci@example.org", trust_config=None, validity=Validity()
    )
    error = refused(signed, Policy(rules=(Rule(models=("*",), identities=(identity,)),)))
    assert error.reason is Reason.SIGNER_UNKNOWN


def test_index_is_signed_for_its_model(tmp_path: Path) -> None:
    """The list of one model is none of another, and no byte of it may change."""
    content = b'{"schemaVersion": 2, "manifests": []}'
    bundle = sign_index(content, MODEL, key_signer(tmp_path))
    policy = policy_of(trusted_key(), index=IndexRule.SIGNED)
    found = check_index(content, [bundle], policy, MODEL, NOW)
    assert found is not None
    assert found.signer == "alice"
    changed = refusal(lambda: check_index(content + b"\n", [bundle], policy, MODEL, NOW))
    swapped = refusal(lambda: check_index(content, [bundle], policy, "other", NOW))
    unsigned = refusal(lambda: check_index(content, [], policy, MODEL, NOW))
    assert changed.reason is Reason.SIGNATURE_INVALID
    assert swapped.reason is Reason.IDENTITY_MISMATCH
    assert unsigned.reason is Reason.UNSIGNED


def test_unsigned_index_passes_where_engines_decide() -> None:
    """Each engine is checked on its own."""
    assert check_index(b"{}", [], Policy(), MODEL, NOW) is None
    assert refusal(lambda: check_index(b"{}", [b"junk"], Policy(), MODEL, NOW)).reason is Reason.SIGNATURE_INVALID


def test_signature_of_an_index_is_none_of_an_engine(signed: Artifact, tmp_path: Path) -> None:
    """And the other way round."""
    index = sign_digests(MODEL, {trust.INDEX: "0" * 64}, key_signer(tmp_path))
    policy = policy_of(trusted_key())
    assert (
        refusal(lambda: check_signature(signed.folder, [index], policy, MODEL, NOW)).reason is Reason.SIGNATURE_INVALID
    )
    assert refusal(lambda: check_index(b"{}", [signed.bundle], policy, MODEL, NOW)).reason is Reason.SIGNATURE_INVALID


def test_manifest_that_lies_about_its_model_is_refused(tmp_path: Path) -> None:
    """A manifest rewritten to the model that was asked for is not the one that was signed."""
    other = signed_artifact(tmp_path, model="other")
    (other.folder / MANIFEST).write_text(manifest("tiny").to_json(), encoding="utf-8")
    assert refused(other).reason is Reason.SIGNATURE_INVALID
