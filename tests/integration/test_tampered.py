"""Artifacts that were tampered with, in a real registry: each is refused with its own code, and never deserialized.

The spy is a TensorRT that counts. An application pulls and, if that worked, deserializes; an honest artifact shows that
the spy sees it.
"""

from __future__ import annotations

import ast
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.policy_rules import IndexRule
from builder.publish import Destination, choose_packages, push_engines
from builder.publish_seal import Seal
from builder.pull import Puller
from builder.store import Store
from builder.titles import ENGINE
from tests.artifacts import overwrite
from tests.integration.farm import ROOT
from tests.integration.fault_proxy import faults_before
from tests.integration.scene import Scene, flip, make_scene, publish_changed, refused
from tests.published import (
    MODEL,
    Parcel,
    add_parcel,
    attach,
    header,
    machine,
    parcel,
    policy_for,
    publish,
    publish_engine,
    sha256,
    signer_of,
)

pytestmark = pytest.mark.integration


@pytest.fixture
def scene(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return make_scene(registry, tmp_path, monkeypatch)


def test_an_honest_one_is_deserialized_once(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    scene.run()
    assert scene.spy.deserialized == [one.files[ENGINE]]


def test_there_is_one_call_that_deserializes() -> None:
    calls = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "builder").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "deserialize_cuda_engine"
    ]
    assert calls == ["builder/worker/trt/loading.py"]


# bits that flip where the registry keeps its files


@pytest.mark.parametrize("title", ["model.plan", "manifest.json", "key.json", "proof.json", "layers.json"])
def test_a_flipped_bit_in_a_file(scene: Scene, title: str) -> None:
    one = parcel()
    scene.publish(one)
    overwrite(scene.blob(one.files[title]), flip(one.files[title]))
    assert refused(scene) is Reason.DOWNLOAD_CORRUPT


def signature(scene: Scene, digest: str) -> bytes:
    """Read the signature of an artifact."""
    (listed,) = scene.place.referrers(digest)
    read = scene.place.manifest(listed["digest"], (oci.MANIFEST_TYPE,))
    assert read is not None
    blob = json.loads(read[0])["layers"][0]["digest"]
    url = f"http://{scene.registry}/v2/farm/{MODEL}/blobs/{blob}"
    return requests.get(url, timeout=10).content


def test_a_flipped_bit_in_the_signature(scene: Scene) -> None:
    published = scene.publish(parcel())
    bundle = signature(scene, published.artifacts[0])
    overwrite(scene.blob(bundle), flip(bundle))
    assert refused(scene) is Reason.DOWNLOAD_CORRUPT


def test_a_flipped_bit_in_the_artifact_s_own_manifest(scene: Scene) -> None:
    published = scene.publish(parcel())
    read = scene.place.manifest(published.artifacts[0], (oci.MANIFEST_TYPE,))
    assert read is not None
    overwrite(scene.blob(read[0]), read[0].replace(b"model.plan", b"model.plam"))
    assert refused(scene) in {Reason.DOWNLOAD_CORRUPT, Reason.ARTIFACT_MISSING}


# those who may write to the registry, and adjust every digest


@pytest.mark.parametrize("title", ["model.plan", "manifest.json", "key.json", "proof.json"])
def test_a_file_that_was_changed_after_it_was_signed(scene: Scene, title: str) -> None:
    one = parcel()
    entry = publish_engine(scene.place, one, signer_of(scene.farm))
    bundle = signature(scene, entry["digest"])
    forged = one.changed(**{title.replace(".", "_"): one.files[title] + b" "})
    if title == "model.plan":
        forged = parcel(engine=one.files[title] + b" ")
    attach(scene.place, publish_engine(scene.place, forged), bundle)
    publish(scene.place, [forged])
    assert refused(scene) is Reason.SIGNATURE_INVALID


def test_a_signature_with_a_flipped_bit(scene: Scene) -> None:
    one = parcel()
    entry = publish_engine(scene.place, one, signer_of(scene.farm))
    document = json.loads(signature(scene, entry["digest"]))
    sealed = document["dsseEnvelope"]["signatures"][0]
    sealed["sig"] = sealed["sig"][:20] + ("A" if sealed["sig"][20] != "A" else "B") + sealed["sig"][21:]
    # the same engine in an artifact of its own, to which only the bad signature is attached
    entry = unsigned_copy(scene, one)
    attach(scene.place, entry, json.dumps(document).encode())
    assert refused(scene) is Reason.SIGNATURE_INVALID


def unsigned_copy(scene: Scene, one: Parcel) -> oci.Document:
    """Publish an engine once more under another digest, as the only one of the index."""

    def mark(content: dict[str, Any]) -> None:
        content["annotations"] = {"note": "another digest"}

    return publish_changed(scene, mark, one, signed=False)


def test_the_engine_of_another_model(scene: Scene) -> None:
    # signed by the farm, and a good engine: of something else
    scene.publish(parcel("other"))
    assert refused(scene) is Reason.IDENTITY_MISMATCH


def test_another_engine_than_the_index_says(scene: Scene) -> None:
    scene.publish(parcel(variant=1).entitled(engine=sha256(b"0"), engine_size="1"))
    assert refused(scene) is Reason.IDENTITY_MISMATCH


def test_a_downgraded_index(scene: Scene) -> None:
    scene.publish(parcel(), serial=2)
    Puller(home=scene.home, cancel=threading.Event(), listen=lambda _: None)
    with pytest.raises(EnginefarmError):
        # seen, though nothing of it fits
        scene.run(machine=machine(sm="9.0"))
    scene.publish(parcel(variant=1), serial=1)
    assert refused(scene) is Reason.INDEX_ROLLED_BACK


