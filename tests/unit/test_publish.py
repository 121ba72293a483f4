"""Pushing engines: what arrives, what a second push changes, and two pushes at once."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from builder import artifact, oci, publish_index
from builder import manifest as m
from builder.errors import EnginefarmError, Reason
from builder.events import Event, Note, StepAdvanced, StepFinished, StepStarted
from builder.publish import Package, Pushed, choose_packages, parse_destination, push_engines
from builder.publish_index import marker
from builder.publish_seal import Seal
from builder.store import Store
from builder.titles import ENGINE, KEY, MANIFEST, PROOF
from tests.engines import add_engine, engine_bytes, job_id, manifest
from tests.registry_fake import Asked, FakeRegistry, Said, fake

__all__ = ["fake"]

HOST, TINY, VOCOS = "localhost:5000", "engines/tiny", "engines/vocos"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store with two engines of one model and one of another."""
    store = Store(tmp_path / "store")
    add_engine(store, "vocos", "fp32")
    add_engine(store)
    add_engine(store, precision="fp32")
    return store


def push(store: Store, *patterns: str, tag: str = "latest", heard: list[Event] | None = None) -> list[Pushed]:
    return push_packages(choose_packages(store, patterns), store, tag=tag, heard=heard)


def push_packages(
    packages: Sequence[Package], store: Store, *, tag: str = "latest", heard: list[Event] | None = None
) -> list[Pushed]:
    events = [] if heard is None else heard
    destination = parse_destination(f"{HOST}/engines", tag)
    seal = Seal(store=store, signer=None)
    return push_engines(packages, destination, cancel=threading.Event(), listen=events.append, seal=seal)


def index(fake: FakeRegistry, name: str = TINY, tag: str = "latest") -> artifact.ModelIndex:
    return artifact.parse_index(fake.manifests[name, tag][1], name, name.rpartition("/")[2])


def jobs(fake: FakeRegistry, name: str = TINY, tag: str = "latest") -> list[str]:
    return [entry["annotations"]["org.enginefarm.job"] for entry in index(fake, name, tag).entries]


def referrers(fake: FakeRegistry, digest: str) -> dict[str, bytes]:
    """Read what is beside an artifact, by type."""
    listed = json.loads(fake.manifests[TINY, digest.replace(":", "-")][1])["manifests"]
    documents = [json.loads(fake.manifests[TINY, one["digest"]][1]) for one in listed]
    return {one["artifactType"]: fake.blobs[TINY, one["layers"][0]["digest"]] for one in documents}


@pytest.mark.parametrize(
    ("text", "registry", "prefix"),
    [
        ("localhost:5000", "localhost:5000", ""),
        ("localhost:5000/", "localhost:5000", ""),
        ("ghcr.io/me/engines", "ghcr.io", "me/engines"),
        ("ghcr.io/me/engines/", "ghcr.io", "me/engines"),
    ],
)
def test_destinations(text: str, registry: str, prefix: str) -> None:
    found = parse_destination(text, "v1")
    assert (found.registry, found.prefix) == (registry, prefix)
    assert found.repository("tiny") == (f"{prefix}/tiny" if prefix else "tiny")


@pytest.mark.parametrize(
    ("text", "tag"),
    [("engines", "v1"), ("ghcr.io/me:v1", "v1"), ("ghcr.io/Me", "v1"), ("ghcr.io/me", "v/1"), ("ghcr.io/me", "v" * 41)],
)
def test_what_is_no_destination(text: str, tag: str) -> None:
    with pytest.raises(EnginefarmError) as caught:
        parse_destination(text, tag)
    assert caught.value.reason is Reason.REFERENCE_INVALID


def test_engines_arrive_whole(store: Store, fake: FakeRegistry) -> None:
    pushed = push(store)
    assert [(one.reference, one.serial, one.changed, one.listed) for one in pushed] == [
        (f"{HOST}/{TINY}:latest", 1, True, 2),
        (f"{HOST}/{VOCOS}:latest", 1, True, 1),
    ]
    assert jobs(fake) == [job_id(), job_id(precision="fp32")]
    assert jobs(fake, VOCOS) == [job_id("vocos", "fp32")]
    entry = index(fake).entries[0]
    parsed = artifact.parse_artifact(fake.manifests[TINY, entry["digest"]][1], "here")
    files = {title: fake.blobs[TINY, one["digest"]] for title, one in parsed.files.items()}
    assert set(files) == {ENGINE, MANIFEST, KEY, PROOF, artifact.LAYERS}
    assert files[ENGINE] == engine_bytes("tiny", "fp16", 0)
    artifact.check_files(parsed, artifact.parse_manifest(files[MANIFEST], "here"), "here")
    assert pushed[0].engines[0].digest == entry["digest"]
    assert all(one.new for one in pushed[0].engines)


