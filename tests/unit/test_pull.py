"""Pulling: the right engine, checked, whole in the store and where applications load it; or nothing at all."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from builder import oci
from builder.artifact import SIGNATURE_TYPE
from builder.compat import Fit, Wish
from builder.engine_folder import FILES, place_engine
from builder.errors import Reason
from builder.events import Note
from builder.keys import KeyPair
from builder.model_folder import ModelFolder
from builder.policy_rules import IndexRule, Policy
from builder.pull import Order, Puller
from builder.signatures import signatures_of
from tests.artifacts import document, overwrite
from tests.published import (
    MODEL,
    attach,
    key_pair,
    machine,
    parcel,
    policy_for,
    publish,
    publish_engine,
    signer_of,
)
from tests.pulling import Pull


@pytest.fixture
def pull(tmp_path: Path) -> Pull:
    return Pull(tmp_path)


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(tmp_path_factory.mktemp("farm"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> KeyPair:
    return key_pair(tmp_path_factory.mktemp("stranger"), "stranger")


def test_the_engine_ends_up_in_the_store_and_where_it_is_loaded(pull: Pull) -> None:
    one = parcel()
    published = publish(pull.place, [one], serial=7)
    pulled = pull()
    assert (pulled.job, pulled.serial, pulled.signer, pulled.verdict.fit) == (one.told.job, 7, None, Fit.SAME_SM)
    assert pulled.reference == f"oci:{pull.place.root}@{published.artifacts[0]}"
    assert pulled.downloaded == sum(len(content) for content in one.files.values())
    (entry,) = pull.store.entries()
    assert (entry.kind, entry.key, entry.name) == ("engine", one.told.key, one.told.job)
    kept = {title: pull.store.read(entry, title) for title in pull.store.files(entry)}
    assert kept == {title: content for title, content in one.files.items() if title != "layers.json"}
    folder = pull.home.engines / MODEL
    assert pulled.folder == folder
    assert {title: (folder / title).read_bytes() for title in FILES} == {title: one.files[title] for title in FILES}
    trust = document(folder / "trust.json")
    assert trust.pop("checked_at").startswith("20")
    assert trust == {
        "engine_sha256": one.told.engine.sha256,
        "manifest_sha256": oci.digest_of(one.files["manifest.json"]).removeprefix("sha256:"),
        "signer": None,
        "reference": pulled.reference,
    }
    # nothing of the transfer is left
    assert [path.name for path in pull.home.pulls.iterdir() if path.is_dir()] == []


def test_pulling_again_changes_nothing(pull: Pull) -> None:
    one = parcel()
    publish(pull.place, [one])
    first = pull()
    second = pull()
    # the store keeps no layer report, as it follows from the manifest
    assert (second.downloaded, second.reference) == (len(one.files["layers.json"]), first.reference)
    assert len(pull.store.entries()) == 1


def test_what_was_built_here_stays_and_needs_no_download(pull: Pull) -> None:
    one = parcel()
    publish(pull.place, [one])
    built = pull.store.add(
        kind="engine",
        key=one.told.key,
        name=one.told.job,
        files={title: content for title, content in one.files.items() if title != "layers.json"},
    )
    pulled = pull()
    assert pulled.downloaded == len(one.files["layers.json"])
    assert pull.store.entries() == (built,)


def test_a_new_manifest_of_a_pulled_engine_takes_the_place_of_the_old_one(pull: Pull) -> None:
    publish(pull.place, [parcel()])
    pull()
    again = parcel(host={"system": "another"})
    publish(pull.place, [again], serial=2)
    assert pull().downloaded < len(again.files["model.plan"])
    (entry,) = pull.store.entries()
    assert pull.store.read(entry, "manifest.json") == again.files["manifest.json"]


def test_the_best_one_is_taken(pull: Pull) -> None:
    fp32, fp16 = parcel(precision="fp32"), parcel(precision="fp16")
    publish(pull.place, [fp32, fp16])
    assert pull().job == fp16.told.job
    wish = replace(machine(), wish=Wish(precision="fp32"))
    assert pull(machine=wish).job == fp32.told.job


def test_where_none_fits_every_reason_is_told(pull: Pull) -> None:
    publish(pull.place, [parcel(precision="fp32"), parcel(precision="fp16")])
    error = pull.refused(machine=machine(sm="9.0"))
    assert error.reason is Reason.NO_ENGINE_FITS
    assert (error.why or "").count("EF-201") == 2
    assert "--or-build" in (error.fix or "")


def test_an_index_without_engines_fits_nobody(pull: Pull) -> None:
    publish(pull.place, [])
    assert pull.refused().reason is Reason.NO_ENGINE_FITS


def test_a_copy_goes_where_it_is_asked_for(pull: Pull, tmp_path: Path) -> None:
    publish(pull.place, [parcel()])
    pulled = pull(to=tmp_path / "out")
    assert pulled.folder == tmp_path / "out"
    assert sorted(path.name for path in pulled.folder.iterdir()) == sorted([*FILES, "trust.json"])
    assert not pull.home.engines.exists()


def test_nothing_is_there(pull: Pull) -> None:
    assert pull.refused().reason is Reason.ARTIFACT_MISSING
    publish(pull.place, [parcel()])
    assert pull.refused(":other").reason is Reason.ARTIFACT_MISSING


def test_the_folder_of_engines_stays_within_its_size(pull: Pull) -> None:
    one = parcel()
    publish(pull.place, [one])
    old = place_engine(pull.home, "old", {title: tmp_file(pull, title) for title in FILES}, {}, threading.Event())
    os.utime(old.resolve(), (0, 0))
    puller = Puller(home=pull.home, cancel=threading.Event(), listen=pull.heard.append, engines_bytes=1)
    order = Order(machine=machine(), policy=Policy(), allow_unsigned=True)
    assert puller.pull(pull.located(), order).folder.is_dir()
    # what was pulled just now stays, whatever the limit
    assert [path.name for path in pull.home.engines.glob("[!.]*")] == [MODEL]
    (note,) = [event.text for event in pull.heard if isinstance(event, Note)]
    assert note.startswith("old went from")


def tmp_file(pull: Pull, title: str) -> Path:
    pull.home.root.mkdir(exist_ok=True)
    (pull.home.root / title).write_bytes(b"old")
    return pull.home.root / title


# who signed it


def test_signed_by_whom_the_policy_names(pull: Pull, farm: KeyPair) -> None:
    publish(pull.place, [parcel()], signer=signer_of(farm))
    pulled = pull(policy=policy_for(farm), allow_unsigned=False)
    assert pulled.signer == "farm"
    assert document(pulled.folder / "trust.json")["signer"] == "farm"


def test_unsigned_is_refused_before_anything_is_fetched(
    pull: Pull, farm: KeyPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(pull.place, [parcel()])

    def fetch(*_: object) -> None:
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr(ModelFolder, "fetch", fetch)
    assert pull.refused(policy=policy_for(farm), allow_unsigned=False).reason is Reason.UNSIGNED


def test_a_stranger_s_signature_does_not_do_even_where_none_would(pull: Pull, farm: KeyPair, stranger: KeyPair) -> None:
    publish(pull.place, [parcel()], signer=signer_of(stranger))
    for allow in (False, True):
        assert pull.refused(policy=policy_for(farm), allow_unsigned=allow).reason is Reason.SIGNER_UNKNOWN


def test_expired_and_revoked_keys(pull: Pull, farm: KeyPair) -> None:
    publish(pull.place, [parcel()], signer=signer_of(farm))
    assert pull.refused(policy=policy_for(farm, expired=True)).reason is Reason.KEY_EXPIRED
    revoked = policy_for(farm, revoked={farm.key_id: "it was lost"})
    assert pull.refused(policy=revoked).reason is Reason.KEY_REVOKED


def test_a_signature_of_other_files_does_not_do(pull: Pull, farm: KeyPair) -> None:
    one = parcel()
    entry = publish_engine(pull.place, one, signer_of(farm))
    changed = parcel(host={"system": "another"})
    publish(pull.place, [changed])
    bundle = pull.place.root / "blobs" / "sha256"
    (signature,) = pull.place.referrers(entry["digest"])
    content = json.loads((bundle / signature["digest"].removeprefix("sha256:")).read_bytes())
    stolen = (bundle / content["layers"][0]["digest"].removeprefix("sha256:")).read_bytes()
    index = json.loads((pull.place.manifest("latest", (oci.INDEX_TYPE,)) or (b"",))[0])
    attach(pull.place, index["manifests"][0], stolen)
    assert pull.refused(policy=policy_for(farm)).reason is Reason.SIGNATURE_INVALID


def test_what_others_attach_spoils_nothing(pull: Pull, farm: KeyPair) -> None:
    published = publish(pull.place, [parcel()], signer=signer_of(farm))
    subject = oci.descriptor(oci.MANIFEST_TYPE, published.artifacts[0], 1)
    for junk in (b"", b"junk", b"{}"):
        attach(pull.place, subject, junk)
    attach(pull.place, subject, b"found nothing", "application/scan")
    for _ in range(2):
        assert pull(policy=policy_for(farm), allow_unsigned=False).signer == "farm"
        # the good one comes along, for whoever checks or pushes the engine from here
        (entry,) = pull.store.entries("engine")
        (bundle,) = signatures_of(pull.store, entry)
        assert len(pull.store.entries()) == 2
    assert json.loads(bundle)["mediaType"] == SIGNATURE_TYPE


def test_the_index_must_be_signed_where_the_policy_says_so(pull: Pull, farm: KeyPair, stranger: KeyPair) -> None:
    strict = policy_for(farm, index=IndexRule.SIGNED)
    publish(pull.place, [parcel()], signer=signer_of(farm))
    assert pull.refused(policy=strict).reason is Reason.UNSIGNED
    publish(pull.place, [parcel()], signer=signer_of(farm), index_signer=signer_of(stranger), serial=2)
    assert pull.refused(policy=strict).reason is Reason.SIGNER_UNKNOWN
    publish(pull.place, [parcel()], signer=signer_of(farm), index_signer=signer_of(farm), serial=3)
    assert pull(policy=strict).signer == "farm"


# what the index says


def test_an_older_index_is_refused(pull: Pull) -> None:
    publish(pull.place, [parcel()], serial=5)
    first = pull()
    publish(pull.place, [parcel(variant=1)], serial=4)
    assert pull.refused().reason is Reason.INDEX_ROLLED_BACK
    # another tag has a history of its own, and a digest none
    publish(pull.place, [parcel()], serial=1, tag="1")
    assert pull(":1").reference == first.reference
    assert pull(accept_older=True).serial == 4


def test_what_is_asked_for_by_digest_cannot_be_rolled_back(pull: Pull) -> None:
    old = publish(pull.place, [parcel()], serial=4)
    publish(pull.place, [parcel(variant=1)], serial=5)
    pull()
    assert pull(f"@{old.index}").serial == 4
    assert pull().serial == 5


def test_a_poisoned_serial_of_an_unsigned_index_is_not_remembered(pull: Pull, farm: KeyPair) -> None:
    strict = policy_for(farm, index=IndexRule.SIGNED)
    publish(pull.place, [parcel()], serial=10**15)
    pull.refused(policy=strict)
    publish(pull.place, [parcel()], serial=1, signer=signer_of(farm), index_signer=signer_of(farm))
    assert pull(policy=strict).serial == 1


def test_an_index_of_another_model(pull: Pull) -> None:
    publish(pull.place, [parcel("other")], model="other")
    assert pull.refused().reason is Reason.IDENTITY_MISMATCH


def test_a_newer_index(pull: Pull) -> None:
    publish(pull.place, [parcel()], schema=2)
    assert pull.refused().reason is Reason.ARTIFACT_TOO_NEW


# what goes wrong on the way


def blob(pull: Pull, content: bytes) -> Path:
    return pull.place.root / "blobs" / "sha256" / oci.digest_of(content).removeprefix("sha256:")


@pytest.mark.parametrize("title", ["model.plan", "manifest.json", "key.json", "proof.json", "layers.json"])
def test_a_flipped_bit(pull: Pull, title: str) -> None:
    one = parcel()
    publish(pull.place, [one])
    path = blob(pull, one.files[title])
    overwrite(path, bytes([one.files[title][0] ^ 4]) + one.files[title][1:])
    assert pull.refused().reason is Reason.DOWNLOAD_CORRUPT
    overwrite(path, one.files[title])
    assert pull().job == one.told.job


def test_the_next_pull_takes_up_what_has_come(pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    one = parcel()
    publish(pull.place, [one])
    path = blob(pull, one.files["model.plan"])
    overwrite(path, b"torn")
    pull.refused()
    overwrite(path, one.files["model.plan"])
    fetched: list[str] = []
    fetch = ModelFolder.fetch

    def note(self: ModelFolder, described: oci.Document, destination: Path) -> None:
        fetched.append(described["digest"])
        fetch(self, described, destination)

    monkeypatch.setattr(ModelFolder, "fetch", note)
    pull()
    assert oci.digest_of(one.files["model.plan"]) in fetched
    assert len(fetched) < len(one.files)


def test_what_is_refused_for_good_does_not_stay_on_the_disk(pull: Pull) -> None:
    publish(pull.place, [parcel("other")])
    assert pull.refused().reason is Reason.IDENTITY_MISMATCH
    assert [path.name for path in pull.home.pulls.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("step", ["Store.add", "offer_engine", "check_pulled", "_gather"])
def test_a_pull_that_dies_leaves_nothing_half(pull: Pull, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    class KilledError(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise KilledError

    one = parcel()
    publish(pull.place, [one])
    with monkeypatch.context() as patch:
        patch.setattr(f"builder.pull.{step}", die)
        with pytest.raises(KilledError):
            pull()
    assert not (pull.home.engines / MODEL).exists()
    assert len(pull.store.entries()) == (1 if step == "offer_engine" else 0)
    assert pull.store.verify() == ()
    assert pull().downloaded <= len(one.files["layers.json"])
    assert len(pull.store.entries()) == 1


def test_two_at_once_do_no_harm(pull: Pull) -> None:
    one = parcel()
    publish(pull.place, [one])
    failed: list[BaseException] = []

    def run() -> None:
        try:
            pull()
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert len(pull.store.entries()) == 1
    assert pull.store.verify() == ()
    assert (pull.home.engines / MODEL / "model.plan").read_bytes() == one.files["model.plan"]


def test_it_tells_how_it_goes(pull: Pull) -> None:
    publish(pull.place, [parcel()])
    pull()
    pull.refused(max_bytes=1)
    publish(pull.place, [parcel("other")], serial=2)
    pull.refused()
    told = [(type(event).__name__, getattr(event, "ok", None)) for event in pull.heard]
    assert told == [("StepStarted", None), ("StepFinished", True), ("StepStarted", None), ("StepFinished", False)]