def test_an_index_that_nobody_has_signed_where_that_is_asked_for(scene: Scene) -> None:
    scene.publish(parcel())
    assert refused(scene, policy=policy_for(scene.farm, index=IndexRule.SIGNED)) is Reason.UNSIGNED


def test_an_index_that_was_changed_after_it_was_signed(scene: Scene) -> None:
    old = scene.publish(parcel(), index_signer=signer_of(scene.farm))
    new = scene.publish(parcel(variant=1), serial=2)
    read = scene.place.manifest(new.index, (oci.INDEX_TYPE,))
    assert read is not None
    attach(scene.place, read[1], signature(scene, old.index))
    assert refused(scene, policy=policy_for(scene.farm, index=IndexRule.SIGNED)) is Reason.SIGNATURE_INVALID


def test_unsigned(scene: Scene) -> None:
    scene.publish(parcel(), signer=None)
    assert refused(scene) is Reason.UNSIGNED


def test_signed_by_a_stranger(scene: Scene) -> None:
    scene.publish(parcel(), signer=signer_of(scene.stranger))
    assert refused(scene) is Reason.SIGNER_UNKNOWN


def test_signed_by_somebody_for_other_models(scene: Scene) -> None:
    scene.publish(parcel())
    assert refused(scene, policy=policy_for(scene.farm, models="other*")) is Reason.SIGNER_UNKNOWN


def test_an_expired_key(scene: Scene) -> None:
    scene.publish(parcel())
    assert refused(scene, policy=policy_for(scene.farm, expired=True)) is Reason.KEY_EXPIRED


def test_a_revoked_key(scene: Scene) -> None:
    scene.publish(parcel())
    assert refused(scene, policy=policy_for(scene.farm, revoked={scene.farm.key_id: "lost"})) is Reason.KEY_REVOKED


# engines for other machines


def test_the_wrong_sm(scene: Scene) -> None:
    target = parcel().told.target.model_copy(update={"sms": ["9.0"]})
    scene.publish(parcel(target=target))
    assert refused(scene) is Reason.NO_ENGINE_FITS
    scene.publish(parcel(target=target).entitled(sms="8.6"), serial=2)
    assert refused(scene) is Reason.SM_MISMATCH


def test_the_wrong_tensorrt(scene: Scene) -> None:
    stack = parcel().told.stack.model_copy(update={"tensorrt": "1.8.0.1"})
    later = parcel(engine=header("1.8.0.1") + b"later", stack=stack)
    scene.publish(later)
    assert refused(scene) is Reason.NO_ENGINE_FITS
    scene.publish(later.entitled(tensorrt="1.7.1.116"), serial=2)
    assert refused(scene) is Reason.TENSORRT_VERSION
    scene.publish(parcel(engine=header("1.8.0.1") + b"later"), serial=3)
    assert refused(scene) is Reason.ENGINE_HEADER


def test_code_for_the_host_that_the_policy_does_not_allow(scene: Scene) -> None:
    one = parcel()
    told = one.told.model_copy(update={"engine": one.told.engine.model_copy(update={"needs_host_code": True})})
    carrying = replace(one, told=told).changed(manifest_json=told.to_json().encode())
    scene.publish(carrying.entitled(host_code="false"))
    assert refused(scene) is Reason.HOST_CODE_REFUSED


# what is too new, too short or gone


def test_a_manifest_of_a_newer_schema(scene: Scene) -> None:
    one = parcel()
    content = json.loads(one.files["manifest.json"]) | {"schema_version": 2, "novelty": True}
    scene.publish(one.changed(manifest_json=json.dumps(content).encode()))
    assert refused(scene) is Reason.ARTIFACT_TOO_NEW
    scene.publish(parcel(), schema=2, serial=2)
    assert refused(scene) is Reason.ARTIFACT_TOO_NEW

    def renew(content: dict[str, Any]) -> None:
        content["artifactType"] = "application/vnd.enginefarm.engine.v2"

    publish_changed(scene, renew)
    assert refused(scene) is Reason.ARTIFACT_TOO_NEW


def test_a_file_that_lost_its_end(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    overwrite(scene.blob(one.files[ENGINE]), one.files[ENGINE][:-100])
    assert refused(scene) is Reason.DOWNLOAD_CORRUPT


def test_a_file_that_is_gone(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    scene.blob(one.files[ENGINE]).unlink()
    assert refused(scene) is Reason.ARTIFACT_MISSING


def test_a_registry_that_goes_away_while_it_is_published_to(scene: Scene) -> None:
    source, destination = (
        Store(scene.home.root.parent / "source"),
        Destination(registry="", prefix="farm", tag="latest"),
    )
    add_parcel(source, parcel())
    packages, seal, gone = choose_packages(source, ()), Seal(store=source, signer=None), 0
    with faults_before(scene.registry) as proxy:
        destination = replace(destination, registry=proxy.address)
        for number in range(0, 100, 4):
            proxy.die_after(number)
            try:
                push_engines(packages, destination, cancel=threading.Event(), listen=lambda _: None, seal=seal)
                break
            except EnginefarmError as error:
                gone += error.reason is Reason.REGISTRY_UNREACHABLE
            assert refused(scene) is Reason.ARTIFACT_MISSING
    # once the index is there, all that it names is there: only the signature is missing
    assert gone > 3
    assert refused(scene) is Reason.UNSIGNED