def test_what_belongs_to_an_engine_is_beside_it(store: Store, fake: FakeRegistry) -> None:
    (pushed,) = push(store, job_id())
    beside = referrers(fake, pushed.engines[0].digest)
    assert set(beside) == {artifact.SBOM_TYPE, artifact.PROVENANCE_TYPE}
    materials = json.loads(beside[artifact.SBOM_TYPE])
    assert [one["purl"] for one in materials["components"]] == ["pkg:pypi/numpy@2.0.0"]
    assert materials["metadata"]["component"]["hashes"][0]["content"] == manifest().engine.sha256
    statement = json.loads(beside[artifact.PROVENANCE_TYPE])
    assert {one["name"] for one in statement["subject"]} == {ENGINE, MANIFEST, KEY, PROOF, artifact.LAYERS}


def test_the_index_comes_last(store: Store, fake: FakeRegistry) -> None:
    push(store, job_id())
    puts = fake.paths("PUT")
    assert puts[-1].endswith("/manifests/latest")
    assert puts.index(f"/v2/{TINY}/manifests/{marker('latest', index(fake).entries[0])}") < len(puts) - 1


def test_a_second_push_changes_nothing(store: Store, fake: FakeRegistry) -> None:
    push(store)
    before = dict(fake.manifests), dict(fake.blobs)
    fake.asked.clear()
    again = push(store)
    assert (fake.manifests, fake.blobs) == before
    assert {one.method for one in fake.asked} <= {"GET", "HEAD"}
    assert [(one.serial, one.changed) for one in again] == [(1, False), (1, False)]
    assert not any(engine.new for one in again for engine in one.engines)


def test_further_engines_join_the_index(store: Store, fake: FakeRegistry) -> None:
    push(store, job_id())
    (pushed,) = push(store, job_id(precision="fp32"))
    assert (pushed.serial, pushed.listed, len(pushed.engines)) == (2, 2, 1)
    assert jobs(fake) == [job_id(), job_id(precision="fp32")]


def test_a_newer_engine_of_a_job_takes_the_older_one_s_place(store: Store, fake: FakeRegistry) -> None:
    push(store, job_id())
    add_engine(store, variant=1)
    (pushed,) = push(store, job_id())
    assert (pushed.serial, pushed.listed, pushed.changed) == (2, 1, True)
    assert index(fake).entries[0]["annotations"]["org.enginefarm.key"] == manifest(variant=1).key


def tuned(device: str) -> m.BuildPart:
    part = m.TunedPart(
        name=device,
        sm="8.6",
        driver="570.1",
        workspace_bytes=1,
        retried_with_less_memory=False,
        precision_constraints=0,
        build_seconds=1.0,
        timing_cache={},
        watched=None,
    )
    return manifest().build.model_copy(update={"tuned_on": part})


def test_engines_of_one_job_for_two_gpus_stand_side_by_side(tmp_path: Path, fake: FakeRegistry) -> None:
    store = Store(tmp_path / "gpus")
    for device in ("NVIDIA A10", "NVIDIA GeForce RTX 3090"):
        described = manifest(build=tuned(device))
        files: dict[str, Path | bytes] = {
            ENGINE: engine_bytes("tiny", "fp16", 0),
            MANIFEST: described.to_json().encode(),
            KEY: b"{}",
            PROOF: b"{}",
            "timing.cache": device.encode(),
        }
        store.add(kind="engine", key=described.key, name=described.job, files=files)
    (pushed,) = push(store)
    assert pushed.listed == 2
    devices = [entry["annotations"]["org.enginefarm.device"] for entry in index(fake).entries]
    assert devices == ["NVIDIA A10", "NVIDIA GeForce RTX 3090"]


