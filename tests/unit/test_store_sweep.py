"""Sweeping the store: what no entry needs goes, and nothing that is being named; use and size of entries."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from builder.errors import Reason
from builder.store import Store
from tests.artifacts import ENGINE, OTHER_KEY, add, blob, document, overwrite, refusal
from tests.unit.test_store import forbid


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Name a store that does not exist yet."""
    return Store(tmp_path / "store")


def aged(path: Path, seconds: float) -> Path:
    """Let a blob have been written or asked for so long ago."""
    moment = time.time() - seconds
    os.utime(path, (moment, moment))
    return path


def test_sweep_takes_what_no_entry_needs(store: Store) -> None:
    kept, removed = add(store, OTHER_KEY, engine=b"kept"), add(store)
    store.remove(removed)
    assert store.sweep(0.0, dry_run=True) == removed.size + len(ENGINE)
    assert len(store.orphans()) == 2
    assert store.sweep(0.0) == removed.size + len(ENGINE)
    assert store.orphans() == ()
    assert store.sweep(0.0) == 0
    store.check(kept)
    assert store.verify() == ()


def test_sweep_spares_young_blobs(store: Store) -> None:
    store.remove(add(store))
    old, young = store.orphans()[:2]
    aged(old, 3600)
    size = old.stat().st_size
    assert store.sweep(1800.0) == size
    assert (old.exists(), young.exists()) == (False, True)


def test_sweep_makes_no_store(store: Store) -> None:
    assert store.sweep(0.0) == 0
    assert not store.root.exists()


def test_sweep_keeps_the_empty_configuration_and_strangers(store: Store) -> None:
    store.remove(add(store, files={"a": b"a"}))
    folder = store.root / "blobs" / "sha256"
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    (folder / "folder").mkdir()
    store.sweep(0.0)
    assert sorted(path.name for path in folder.iterdir()) == [
        hashlib.sha256(b"{}").hexdigest(),
        "folder",
        "notes.txt",
    ]


def test_sweep_keeps_what_other_tools_added(store: Store) -> None:
    entry = add(store)
    index = document(store.root / "index.json")
    listed = {key: value for key, value in index["manifests"][0].items() if key != "annotations"}
    index["manifests"] = [listed]
    (store.root / "index.json").write_text(json.dumps(index), encoding="utf-8")
    assert store.entries() == ()
    assert store.sweep(0.0) == 0
    assert blob(store, entry.digest).is_file()


def test_sweep_of_a_damaged_store_takes_nothing(store: Store) -> None:
    entry, other = add(store), add(store, OTHER_KEY, engine=b"other")
    store.remove(other)
    overwrite(blob(store, entry.digest), b"{}")
    before = store.root / "blobs" / "sha256"
    names = sorted(before.iterdir())
    assert refusal(lambda: store.sweep(0.0)).reason is Reason.STORE_CORRUPT
    assert sorted(before.iterdir()) == names


def test_sweep_of_a_store_that_cannot_be_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.remove(add(store))
    monkeypatch.setattr(Path, "unlink", forbid)
    assert refusal(lambda: store.sweep(0.0)).reason is Reason.STORE_READ_ONLY


def test_use_of_an_entry_is_noted(store: Store) -> None:
    entry, other = add(store), add(store, OTHER_KEY, engine=b"other")
    for one in (entry, other):
        aged(blob(store, one.digest), 3600)
    store.touch(entry)
    now = time.time()
    assert now - store.used(entry) < 60
    assert 3500 < now - store.used(other) < 3700


def test_use_cannot_be_noted_where_nothing_can_be_written(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = add(store)
    monkeypatch.setattr(os, "utime", forbid)
    store.touch(entry)
    blob(store, entry.digest).unlink()
    store.touch(entry)
    assert store.used(entry) == 0.0


def test_size_is_that_of_all_files(store: Store) -> None:
    entry = add(store)
    assert store.size(entry) == entry.size + len(ENGINE) + len(b'{"a": 1}') + len(b"{}")
    # a lost engine still counts: its manifest tells
    store.files(entry)["model.plan"].path.unlink()
    assert store.size(entry) > len(ENGINE)
    blob(store, entry.digest).unlink()
    assert store.size(entry) == 0


def test_adding_what_is_known_spares_it_from_the_next_sweep(store: Store) -> None:
    store.remove(add(store, files={"a": b"known"}))
    known = blob(store, hashlib.sha256(b"known").hexdigest())
    for path in store.orphans():
        aged(path, 7200)
    add(store, OTHER_KEY, files={"a": b"known", "b": b"new"})
    assert time.time() - known.stat().st_mtime < 60


@pytest.mark.parametrize("lost", [b"known", None], ids=["a file", "the manifest"])
def test_blob_that_is_swept_while_it_is_being_named_is_written_again(
    store: Store, monkeypatch: pytest.MonkeyPatch, lost: bytes | None
) -> None:
    files: dict[str, Path | bytes] = {"a": b"known", "b": b"other"}
    store.remove(add(store, files=files))
    update, calls = store._index.update, 0
    manifest = next(path for path in store.orphans() if b"schemaVersion" in path.read_bytes())

    def swept_before(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path = manifest if lost is None else blob(store, hashlib.sha256(lost).hexdigest())
            path.unlink()
        update(*arguments)

    monkeypatch.setattr(store._index, "update", swept_before)
    entry = add(store, files=files)
    assert calls == 2
    assert store.entries() == (entry,)
    assert store.verify() == ()
    assert [store.read(entry, title) for title in files] == [b"known", b"other"]
