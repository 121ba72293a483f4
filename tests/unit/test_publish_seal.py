"""Signatures of what is pushed: made once per signer, and such that whoever pulls can check them."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from builder import artifact, oci, trust
from builder.errors import Reason
from builder.publish import Pushed, choose_packages, parse_destination, push_engines
from builder.publish_seal import Seal
from builder.registry import Registry
from builder.sign_remote import sign_in_registry
from builder.signers import KeylessSigner, KeySigner, Signer
from builder.store import Store
from tests.artifacts import refusal
from tests.engines import add_engine
from tests.registry_fake import FakeRegistry, fake
from tests.signing import NOW, authority, key_signer, policy_of, trusted_key

__all__ = ["fake"]

NAME = "engines/tiny"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store with one engine."""
    store = Store(tmp_path / "store")
    add_engine(store)
    return store


def push(store: Store, signer: Signer | None) -> Pushed:
    place = parse_destination("localhost:5000/engines", "latest")
    seal = Seal(store=store, signer=signer)
    packages = choose_packages(store, [])
    (pushed,) = push_engines(packages, place, cancel=threading.Event(), listen=lambda _: None, seal=seal)
    return pushed


def bundles(fake: FakeRegistry, digest: str) -> list[bytes]:
    """Read the signatures beside something."""
    _, content = fake.manifests.get((NAME, digest.replace(":", "-")), ("", b'{"manifests": []}'))
    listed = [one for one in json.loads(content)["manifests"] if one["artifactType"] == artifact.SIGNATURE_TYPE]
    documents = [json.loads(fake.manifests[NAME, one["digest"]][1]) for one in listed]
    return [fake.blobs[NAME, one["layers"][0]["digest"]] for one in documents]


def test_what_is_pushed_with_a_key_is_trusted(store: Store, fake: FakeRegistry, tmp_path: Path) -> None:
    pushed = push(store, key_signer(tmp_path))
    policy = policy_of(trusted_key())
    (package,) = choose_packages(store, [])
    content = package.files[artifact.MANIFEST]
    assert isinstance(content, bytes)
    signed = bundles(fake, pushed.engines[0].digest)
    assert trust.check_files(package.sha256, content, signed, policy, "tiny", NOW) is not None
    index = fake.manifests[NAME, "latest"][1]
    assert trust.check_index(index, bundles(fake, pushed.digest), policy, "tiny", NOW) is not None


def test_a_signed_index_is_signed_before_it_is_found(store: Store, fake: FakeRegistry, tmp_path: Path) -> None:
    pushed = push(store, key_signer(tmp_path))
    puts = fake.paths("PUT")
    assert puts[-1].endswith("manifests/latest")
    assert puts.index(f"/v2/{NAME}/manifests/{pushed.digest.replace(':', '-')}") < len(puts) - 1


def test_nothing_is_signed_twice(store: Store, fake: FakeRegistry, tmp_path: Path) -> None:
    signer = key_signer(tmp_path)
    first = push(store, signer)
    before = dict(fake.manifests)
    second = push(store, signer)
    assert fake.manifests == before
    assert second.engines[0].referrers == first.engines[0].referrers
    assert len(bundles(fake, first.digest)) == 1


def test_another_key_signs_as_well(store: Store, fake: FakeRegistry, tmp_path: Path) -> None:
    push(store, key_signer(tmp_path))
    pushed = push(store, key_signer(tmp_path, "bob"))
    assert not pushed.changed
    assert len(bundles(fake, pushed.engines[0].digest)) == 2
    assert len(bundles(fake, pushed.digest)) == 2


def test_signatures_of_the_store_go_along(store: Store, fake: FakeRegistry, tmp_path: Path) -> None:
    (package,) = choose_packages(store, [])
    (made,) = Seal(store=store, signer=key_signer(tmp_path)).engine(package.entry).values()
    pushed = push(store, None)
    assert bundles(fake, pushed.engines[0].digest) == [made]
    assert bundles(fake, pushed.digest) == []


def test_a_signature_that_is_broken_counts_for_nothing(store: Store, fake: FakeRegistry, tmp_path: Path) -> None:
    signer = key_signer(tmp_path)
    pushed = push(store, None)
    registry = Registry("localhost:5000", NAME, cancel=threading.Event(), listen=lambda _: None)
    index = fake.manifests[NAME, "latest"][1]
    subject = oci.descriptor(oci.INDEX_TYPE, pushed.digest, len(index))
    registry.attach(subject, artifact.SIGNATURE_TYPE, "x.sigstore.json", b"broken")
    push(store, signer)
    assert len(bundles(fake, pushed.digest)) == 2


def test_whose_signature_it_is(store: Store, tmp_path: Path) -> None:
    (package,) = choose_packages(store, [])
    by_key = key_signer(tmp_path)
    by_certificate = authority(tmp_path / "ca").signer
    signers: dict[str, Signer] = {"key": by_key, "certificate": by_certificate}
    made = {}
    for name, signer in signers.items():
        seal = Seal(store=store, signer=signer)
        made[name] = next(bundle for bundle in seal.engine(package.entry).values() if seal.is_own(bundle))
    for name, signer in signers.items():
        own = [other for other, bundle in made.items() if Seal(store=store, signer=signer).is_own(bundle)]
        assert own == [name]
    other = KeySigner(key=key_signer(tmp_path, "bob").key)
    assert not any(Seal(store=store, signer=other).is_own(bundle) for bundle in made.values())
    assert not any(Seal(store=store, signer=KeylessSigner()).is_own(bundle) for bundle in made.values())
    assert not any(Seal(store=store, signer=None).is_own(bundle) for bundle in made.values())


@pytest.mark.parametrize(
    ("name", "value"), [("sms", "9.0"), ("engine-verified", "true"), ("weights", None), ("architecture", "arm64")]
)
def test_a_list_that_lies_is_not_signed(
    store: Store, fake: FakeRegistry, tmp_path: Path, name: str, value: str | None
) -> None:
    push(store, None)
    kind, content = fake.manifests[NAME, "latest"]
    document = json.loads(content)
    for entry in document["manifests"]:
        if name == "architecture":
            entry["platform"][name] = value
        elif value is None:
            del entry["annotations"][f"org.enginefarm.{name}"]
        else:
            entry["annotations"][f"org.enginefarm.{name}"] = value
    changed = json.dumps(document).encode()
    fake.manifests[NAME, "latest"] = fake.manifests[NAME, oci.digest_of(changed)] = (kind, changed)
    registry = Registry("localhost:5000", NAME, cancel=threading.Event(), listen=lambda _: None)
    seal = Seal(store=store, signer=key_signer(tmp_path))
    error = refusal(lambda: sign_in_registry(registry, "latest", seal))
    assert error.reason is Reason.IDENTITY_MISMATCH
    assert name in str(error.why)
    assert not any("/blobs/uploads" in path for path in fake.paths("PUT")[-1:])


def test_a_tag_that_somebody_blocks_is_left_as_it_is(store: Store, fake: FakeRegistry) -> None:
    push(store, None)
    kind, content = fake.manifests[NAME, "latest"]
    document = json.loads(content)
    document["annotations"]["org.enginefarm.serial"] = "9" * 18
    document["manifests"] = []
    blocked = json.dumps(document).encode()
    fake.manifests[NAME, "latest"] = (kind, blocked)
    assert refusal(lambda: push(store, None)).reason is Reason.ARTIFACT_INVALID
    assert fake.manifests[NAME, "latest"] == (kind, blocked)
