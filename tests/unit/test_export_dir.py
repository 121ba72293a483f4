"""Engines as plain files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from builder.errors import EnginefarmError, Reason
from builder.export_dir import choose_engines, export_engine
from builder.store import Store
from builder.titles import ENGINE, KEY, MANIFEST
from tests.engines import add_engine, engine_bytes, job_id


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store with two engines of different models."""
    store = Store(tmp_path / "store")
    add_engine(store, "tiny")
    add_engine(store, "vocos", "fp32")
    return store


def contents(folder: Path) -> dict[str, bytes]:
    """Read all files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_engine_becomes_a_folder(store: Store, tmp_path: Path) -> None:
    """The engine's bytes come out as they went in, and nothing else is left behind."""
    out = tmp_path / "new" / "out"
    exported = [export_engine(store, entry, out) for entry in choose_engines(store, ())]
    assert {path.name for path in out.iterdir()} == {job_id("tiny"), job_id("vocos", "fp32")}
    assert {path.name for path in (out / job_id("tiny")).iterdir()} == {ENGINE, MANIFEST, KEY}
    assert (out / job_id("tiny") / ENGINE).read_bytes() == engine_bytes("tiny", "fp16", 0)
    assert exported[0].engine_sha256 == hashlib.sha256(engine_bytes("tiny", "fp16", 0)).hexdigest()
    assert all(item.written for item in exported)


def test_second_time_writes_nothing(store: Store, tmp_path: Path) -> None:
    """Unchanged files keep their times."""
    (entry,) = choose_engines(store, ("tiny-*",))
    first = export_engine(store, entry, tmp_path / "out")
    before = (first.folder / ENGINE).stat().st_mtime_ns
    assert not export_engine(store, entry, tmp_path / "out").written
    assert (first.folder / ENGINE).stat().st_mtime_ns == before


def test_signature_stays_as_long_as_its_engine(store: Store, tmp_path: Path) -> None:
    """What `enginefarm sign` wrote beside an engine is no file of others, and not one of the next engine."""
    (entry,) = choose_engines(store, ("tiny-*",))
    folder = export_engine(store, entry, tmp_path / "out").folder
    (folder / "abc.sigstore.json").write_text("{}", encoding="utf-8")
    assert not export_engine(store, entry, tmp_path / "out").written
    assert (folder / "abc.sigstore.json").is_file()
    add_engine(store, "tiny", variant=1)
    assert export_engine(store, choose_engines(store, ("tiny-*",))[0], tmp_path / "out").written
    assert {path.name for path in folder.iterdir()} == {ENGINE, MANIFEST, KEY}


def test_newer_engine_takes_the_older_ones_place(store: Store, tmp_path: Path) -> None:
    """A rebuilt job replaces its own folder, whole."""
    out = tmp_path / "out"
    export_engine(store, choose_engines(store, ("tiny-*",))[0], out)
    add_engine(store, "tiny", variant=1)
    assert export_engine(store, choose_engines(store, ("tiny-*",))[0], out).written
    assert (out / job_id("tiny") / ENGINE).read_bytes() == engine_bytes("tiny", "fp16", 1)
    assert [path.name for path in out.iterdir()] == [job_id("tiny")]


def test_damaged_copy_is_written_anew(store: Store, tmp_path: Path) -> None:
    """What is there is compared by digest, not by name."""
    (entry,) = choose_engines(store, ("tiny-*",))
    folder = export_engine(store, entry, tmp_path / "out").folder
    (folder / ENGINE).write_bytes(b"cut")
    assert export_engine(store, entry, tmp_path / "out").written
    assert (folder / ENGINE).read_bytes() == engine_bytes("tiny", "fp16", 0)


@pytest.mark.parametrize("name", ["notes.txt", ENGINE, MANIFEST])
def test_files_of_others_stay(store: Store, tmp_path: Path, name: str) -> None:
    """A folder that enginefarm did not write is left as it is."""
    (entry,) = choose_engines(store, ("tiny-*",))
    folder = tmp_path / "out" / entry.name
    folder.mkdir(parents=True)
    (folder / name).write_text("mine", encoding="utf-8")
    with pytest.raises(EnginefarmError) as caught:
        export_engine(store, entry, tmp_path / "out")
    assert caught.value.reason is Reason.PATH_OCCUPIED
    assert contents(tmp_path / "out") == {f"{entry.name}/{name}": b"mine"}


@pytest.mark.parametrize("below", ["", "deeper"])
def test_file_in_place_of_the_folder(store: Store, tmp_path: Path, below: str) -> None:
    """A file is not taken for a folder."""
    (tmp_path / "out").write_text("mine", encoding="utf-8")
    with pytest.raises(EnginefarmError) as caught:
        export_engine(store, choose_engines(store, ())[0], tmp_path / "out" / below)
    assert caught.value.reason is Reason.PATH_OCCUPIED


@pytest.mark.parametrize("gone", [False, True])
def test_damaged_engine_never_comes_out(store: Store, tmp_path: Path, gone: bool) -> None:
    """Digests are checked on the way, and nothing half-made stays. What is set aside takes files from its kin."""
    (entry,) = choose_engines(store, ("tiny-*",))
    blob = store.files(entry)[ENGINE].path
    blob.chmod(0o644)
    if gone:
        blob.unlink()
    else:
        blob.write_bytes(b"x" * 100)
    with pytest.raises(EnginefarmError) as caught:
        export_engine(store, entry, tmp_path / "out")
    assert caught.value.reason is Reason.STORE_CORRUPT
    assert contents(tmp_path / "out") == {}


def test_glob_that_matches_nothing(store: Store, tmp_path: Path) -> None:
    """A wrong name is an error, also in an empty store."""
    with pytest.raises(EnginefarmError, match=r"matches 'tinny\*'"):
        choose_engines(store, ("tiny*", "tinny*"))
    with pytest.raises(EnginefarmError):
        choose_engines(Store(tmp_path / "none"), ())
