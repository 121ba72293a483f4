"""Finding engines by what a person types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.errors import EnginefarmError, Reason
from builder.query import find_engine, find_key_documents, list_engines
from builder.store import Store
from builder.titles import ENGINE, KEY
from tests.engines import add_engine, job_id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store with three engines, two of one job."""
    store = Store(tmp_path / "store")
    add_engine(store, "vocos", "fp32")
    add_engine(store, "tiny", "fp16")
    add_engine(store, "tiny", "fp16", variant=1)
    return store


def test_list_is_by_name_then_age(store: Store) -> None:
    """The newest of a job comes last."""
    names = [entry.name for entry in list_engines(store)]
    assert names == [job_id("tiny"), job_id("tiny"), job_id("vocos", "fp32")]
    tiny = list_engines(store)[:2]
    assert tiny[0].created < tiny[1].created


def test_job_id_means_its_newest_engine(store: Store) -> None:
    """A rebuilt job is found in its last form."""
    assert find_engine(store, job_id("tiny")) == list_engines(store)[1]


@pytest.mark.parametrize("digits", [6, 12, 64])
def test_keys_and_engine_digests_may_be_cut(store: Store, digits: int) -> None:
    """The beginning of either is enough."""
    for entry in list_engines(store):
        digest = store.files(entry)[ENGINE].digest
        assert find_engine(store, entry.key[:digits]) == entry
        assert find_engine(store, digest.removeprefix("sha256:")[:digits]) == entry
        assert find_engine(store, digest[: digits + len("sha256:")]) == entry


def test_five_digits_are_a_name(store: Store) -> None:
    """Too short a beginning finds nothing, even where it would be unique."""
    with pytest.raises(EnginefarmError, match="has no engine"):
        find_engine(store, list_engines(store)[0].key[:5])


def test_unknown_name_says_the_nearest(store: Store) -> None:
    """A typing mistake is answered with the right name."""
    with pytest.raises(EnginefarmError) as caught:
        find_engine(store, job_id("tinny"))
    assert caught.value.reason is Reason.NAME_UNKNOWN
    assert job_id("tiny") in caught.value.fix


@pytest.mark.parametrize("name", ["model.plan", "long" * 200])
def test_a_file_is_no_engine_of_the_store(store: Store, tmp_path: Path, name: str) -> None:
    """Who has an engine's file learns what takes files, and how engines get into the store."""
    (tmp_path / "model.plan").write_bytes(b"ftrt")
    with pytest.raises(EnginefarmError) as caught:
        find_engine(store, str(tmp_path / name))
    assert ("enginefarm pull" in caught.value.fix) is (name == "model.plan")


def test_empty_store_says_how_to_fill_it(tmp_path: Path) -> None:
    """The first command of a new user is not a riddle."""
    with pytest.raises(EnginefarmError) as caught:
        find_engine(Store(tmp_path / "none"), "tiny")
    assert "enginefarm build" in caught.value.fix
    assert not (tmp_path / "none").exists()


def test_ambiguous_beginning_lists_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine that could be meant is named."""
    entry = list_engines(store)[0]
    monkeypatch.setattr("builder.query._begins", lambda *_: True)
    with pytest.raises(EnginefarmError) as caught:
        find_engine(store, entry.key[:6])
    assert caught.value.why is not None
    assert len(caught.value.why.splitlines()) == 3


def test_key_documents_come_from_the_store_or_a_file(store: Store, tmp_path: Path) -> None:
    """An exported key.json is as good as an engine of the store, except for the proof."""
    entry = list_engines(store)[0]
    path = tmp_path / "key.json"
    path.write_bytes(store.read(entry, KEY))
    stored, filed = find_key_documents(store, entry.key), find_key_documents(store, str(path))
    assert stored.engine == filed.engine
    assert stored.proof is not None
    assert filed.proof is None


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"kind": "engine"}), '"text"', "[" * 100_000], ids=range(5))
def test_file_that_is_no_key_document(tmp_path: Path, content: str) -> None:
    """Other files are refused with their place."""
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(EnginefarmError) as caught:
        find_key_documents(Store(tmp_path), str(path))
    assert caught.value.where == str(path)
