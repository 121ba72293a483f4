"""The weights of engines that were built without them: kept once, pushed once, and checked wherever they go."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builder import artifact, oci
from builder.collect import Limits, collect
from builder.errors import EnginefarmError, Reason
from builder.export_dir import export_engine
from builder.job_stages import check_weights, weights_inputs, weights_of
from builder.jobs import save, update_manifest
from builder.key import make_key
from builder.manifest import EnginePart, Manifest, WeightsFile, load_manifest
from builder.mirror import mirror
from builder.model_folder import ModelFolder
from builder.record import make_manifest
from builder.signatures import artifact_digests
from builder.signers import sign_digests
from builder.stage import StageResult
from builder.store import Store
from builder.titles import ENGINE, MANIFEST, WEIGHTS
from builder.triton import serves
from tests.artifacts import overwrite, refusal
from tests.engines import manifest
from tests.published import (
    MODEL,
    ONNX,
    TENSORRT,
    Parcel,
    add_parcel,
    attach,
    key_pair,
    parcel,
    policy_for,
    publish,
    publish_engine,
    sha256,
    signer_of,
    stripped,
)
from tests.pulling import Pull
from tests.registry_fake import FakeRegistry, fake
from tests.unit.test_plan import recipe
from tests.unit.test_publish import TINY, push
from tests.unit.test_record import evidence
from tests.unit.test_verify_engine import Farm, farm

__all__ = ["fake", "farm"]

DATA = b"what does not fit into it"
TITLE = "weights.onnx"


def lowered(folder: Path, **outputs: bytes) -> StageResult:
    paths = {}
    for role, content in outputs.items():
        paths[role] = folder / role
        paths[role].write_bytes(content)
    return StageResult(outputs=paths, data={}, seconds=1.0, max_rss_bytes=1)


# what a build keeps


def test_what_is_kept_is_what_tensorrt_parsed(tmp_path: Path) -> None:
    lower = lowered(tmp_path, lowered=ONNX, external=DATA)
    assert weights_of(recipe(), lower) == {}
    strip = recipe(build={"strip_weights": True})
    assert weights_of(strip, lower) == {TITLE: tmp_path / "lowered", "lowered.onnx.data": tmp_path / "external"}
    # a model asks for its weights by the name that the stage lower gives them, whatever it is called itself
    assert set(WEIGHTS) == {TITLE, "lowered.onnx.data"}


def test_the_manifest_says_what_the_weights_are(tmp_path: Path) -> None:
    plain = evidence(tmp_path, {}, {})
    assert make_manifest(plain).engine.weights == ()
    strip = recipe(precisions={"int8": {"tolerance": {"default": {"cosine": 0.9}}}}, build={"strip_weights": True})
    made = make_manifest(replace(plain, recipe=strip))
    assert made.engine.weights == (
        WeightsFile(file="weights.onnx", sha256=made.lowered.sha256, size=made.lowered.size),
    )
    # an engine that was known gets them, too
    assert make_manifest(replace(plain, recipe=strip, before=manifest())).engine.weights == made.engine.weights


def test_older_manifests_load() -> None:
    document = manifest().model_dump(mode="json")
    del document["engine"]["weights"]
    assert EnginePart.model_validate(document["engine"]).weights == ()
    told = stripped().told
    assert load_manifest(told.to_json().encode(), "here") == told


def test_another_lowered_model_has_other_weights(tmp_path: Path) -> None:
    check_weights(manifest(), lowered(tmp_path, lowered=b"whatever"))
    told = stripped(data=DATA).told
    check_weights(told, lowered(tmp_path, lowered=ONNX, external=DATA))
    for outputs in ({"lowered": ONNX + b"!", "external": DATA}, {"lowered": ONNX}):
        error = refusal(lambda outputs=outputs: check_weights(told, lowered(tmp_path, **outputs)))  # type: ignore[misc]
        assert error.reason is Reason.INPUTS_CHANGED


def test_weights_stay_beside_an_engine_that_gets_another_manifest(tmp_path: Path) -> None:
    store, told = Store(tmp_path / "store"), manifest()
    (tmp_path / "engine").write_bytes(b"engine")
    (tmp_path / "lowered").write_bytes(ONNX)
    key, proof = make_key("engine", {"a": 1}), make_key("proof", {"a": 1})
    entry = save(store, told, tmp_path / "engine", key, proof, {}, {TITLE: tmp_path / "lowered"})
    assert store.read(entry, TITLE) == ONNX
    update_manifest(store, entry, farm_version="9")
    (later,) = store.entries("engine")
    assert weights_inputs(store.files(later)) == {"lowered": store.files(later)[TITLE].path}


def test_engines_of_two_sms_share_one_file_of_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first, second = (add_parcel(store, stripped(sm, variant=n)) for n, sm in enumerate(("8.0", "8.6")))
    paths = {store.files(entry)[TITLE].path for entry in (first, second)}
    assert len(paths) == 1
    assert store.files(first)[ENGINE].digest != store.files(second)[ENGINE].digest
    # one of them goes, the weights stay for the other
    store.remove(first)
    store.sweep(0.0)
    assert paths.pop().read_bytes() == ONNX
    overwrite(store.files(second)[TITLE].path, b"damaged")
    assert [problem.what for problem in store.verify()] == [f"{TITLE} of {second.name} is damaged"]
    store.remove(second)
    assert store.sweep(0.0) > 0
    assert not store.orphans()


@pytest.mark.parametrize("lowered", [b"lower", b"another"])
def test_an_engine_without_weights_gets_its_own_or_none(farm: Farm, lowered: bytes) -> None:
    weights = WeightsFile(file="weights.onnx", sha256=hashlib.sha256(lowered).hexdigest(), size=len(lowered))
    farm.store.remove(farm.store.entries("engine")[0])
    made = farm.described()
    farm.put(farm.described(engine=made.engine.model_copy(update={"weights": (weights,)})))
    if lowered == b"lower":
        assert farm.verify().manifest.engine.weights == (weights,)
        return
    assert refusal(farm.verify).reason is Reason.INPUTS_CHANGED
    assert [one.stage for one in farm.requests] == ["lower"]


# pushing


def uploads(fake: FakeRegistry) -> list[bytes]:
    return [asked.body for asked in fake.asked if asked.method in {"PUT", "PATCH"} and "/uploads/" in asked.path]


def test_the_second_sm_moves_only_its_engine(tmp_path: Path, fake: FakeRegistry) -> None:
    store = Store(tmp_path / "store")
    first, second = stripped("8.0"), stripped("8.6", variant=1)
    add_parcel(store, first)
    push(store)
    assert uploads(fake).count(ONNX) == 1
    fake.asked.clear()
    add_parcel(store, second)
    push(store)
    sent = uploads(fake)
    assert ONNX not in sent
    assert second.files[ENGINE] in sent
    assert first.files[ENGINE] not in sent


def test_two_sms_pushed_at_once_send_the_weights_once(tmp_path: Path, fake: FakeRegistry) -> None:
    store = Store(tmp_path / "store")
    for number, sm in enumerate(("8.0", "8.6")):
        add_parcel(store, stripped(sm, variant=number))
    (pushed,) = push(store)
    assert pushed.listed == 2
    assert uploads(fake).count(ONNX) == 1
    # nor do two threads ask for the same at once, and then both send it
    assert fake.paths("HEAD").count(f"/v2/{TINY}/blobs/{oci.digest_of(ONNX)}") == 1
    for engine in pushed.engines:
        parsed = artifact.parse_artifact(fake.manifests[TINY, engine.digest][1], "here")
        assert parsed.layers[TITLE]["digest"] == oci.digest_of(ONNX)
        assert parsed.layers[TITLE]["mediaType"] == "application/vnd.enginefarm.weights.v1+onnx"


# artifacts


def test_manifest_and_artifact_must_agree(tmp_path: Path) -> None:
    def check(one: Parcel, told: Manifest | None = None) -> None:
        layers = [
            artifact.layer(title, oci.digest_of(content), len(content))
            for title, content in one.files.items()
            if title != MANIFEST
        ]
        parsed = artifact.parse_artifact(artifact.make_artifact(one.files[MANIFEST], layers), "here")
        artifact.check_files(parsed, told or one.told, "here")

    good = stripped()
    check(good)
    less = {title: content for title, content in good.files.items() if title != TITLE}
    wrong: list[Callable[[], None]] = [
        lambda: check(replace(good, files=less)),
        lambda: check(replace(good, files={**good.files, TITLE: ONNX + b"!"})),
        lambda: check(good, parcel().told),
        lambda: check(replace(good, files={**good.files, "lowered.onnx.data": DATA})),
    ]
    for one in wrong:
        assert refusal(one).reason is Reason.IDENTITY_MISMATCH


def test_weights_may_be_as_large_as_engines_and_no_larger() -> None:
    def parse(size: int, most: int) -> None:
        one = stripped()
        layers = [
            artifact.layer(title, oci.digest_of(content), size if title == TITLE else len(content))
            for title, content in one.files.items()
            if title != MANIFEST
        ]
        artifact.parse_artifact(artifact.make_artifact(one.files[MANIFEST], layers), "here", most)

    parse(6 << 30, artifact.MAX_BYTES)
    for size, most in ((9 << 30, artifact.MAX_BYTES), (2000, 1999)):
        with pytest.raises(EnginefarmError) as caught:
            parse(size, most)
        assert caught.value.reason is Reason.SIZE_REFUSED


# pulling


@pytest.fixture
def pull(tmp_path: Path) -> Pull:
    return Pull(tmp_path)


def test_weights_are_pulled_and_placed(pull: Pull) -> None:
    one = stripped(data=DATA)
    publish(pull.place, [one])
    pulled = pull()
    assert pulled.downloaded == sum(map(len, one.files.values()))
    assert (pulled.folder / TITLE).read_bytes() == ONNX
    assert (pulled.folder / "lowered.onnx.data").read_bytes() == DATA
    (entry,) = pull.store.entries("engine")
    assert pull.store.read(entry, TITLE) == ONNX
    to = pull.home.root / "to"
    assert (pull(to=to).folder / TITLE).read_bytes() == ONNX
    # the same again, and one with its weights inside in its place
    pull(to=to)
    publish(pull.place, [parcel(variant=2)], serial=2)
    pull(to=to)
    assert not (to / TITLE).exists()


def test_a_newer_engine_shares_weights_that_are_there(pull: Pull) -> None:
    publish(pull.place, [stripped()])
    pull()
    newer = stripped(variant=1)
    publish(pull.place, [newer], serial=2)
    assert pull().downloaded == sum(len(one) for title, one in newer.files.items() if title != TITLE)


def test_damaged_weights_do_not_arrive(pull: Pull) -> None:
    publish(pull.place, [stripped()])
    digest = hashlib.sha256(ONNX).hexdigest()
    (path,) = [one for one in pull.place.root.rglob(digest) if one.is_file()]
    overwrite(path, ONNX[:-1] + b"!")
    assert pull.refused().reason is Reason.DOWNLOAD_CORRUPT


def test_weights_that_the_manifest_does_not_tell_are_refused(pull: Pull) -> None:
    one = stripped()
    publish(pull.place, [replace(one, files={**one.files, TITLE: ONNX + b"!"})])
    assert pull.refused().reason is Reason.IDENTITY_MISMATCH


def test_the_signature_covers_the_weights(pull: Pull, tmp_path: Path) -> None:
    pair, one = key_pair(tmp_path), stripped()
    order: dict[str, Any] = {"policy": policy_for(pair), "allow_unsigned": False}
    publish(pull.place, [one], signer=signer_of(pair))
    assert pull(**order).signer is not None
    (entry,) = pull.store.entries("engine")
    assert artifact_digests(pull.store, entry)[TITLE] == sha256(ONNX)
    # its signature on an artifact that is the same but for the weights
    other = replace(one, files={**one.files, TITLE: ONNX[:-1] + b"!"})
    listed = publish_engine(pull.place, other)
    digests = {title: sha256(content) for title, content in one.files.items()}
    attach(pull.place, listed, sign_digests(one.told.job, digests, signer_of(pair)))
    pull.place.put_manifest("latest", artifact.make_index(MODEL, [listed], 2), oci.INDEX_TYPE)
    assert pull.refused(**order).reason is Reason.SIGNATURE_INVALID


# elsewhere


def test_a_mirror_copies_shared_weights_once(pull: Pull, tmp_path: Path) -> None:
    parcels = [stripped("8.0"), stripped("8.6", variant=1)]
    publish(pull.place, parcels)
    other = ModelFolder(tmp_path / "mirror" / MODEL)
    source = pull.located()
    fetched: list[str] = []
    real = source.place.fetch

    def fetch(described: oci.Document, file: Path) -> None:
        fetched.append(described["digest"])
        real(described, file)

    source = replace(source, place=_with(source.place, fetch=fetch))
    copied = mirror(source, replace(pull.located(), place=other), pull.home, threading.Event(), lambda _: None)
    assert fetched.count(oci.digest_of(ONNX)) == 1
    contents = {sha256(content) for one in parcels for content in one.files.values()}
    assert copied.blobs == len(contents)
    assert len([path for path in other.root.rglob(sha256(ONNX)) if path.is_file()]) == 1


def _with(place: Any, **changes: Any) -> Any:
    names = [name for name in dir(place) if not name.startswith("_")]
    return SimpleNamespace(**{name: getattr(place, name) for name in names} | changes)


def test_export_writes_weights_and_takes_them_away_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    entry = add_parcel(store, stripped())
    assert export_engine(store, entry, tmp_path / "out").written
    folder = tmp_path / "out" / entry.name
    assert (folder / TITLE).read_bytes() == ONNX
    assert not export_engine(store, entry, tmp_path / "out").written
    (folder / TITLE).write_bytes(b"changed")
    assert export_engine(store, entry, tmp_path / "out").written
    assert (folder / TITLE).read_bytes() == ONNX


def test_gc_counts_and_frees_weights(pull: Pull) -> None:
    add_parcel(pull.store, stripped())
    found = collect(pull.home, Limits(keep_bytes=0), dry_run=False)
    assert found.freed_bytes > len(ONNX)
    assert pull.store.entries() == ()


def test_triton_refits_nothing() -> None:
    stack = manifest().stack.model_copy(update={"name": "trt10.9-cuda12.8", "tensorrt": "10.9.0.34"})
    assert TENSORRT.startswith("1.")
    assert not serves(stripped().told.model_copy(update={"stack": stack}))
    assert serves(manifest().model_copy(update={"stack": stack}))