def test_versions_are_apart(store: Store, fake: FakeRegistry) -> None:
    push(store, job_id(), tag="1")
    push(store, job_id(precision="fp32"), tag="1.2")
    push(store, job_id(precision="fp32"), tag="1--x")
    (again,) = push(store, job_id(), tag="1")
    assert not again.changed
    assert jobs(fake, tag="1") == [job_id()]
    assert jobs(fake, tag="1.2") == [job_id(precision="fp32")]


def test_an_engine_of_the_same_bytes_is_mounted(store: Store, fake: FakeRegistry) -> None:
    push(store)
    empty = oci.digest_of(b"{}")
    asked = [one for one in fake.asked if one.method == "POST" and one.query.get("mount")]
    shared = {digest for name, digest in fake.blobs if name == VOCOS} & {d for name, d in fake.blobs if name == TINY}
    # the layer report is the same for both; the empty config is too small to be worth a question
    assert {one.query["mount"] for one in asked} == shared - {empty}
    assert len(asked) == 1
    assert {one.query["from"] for one in asked} <= {TINY}


def test_tags_of_others_are_left_alone(store: Store, fake: FakeRegistry) -> None:
    push(store, job_id())
    entry = index(fake).entries[0]
    fake.manifests[TINY, "latest--mine-01234567"] = fake.manifests[TINY, entry["digest"]]
    content = b'{"schemaVersion": 2}'
    fake.manifests[TINY, "latest--other-89abcdef"] = (oci.MANIFEST_TYPE, content)
    fake.manifests[TINY, oci.digest_of(content)] = (oci.MANIFEST_TYPE, content)
    heard: list[Event] = []
    (pushed,) = push(store, job_id(precision="fp32"), heard=heard)
    assert pushed.listed == 2
    notes = {event.text for event in heard if isinstance(event, Note)}
    assert len(notes) == 1
    assert "artifact-invalid" in notes.pop()


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        (oci.MANIFEST_TYPE, b'{"schemaVersion": 2}', Reason.ARTIFACT_INVALID),
        (oci.INDEX_TYPE, artifact.make_index("other", [], 1), Reason.IDENTITY_MISMATCH),
        (
            oci.INDEX_TYPE,
            artifact.make_index("tiny", [], 1).replace(b'schema": "1"', b'schema": "2"'),
            Reason.ARTIFACT_TOO_NEW,
        ),
    ],
)
def test_a_tag_that_holds_something_else_stays(
    store: Store, fake: FakeRegistry, kind: str, content: bytes, reason: Reason
) -> None:
    fake.manifests[TINY, "latest"] = (kind, content)
    with pytest.raises(EnginefarmError) as caught:
        push(store, job_id())
    assert caught.value.reason is reason
    assert fake.manifests == {(TINY, "latest"): (kind, content)}
    assert fake.blobs == {}


def test_progress_is_told(store: Store, fake: FakeRegistry) -> None:
    heard: list[Event] = []
    push(store, "vocos*", heard=heard)
    subject = f"{VOCOS}:latest"
    assert heard[0] == StepStarted(subject=subject, step="push", expected_s=None)
    assert isinstance(heard[-1], StepFinished)
    assert heard[-1].ok
    advanced = [event for event in heard if isinstance(event, StepAdvanced)]
    assert {event.subject for event in advanced} == {subject}
    assert advanced[-1].done == advanced[-1].total == sum(len(blob) for (name, _), blob in fake.blobs.items())


def test_nothing_matches(store: Store, fake: FakeRegistry) -> None:
    with pytest.raises(EnginefarmError) as caught:
        push(store, "nothing*")
    assert caught.value.reason is Reason.NAME_UNKNOWN
    assert fake.asked == []


def test_a_damaged_engine_does_not_get_there(store: Store, fake: FakeRegistry) -> None:
    (package,) = choose_packages(store, [job_id()])
    path = package.files[ENGINE]
    assert isinstance(path, Path)
    path.chmod(0o644)
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(EnginefarmError) as caught:
        push_packages([package], store)
    assert caught.value.reason is Reason.STORE_CORRUPT
    assert fake.manifests == {}
    assert (TINY, package.parsed.layers[ENGINE]["digest"]) not in fake.blobs


