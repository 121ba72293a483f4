"""Engines that are not what they say, with names and sizes that are not what they should be: none is taken."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import oci
from builder.artifact import make_index
from builder.errors import Reason
from builder.keys import KeyPair
from builder.policy_rules import Policy
from tests.published import (
    MODEL,
    Parcel,
    finish_engine,
    header,
    key_pair,
    parcel,
    policy_for,
    publish,
    publish_engine,
    put,
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


# what the engine says


def test_an_engine_of_another_model(pull: Pull) -> None:
    publish(pull.place, [parcel("other")])
    assert pull.refused().reason is Reason.IDENTITY_MISMATCH


def newer() -> Parcel:
    one = parcel()
    content = json.loads(one.files["manifest.json"]) | {"schema_version": 2, "what": "is this"}
    return one.changed(manifest_json=json.dumps(content).encode())


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (parcel(engine=b"vtrt"), Reason.ENGINE_HEADER),
        (parcel(engine=b"\x7fELF" + bytes(100)), Reason.ENGINE_HEADER),
        (parcel(engine=header("1.6.0.0") + b"1"), Reason.ENGINE_HEADER),
        (parcel(engine=header("1.7.1.116", b"ftrt") + b"1"), Reason.ENGINE_HEADER),
        (parcel().entitled(engine="0" * 64), Reason.IDENTITY_MISMATCH),
        (parcel().entitled(engine_size="1"), Reason.IDENTITY_MISMATCH),
        (parcel().entitled(job="something-else"), Reason.IDENTITY_MISMATCH),
        (parcel().entitled(key="0" * 64), Reason.IDENTITY_MISMATCH),
        (parcel().entitled(engine_verified="true"), Reason.IDENTITY_MISMATCH),
        (parcel().entitled(weights=None), Reason.IDENTITY_MISMATCH),
        (parcel().changed(key_json=b"{}"), Reason.ARTIFACT_INVALID),
        (parcel().changed(key_json=parcel(variant=1).files["key.json"]), Reason.IDENTITY_MISMATCH),
        (parcel().changed(proof_json=parcel(variant=1).files["proof.json"]), Reason.IDENTITY_MISMATCH),
        (parcel().changed(proof_json=parcel().files["key.json"]), Reason.IDENTITY_MISMATCH),
        (parcel().changed(layers_json=b"{}"), Reason.IDENTITY_MISMATCH),
        (parcel().changed(manifest_json=b"{}"), Reason.MANIFEST_INVALID),
        (parcel().changed(model_plan=parcel("other").files["model.plan"]), Reason.IDENTITY_MISMATCH),
        (newer(), Reason.ARTIFACT_TOO_NEW),
    ],
)
def test_an_engine_that_is_not_what_it_says(pull: Pull, one: Parcel, reason: Reason) -> None:
    publish(pull.place, [one])
    assert pull.refused().reason is reason


def test_an_entry_of_a_later_version_is_passed_over(pull: Pull) -> None:
    later = parcel(precision="fp32").entitled(hardware_compatibility="quantum_plus")
    publish(pull.place, [later])
    error = pull.refused()
    assert error.reason is Reason.NO_ENGINE_FITS
    assert "quantum_plus" in (error.why or "")
    publish(pull.place, [later, parcel()], serial=2)
    assert pull().job == parcel().told.job


def test_an_index_that_promises_too_much(pull: Pull) -> None:
    told = parcel().told
    hopper = parcel(target=told.target.model_copy(update={"sms": ["9.0"]})).entitled(sms="8.6")
    publish(pull.place, [hopper])
    assert pull.refused().reason is Reason.SM_MISMATCH
    later = parcel(
        engine=header("1.8.0.1") + b"1", stack=told.stack.model_copy(update={"tensorrt": "1.8.0.1"})
    ).entitled(tensorrt="1.7.1.116")
    publish(pull.place, [later], serial=2)
    assert pull.refused().reason is Reason.TENSORRT_VERSION


def test_host_code_needs_the_policy_s_word(pull: Pull, farm: KeyPair) -> None:
    one = parcel()
    engine = one.told.engine.model_copy(update={"needs_host_code": True})
    told = one.told.model_copy(update={"engine": engine})
    carrying = replace(one, told=told).changed(manifest_json=told.to_json().encode())
    publish(pull.place, [carrying], signer=signer_of(farm))
    plain = policy_for(farm)
    error = pull.refused(policy=plain)
    assert error.reason is Reason.NO_ENGINE_FITS
    assert "EF-216" in (error.why or "")
    allowed = Policy(rules=(replace(plain.rules[0], host_code=True),))
    assert pull(policy=allowed).signer == "farm"


# names and sizes


@pytest.mark.parametrize(
    ("title", "reason"),
    [
        ("../../etc/passwd", Reason.NAME_UNSAFE),
        ("/etc/passwd", Reason.NAME_UNSAFE),
        ("..", Reason.NAME_UNSAFE),
        ("", Reason.NAME_UNSAFE),
        ("model.plan/../key.json", Reason.NAME_UNSAFE),
        ("link -> /etc/passwd", Reason.NAME_UNSAFE),
        ("a\\b", Reason.NAME_UNSAFE),
        ("model.plan\0.txt", Reason.NAME_UNSAFE),
        ("run.sh", Reason.ARTIFACT_INVALID),
        ("manifest.json", Reason.ARTIFACT_INVALID),
        ("key.json", Reason.ARTIFACT_INVALID),
    ],
)
def test_names_that_lead_elsewhere(pull: Pull, title: str, reason: Reason) -> None:
    def add(content: dict[str, Any]) -> None:
        digest, size = put(pull.place, b"root:x:0:0")
        content["layers"].append(oci.descriptor("application/octet-stream", digest, size, {oci.TITLE: title}))

    publish_changed(pull, add)
    assert pull.refused().reason is reason


def publish_changed(pull: Pull, change: Any, one: Parcel | None = None) -> None:
    """Publish an engine whose OCI manifest is changed."""
    one = one or parcel()
    entry = publish_engine(pull.place, one)
    content = json.loads((pull.place.manifest(entry["digest"], (oci.MANIFEST_TYPE,)) or (b"",))[0])
    change(content)
    entry = finish_engine(pull.place, one, json.dumps(content).encode())
    pull.place.put_manifest("latest", make_index(MODEL, [entry], 1), oci.INDEX_TYPE)


def test_a_bomb_that_says_so_is_not_fetched(pull: Pull) -> None:
    def swell(content: dict[str, Any]) -> None:
        for layer in content["layers"]:
            if layer["annotations"][oci.TITLE] == "model.plan":
                layer["size"] = 10 << 30

    publish_changed(pull, swell)
    assert pull.refused().reason is Reason.SIZE_REFUSED


def test_a_limit_of_one_s_own(pull: Pull) -> None:
    one = parcel()
    publish(pull.place, [one])
    total = sum(len(content) for content in one.files.values())
    assert pull.refused(max_bytes=total - 1).reason is Reason.SIZE_REFUSED
    assert pull(max_bytes=total).downloaded == total


def test_no_room_is_said_before_the_download(pull: Pull, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(pull.place, [parcel()])
    monkeypatch.setattr("builder.host.free_disk_bytes", lambda _: 1000)
    assert pull.refused().reason is Reason.DISK_FULL


# what lies where a pull works


def test_what_no_pull_left_is_not_written_through(pull: Pull) -> None:
    one = parcel()
    published = publish(pull.place, [one])
    work = pull.home.pulls / published.artifacts[0].removeprefix("sha256:")
    names = {title: oci.digest_of(content).removeprefix("sha256:") for title, content in one.files.items()}
    victim, copy = pull.home.root / "victim", pull.home.root / "copy"
    work.mkdir(parents=True)
    victim.write_bytes(b"mine")
    copy.write_bytes(one.files["model.plan"])
    (work / names["model.plan"]).symlink_to(copy)
    (work / f"{names['key.json']}.part").symlink_to(victim)
    os.mkfifo(work / f"{names['proof.json']}.part")
    (work / names["manifest.json"] / "x").mkdir(parents=True)
    (work / "files").touch()
    folder = pull().folder
    assert victim.read_bytes() == b"mine"
    assert not any(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("elsewhere", [True, False])
def test_a_place_of_work_that_is_none(pull: Pull, elsewhere: bool) -> None:
    published = publish(pull.place, [parcel()])
    work = pull.home.pulls / published.artifacts[0].removeprefix("sha256:")
    (pull.home.root / "victim").mkdir(parents=True)
    work.parent.mkdir(parents=True)
    if elsewhere:
        work.symlink_to(pull.home.root / "victim")
    else:
        work.touch()
    assert pull().job == parcel().told.job
    assert list((pull.home.root / "victim").iterdir()) == []


def test_sizes_are_those_of_the_files_even_where_the_store_has_them(pull: Pull) -> None:
    publish(pull.place, [parcel()])
    pull()

    def swell(content: dict[str, Any]) -> None:
        for layer in content["layers"]:
            layer["size"] += layer["annotations"][oci.TITLE] == "key.json"

    # another manifest, so that the store takes in what came
    publish_changed(pull, swell, parcel(host={"system": "another"}))
    assert pull.refused().reason in {Reason.DOWNLOAD_CORRUPT, Reason.SIZE_REFUSED}
