"""Timing caches: a class is all of its files; saving loses nothing, whoever else saves and wherever it is cut."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import timing_caches
from builder.disk import home_items
from builder.errors import Reason
from builder.key import Runtime, Tuning
from builder.project import Home
from builder.stacks import load_stacks
from builder.store import Store
from builder.timing_caches import (
    CLASS,
    KIND,
    TIMING_CACHE,
    caches_for,
    class_document,
    class_key,
    export_cache,
    find_cache,
    list_caches,
    save_cache,
)
from tests.artifacts import add, overwrite, refusal
from tests.unit.test_store import PowerCutError, cut_at

ROOT = Path(__file__).parents[2]
TUNING = Tuning(device="NVIDIA H200", sm="9.0", driver="580.159.04")
OPTIONS: dict[str, Any] = {"optimization_level": 3, "workspace_mib": 100, "hardware_compatibility": "none"}


def runtime(stack: str = "trt8.6-cuda12.0", image: str = "1" * 64) -> Runtime:
    return Runtime(stack=load_stacks(ROOT / "images")[stack], python="3.9", image=f"sha256:{image}")


DOCUMENT = class_document(runtime(), "fp16", OPTIONS, TUNING)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Name a store that does not exist yet."""
    return Store(tmp_path / "store")


@pytest.fixture
def build(store: Store, tmp_path: Path) -> Any:
    """Pretend builds: a cache is a JSON list of entries, and TensorRT's combining is their union."""

    def run(*entries: str, read: timing_caches.Caches | None = None) -> str:
        read = caches_for(store, DOCUMENT) if read is None else read
        known = {entry for blob in read.files for entry in json.loads(blob.path.read_text())}
        new = tmp_path / f"new-{threading.get_ident()}"
        new.write_text(json.dumps(sorted(known | set(entries))))
        return save_cache(store, DOCUMENT, read.digests, new)

    return run


def held(store: Store, document: Any = DOCUMENT) -> list[set[str]]:
    """Read the entries of each file of a class."""
    return [set(json.loads(blob.path.read_text())) for blob in caches_for(store, document).files]


def test_first_build_of_a_class_reads_nothing_and_makes_nothing(store: Store) -> None:
    found = caches_for(store, DOCUMENT)
    assert (found.files, found.digests, found.inputs()) == ((), (), {})
    assert not store.root.exists()


def test_builds_one_after_the_other_leave_one_file_with_all_entries(store: Store, build: Any) -> None:
    build("a")
    build("b")
    digest = build("c")
    assert held(store) == [{"a", "b", "c"}]
    assert caches_for(store, DOCUMENT).digests == (digest,)
    assert len(store.entries(KIND)) == 1
    assert store.verify() == ()


def test_builds_side_by_side_lose_nothing(store: Store, build: Any) -> None:
    build("a")
    before = caches_for(store, DOCUMENT)
    build("b", read=before)
    build("c", read=before)
    assert held(store) == [{"a", "b"}, {"a", "c"}]
    assert set(caches_for(store, DOCUMENT).inputs()) == {"timing_cache_0000", "timing_cache_0001"}
    build("d")
    assert held(store) == [{"a", "b", "c", "d"}]


def test_a_build_that_measured_nothing_new_changes_nothing(store: Store, build: Any) -> None:
    first = build("a")
    assert build() == first
    assert held(store) == [{"a"}]
    assert len(store.entries(KIND)) == 1


def test_a_slow_build_does_not_undo_what_others_saved(store: Store, build: Any) -> None:
    build("a")
    slow = caches_for(store, DOCUMENT)
    build("b")
    build("c")
    build("d", read=slow)
    assert set().union(*held(store)) == {"a", "b", "c", "d"}