def test_a_registry_that_goes_away_at_any_point_shows_nothing_half(store: Store, fake: FakeRegistry) -> None:
    push(store)
    count, whole = len(fake.asked), (dict(fake.manifests), dict(fake.blobs))
    assert count > 60
    for cut in range(1, count, 23):
        fake.manifests.clear()
        fake.blobs.clear()
        fake.asked.clear()
        fake.rules[:] = [lambda _, cut=cut: requests.ConnectionError("gone") if len(fake.asked) > cut else None]  # type: ignore[misc]
        with pytest.raises(EnginefarmError) as caught:
            push(store)
        assert caught.value.reason is Reason.REGISTRY_UNREACHABLE
        for name in (TINY, VOCOS):
            # an index that is there lists what is there
            if (name, "latest") in fake.manifests:
                for entry in index(fake, name).entries:
                    parsed = artifact.parse_artifact(fake.manifests[name, entry["digest"]][1], name)
                    assert all((name, one["digest"]) in fake.blobs for one in parsed.files.values())
        fake.rules.clear()
        push(store)
        assert (fake.manifests, fake.blobs) == whole


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_registry_that_is_busy_now_and_then(store: Store, fake: FakeRegistry, status: int) -> None:
    push(store)
    whole = dict(fake.manifests), dict(fake.blobs)
    fake.manifests.clear()
    fake.blobs.clear()
    seen: set[str] = set()

    def busy(asked: Asked) -> Said | None:
        # everything once; uploads have another place each time
        name = re.sub(r"[0-9a-f-]{36}", "", f"{asked} {asked.query.get('digest')}")
        if name in seen:
            return None
        seen.add(name)
        return Said(status=status)

    fake.rules.append(busy)
    push(store)
    assert (fake.manifests, fake.blobs) == whole


def interleave(fake: FakeRegistry, when: Callable[[Asked], bool], then: Callable[[], object]) -> None:
    """Do something once, just before a request is answered."""
    done: list[int] = []

    def rule(asked: Asked) -> None:
        if not done and when(asked):
            done.append(1)
            then()

    fake.rules.append(rule)


def is_put_of_index(asked: Asked) -> bool:
    return str(asked) == f"PUT /v2/{TINY}/manifests/latest"


def test_a_push_between_reading_and_writing_the_index_is_not_lost(store: Store, fake: FakeRegistry) -> None:
    # the other has read its own writing back before ours goes over it
    interleave(fake, is_put_of_index, lambda: push(store, job_id(precision="fp32")))
    push(store, job_id())
    assert jobs(fake) == [job_id(), job_id(precision="fp32")]


def test_a_newer_engine_is_not_lost_to_somebody_who_knew_the_older(store: Store, fake: FakeRegistry) -> None:
    push(store)
    newer = Store(store.root.parent / "newer")
    add_engine(newer, variant=1)
    add_engine(store, precision="fp32", variant=1)
    interleave(fake, is_put_of_index, lambda: push(newer))
    push(store, job_id(precision="fp32"))
    keys = [entry["annotations"]["org.enginefarm.key"] for entry in index(fake).entries]
    assert keys == [manifest(variant=1).key, manifest(precision="fp32", variant=1).key]


def test_an_index_that_never_stays_is_contested(
    store: Store, fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish_index, "_PAUSE_S", 0.0)

    def undo(asked: Asked) -> None:
        if str(asked) == f"GET /v2/{TINY}/manifests/latest":
            fake.manifests.pop((TINY, "latest"), None)

    fake.rules.append(undo)
    with pytest.raises(EnginefarmError) as caught:
        push(store, job_id())
    assert caught.value.reason is Reason.INDEX_CONTESTED


def test_eight_pushes_at_once_lose_nothing(tmp_path: Path, fake: FakeRegistry) -> None:
    stores = []
    for number in range(8):
        store = Store(tmp_path / str(number))
        described = manifest(job=f"tiny-{number}", key=f"{number:064x}")
        files: dict[str, Path | bytes] = {
            ENGINE: engine_bytes("tiny", "fp16", 0),
            MANIFEST: described.to_json().encode(),
            KEY: b"{}",
            PROOF: b"{}",
        }
        store.add(kind="engine", key=described.key, name=described.job, files=files)
        stores.append(store)
    start = threading.Barrier(len(stores))

    def run(store: Store) -> Any:
        start.wait()
        return push(store)

    with ThreadPoolExecutor(max_workers=len(stores)) as pool:
        list(pool.map(run, stores))
    assert jobs(fake) == [f"tiny-{number}" for number in range(8)]
