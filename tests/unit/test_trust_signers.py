"""Whose signatures count: keys, certificates and identities in their time, for their models; and lists of engines."""

from __future__ import annotations

import hashlib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from builder import trust
from builder.errors import EnginefarmError, Reason
from builder.keys import generate_key
from builder.policy_rules import IndexRule, Policy, Rule, TrustedIdentity, Unsigned, Validity
from builder.project import Home
from builder.signature_bundle import Kind, read_bundle
from builder.signers import KeySigner, sign_digests
from builder.titles import ENGINE, MANIFEST
from builder.trust import check_index, check_signature, sign_folder, sign_index
from tests.artifacts import refusal
from tests.engines import manifest
from tests.signing import (
    DAY,
    MODEL,
    NOW,
    Artifact,
    Json,
    authority,
    engine_folder,
    envelope,
    flip,
    flipped,
    key_signer,
    policy_of,
    refused,
    signed_artifact,
    trusted_key,
)

ALICES, BOBS = (Rule(models=("*",), keys=(trusted_key(name),)) for name in ("alice", "bob"))


@pytest.fixture
def signed(tmp_path: Path) -> Artifact:
    """Make an artifact that Alice has signed."""
    return signed_artifact(tmp_path)


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


def test_the_key_of_a_stranger_can_be_found(tmp_path: Path) -> None:
    """Said is what `sha256sum` prints of the key's file, which is all that a bundle tells of it."""
    key = generate_key(Home(root=tmp_path), "mallory", NOW, None, None)
    bundle = sign_digests("tiny-fp16", {ENGINE: "1" * 64}, KeySigner(key=key.private))
    hint = read_bundle(bundle).hint
    assert hint == hashlib.sha256(key.public.read_bytes()).hexdigest()
    error = refused(signed_artifact(tmp_path / "its", "bob"))
    assert f"a key whose public.pem has the SHA-256 {trusted_key('bob').hint}" in str(error)


def other_key(document: Json) -> None:
    """Let the signature of a stranger pass for Alice's."""
    document["verificationMaterial"]["publicKey"]["hint"] = trusted_key().hint


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


@pytest.mark.parametrize(
    ("options", "why"),
    [({"named": False}, "it names nobody"), ({"signs": False}, "it has neither digitalSignature")],
    ids=str,
)
def test_a_certificate_that_no_check_would_take_signs_nothing(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    folder, ours = engine_folder(tmp_path / "e"), authority(tmp_path / "ca", **options)
    error = refusal(lambda: sign_folder(folder, ours.signer))
    assert error.reason is Reason.POLICY_INVALID
    assert why in (error.why or "")


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


ISSUER = "https://issuer.example"


def keyless(signed: Artifact, tmp_path: Path, begins: datetime = NOW) -> None:
    """Let a bundle look like a keyless one of ci@example.org; there is no log here that would prove it."""
    ours = authority(tmp_path / "ca", begins=begins, issuer=ISSUER)
    leaf = ours.signer.certificate.read_text(encoding="utf-8").splitlines()
    signed.change(
        lambda one: one.update(
            verificationMaterial={"certificate": {"rawBytes": "".join(leaf[1:-1])}, "tlogEntries": []}
        )
    )


def identities(issuer: str = ISSUER, trust_config: Path | None = None, **validity: Any) -> Policy:
    """Trust ci@example.org as an issuer names it."""
    identity = TrustedIdentity(
        name="ci",
        issuer=issuer,
        subject="ci@example.org",
        trust_config=trust_config,
        validity=Validity(**validity),
    )
    return Policy(rules=(Rule(models=("*",), identities=(identity,)),))


def test_keyless_stranger_is_refused_before_any_network(signed: Artifact, tmp_path: Path) -> None:
    """An identity that no rule names needs no log to be refused."""
    keyless(signed, tmp_path)
    error = refused(signed, identities("https://other.example"))
    assert error.reason is Reason.SIGNER_UNKNOWN
    assert f"ci@example.org (says {ISSUER})" in str(error)


def test_keyless_without_its_proofs_is_refused(signed: Artifact, tmp_path: Path) -> None:
    """A certificate alone proves nothing; a Sigstore that cannot be read is no reason to trust."""
    keyless(signed, tmp_path)
    config = tmp_path / "config.json"
    config.write_text("{}", encoding="utf-8")
    error = refused(signed, identities(trust_config=config))
    assert error.reason is Reason.FETCH_FAILED


def test_keyless_is_judged_by_when_it_was_signed(
    signed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the log has proved it, the rule's dates are about that time and not about now."""
    keyless(signed, tmp_path, NOW - 60 * DAY)
    seen = []
    monkeypatch.setattr(trust, "_verify", lambda bundle, *_: seen.append(bundle.kind))
    policy = identities(not_after=NOW - 30 * DAY)
    found = check_signature(signed.folder, [signed.bundle], policy, MODEL, NOW)
    assert found is not None
    assert (found.signer, found.signed_at, seen) == ("ci", NOW - 60 * DAY, [Kind.KEYLESS])
    late = refused(signed, identities(not_after=NOW - 90 * DAY))
    assert late.reason is Reason.KEY_EXPIRED


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