def test_many_threads_lose_nothing(store: Store, build: Any) -> None:
    def work(number: int) -> None:
        choice = random.Random(number)  # noqa: S311  # a plan of work
        for step in range(5):
            build(f"{number}-{step}-{choice.random()}", f"{number}-{step}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = set().union(*held(store))
    assert {f"{number}-{step}" for number in range(4) for step in range(5)} <= entries
    assert store.verify() == ()


def test_cut_at_every_step_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text('["a"]')
    new.write_text('["a", "b"]')
    whole, seen = 1000, set()
    for step in range(whole):
        root = tmp_path / f"store-{step}"
        save_cache(Store(root), DOCUMENT, (), old)
        read = caches_for(Store(root), DOCUMENT).digests
        with monkeypatch.context() as patch:
            steps = cut_at(patch, step)
            try:
                save_cache(Store(root), DOCUMENT, read, new)
                break
            except PowerCutError:
                assert len(steps) == step
        survivor = Store(root)
        seen.add(tuple(sorted(json.dumps(sorted(one)) for one in held(survivor))))
        assert survivor.verify() == ()
        save_cache(survivor, DOCUMENT, caches_for(survivor, DOCUMENT).digests, new)
        assert held(survivor) == [{"a", "b"}]
    # before, in between (a file too many), and after
    assert seen == {('["a"]',), ('["a", "b"]', '["a"]'), ('["a", "b"]',)}
    assert 10 < step < whole - 1


@pytest.mark.parametrize(
    "other",
    [
        class_document(runtime(image="2" * 64), "fp16", OPTIONS, TUNING),
        class_document(runtime("trt10.9-cuda12.8"), "fp16", OPTIONS, TUNING),
        class_document(runtime(), "fp32", OPTIONS, TUNING),
        class_document(runtime(), "fp16", OPTIONS, replace(TUNING, device="NVIDIA H100")),
        class_document(runtime(), "fp16", OPTIONS, replace(TUNING, driver="550.1")),
        class_document(runtime(), "fp16", OPTIONS, replace(TUNING, sm="8.0")),
        *(
            class_document(runtime(), "fp16", {**OPTIONS, name: "other"}, TUNING)
            for name in ("optimization_level", "tactic_sources", "hardware_compatibility", "refit", "strip_weights")
        ),
    ],
)
def test_what_makes_another_class(store: Store, build: Any, other: dict[str, Any]) -> None:
    build("a")
    assert class_key(other) != class_key(DOCUMENT)
    assert held(store, other) == []


@pytest.mark.parametrize(
    "same",
    [
        class_document(runtime(), "fp16", {**OPTIONS, "workspace_mib": 200}, TUNING),
        class_document(runtime(), "fp16", OPTIONS, replace(TUNING, timing_cache="3" * 64)),
    ],
)
def test_what_does_not(same: dict[str, Any]) -> None:
    assert class_key(same) == class_key(DOCUMENT)


def test_another_class_is_left_alone(store: Store, build: Any, tmp_path: Path) -> None:
    other = class_document(runtime(), "fp32", OPTIONS, TUNING)
    file = tmp_path / "other"
    file.write_text('["z"]')
    digest = save_cache(store, other, (), file)
    build("a")
    build("b", read=caches_for(store, DOCUMENT))
    save_cache(store, DOCUMENT, [digest], file)
    assert held(store, other) == [{"z"}]


def test_a_corrupt_file_counts_as_absent(store: Store, build: Any) -> None:
    build("a")
    read = caches_for(store, DOCUMENT)
    build("b", read=timing_caches.Caches())
    overwrite(read.files[0].path, b"[]")
    assert held(store) == [{"b"}]
    assert len(list((store.root / "quarantine").iterdir())) == 1


def test_order_is_that_of_age_and_survives_the_names_of_inputs(store: Store, build: Any) -> None:
    digests = [build(f"{number}", read=timing_caches.Caches()) for number in range(12)]
    found = caches_for(store, DOCUMENT)
    assert list(found.digests) == digests
    assert [found.inputs()[name] for name in sorted(found.inputs())] == [blob.path for blob in found.files]


def test_a_class_stays_below_its_limit(store: Store, build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing_caches, "CLASS_BYTES", 50)
    nothing = timing_caches.Caches()
    for name in "abc":
        build(name * 10, read=nothing)
    assert held(store) == [{"a" * 10}, {"b" * 10}, {"c" * 10}]
    build("d" * 20, read=nothing)
    # the two that nobody has used for longest made room
    assert held(store) == [{"c" * 10}, {"d" * 20}]


def test_a_file_above_the_limit_starts_the_class_anew(
    store: Store, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("a")
    monkeypatch.setattr(timing_caches, "CLASS_BYTES", 20)
    digest = build("b" * 30)
    assert held(store) == []
    assert len(digest) == 64
    build("c")
    assert held(store) == [{"c"}]


def engine_with(store: Store, content: bytes, key: str = "e" * 64) -> None:
    add(store, key, name="tiny-sm90", files={"model.plan": b"engine", TIMING_CACHE: content})


def test_find_by_digest_wherever_it_lies(store: Store, build: Any, tmp_path: Path) -> None:
    in_class = build("a")
    engine_with(store, b"beside an engine")
    beside = hashlib.sha256(b"beside an engine").hexdigest()
    file = tmp_path / "foreign.cache"
    file.write_bytes(b"foreign")
    for text, content in (
        (in_class[:6], b'["a"]'),
        (f"sha256:{beside}", b"beside an engine"),
        (str(file), b"foreign"),
    ):
        blob = find_cache(store, text)
        assert blob.path.read_bytes() == content
        assert (blob.digest, blob.size) == (f"sha256:{hashlib.sha256(content).hexdigest()}", len(content))


def test_the_same_cache_in_two_places_is_one(store: Store, build: Any) -> None:
    digest = build("a")
    engine_with(store, b'["a"]')
    assert find_cache(store, digest[:10]).digest == f"sha256:{digest}"
    assert [(one.entry.kind, one.document is None) for one in list_caches(store)] == [(KIND, False), ("engine", True)]


@pytest.mark.parametrize("text", ["abcde", "0" * 12, "no digest", ""])
def test_unknown_digest(store: Store, build: Any, text: str) -> None:
    build("a")
    error = refusal(lambda: find_cache(store, text))
    assert error.reason is Reason.NAME_UNKNOWN
    assert "caches ls" in str(error)


def test_digits_that_mean_several(store: Store) -> None:
    # two contents whose digests begin alike
    contents: dict[str, bytes] = {}
    number = 0
    while True:
        content = str(number).encode()
        start = hashlib.sha256(content).hexdigest()[:6]
        if start in contents:
            break
        contents[start] = content
        number += 1
    engine_with(store, contents[start])
    engine_with(store, content, key="f" * 64)
    error = refusal(lambda: find_cache(store, start))
    assert error.reason is Reason.NAME_UNKNOWN
    assert error.why is not None
    assert len(error.why.splitlines()) == 2


def test_a_damaged_cache_is_not_handed_out(store: Store, build: Any) -> None:
    digest = build("a")
    overwrite(find_cache(store, digest).path, b"other")
    error = refusal(lambda: find_cache(store, digest))
    assert error.reason is Reason.STORE_CORRUPT
    assert error.why is not None
    assert digest in error.why


def test_export_writes_or_replaces_a_file(store: Store, build: Any, tmp_path: Path) -> None:
    digest = build("a")
    target = tmp_path / "out" / "timing.cache"
    target.parent.mkdir()
    target.write_bytes(b"old")
    assert export_cache(store, digest, target).digest == f"sha256:{digest}"
    assert target.read_bytes() == b'["a"]'
    assert [path.name for path in target.parent.iterdir()] == ["timing.cache"]
    assert refusal(lambda: export_cache(store, "0" * 8, target)).reason is Reason.NAME_UNKNOWN


def test_export_leaves_devices_and_links_where_they_are(store: Store, build: Any, tmp_path: Path) -> None:
    digest, pipe, link = build("a"), tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    assert refusal(lambda: export_cache(store, digest, pipe)).reason is Reason.PATH_OCCUPIED
    link.symlink_to(tmp_path / "timing.cache")
    export_cache(store, digest, link)
    assert link.is_symlink()
    assert (tmp_path / "timing.cache").read_bytes() == b'["a"]'


def test_export_makes_the_folder(store: Store, build: Any, tmp_path: Path) -> None:
    digest = build("a")
    export_cache(store, digest, tmp_path / "a" / "b" / "timing.cache")
    assert (tmp_path / "a" / "b" / "timing.cache").read_bytes() == b'["a"]'
    error = refusal(lambda: export_cache(store, digest, tmp_path / "a" / "b" / "timing.cache" / "c"))
    assert error.reason is Reason.STORE_READ_ONLY
    assert "is no folder" in error.what
    error = refusal(lambda: export_cache(store, digest, tmp_path / ("long" * 100)))
    assert (error.reason, "too long" in (error.why or "")) == (Reason.STORE_READ_ONLY, True)


def test_a_damaged_description_hides_no_other_cache(store: Store, build: Any) -> None:
    lost = build("a")
    engine_with(store, b"beside an engine")
    (entry,) = store.entries(KIND)
    overwrite(store.files(entry)[CLASS].path, b"{")
    beside = hashlib.sha256(b"beside an engine").hexdigest()
    assert [one.sha256 for one in list_caches(store)] == [beside]
    assert find_cache(store, beside[:8]).path.read_bytes() == b"beside an engine"
    assert refusal(lambda: find_cache(store, lost)).reason is Reason.NAME_UNKNOWN


def test_a_name_that_is_too_long(store: Store) -> None:
    error = refusal(lambda: find_cache(store, "a" * 300))
    assert error.reason is Reason.NAME_UNKNOWN
    assert "too long" in (error.why or "")


def test_a_file_that_may_not_be_read(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "secret").write_bytes(b"cache")
    monkeypatch.setattr("builder.durable.sha256_file", forbidden)
    error = refusal(lambda: find_cache(store, str(tmp_path / "secret")))
    assert (error.reason, error.what) == (Reason.NAME_UNKNOWN, f"'{tmp_path / 'secret'}' cannot be read")


@pytest.mark.parametrize("content", [b"", b"[]"])
def test_a_build_that_measured_nothing_at_all(store: Store, tmp_path: Path, content: bytes) -> None:
    new = tmp_path / "new"
    new.write_bytes(content)
    digest = save_cache(store, DOCUMENT, (), new)
    assert [blob.path.read_bytes() for blob in caches_for(store, DOCUMENT).files] == [content]
    assert find_cache(store, digest).size == len(content)


def test_collecting_takes_caches_by_their_last_use(tmp_path: Path) -> None:
    home = Home(root=tmp_path)
    store = Store(home.store)
    file = tmp_path / "cache"
    file.write_bytes(bytes(1000))
    save_cache(store, DOCUMENT, (), file)
    (item,) = [one for one in home_items(home) if "trt8.6-cuda12.0-nvidia-h200-fp16" in one.name]
    assert item.size > 1000
    assert item.remove()
    assert held(store) == []
    store.sweep(0.0)
    assert not [path for path in store.orphans() if path.stat().st_size == 1000]
