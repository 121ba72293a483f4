"""The folder that applications load from: the old engine or the new one."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from builder import engine_folder
from builder.engine_folder import copy_engine, place_engine
from builder.errors import Reason
from builder.project import Home
from tests.artifacts import document, refusal

TITLES = ("key.json", "manifest.json", "model.plan")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(root=tmp_path / "home")


def files(folder: Path, word: str) -> dict[str, Path]:
    """Make the files of an engine, as they lie in a store."""
    folder = folder / f"blobs-{word}"
    folder.mkdir(exist_ok=True)
    for title in TITLES:
        (folder / title).write_text(f"{title} {word}", encoding="utf-8")
    return {title: folder / title for title in TITLES}


def place(home: Home, word: str, model: str = "tiny") -> Path:
    folder = files(home.root.parent, word)
    return place_engine(home, model, folder, {"word": word}, threading.Event())


def words(folder: Path) -> set[str]:
    """Name the engines that a folder's files are of; one, if all is well."""
    found = {str(document(folder / "trust.json")["word"])}
    found |= {(folder / title).read_text(encoding="utf-8").split()[1] for title in TITLES}
    assert {path.name for path in folder.iterdir()} <= {*TITLES, "trust.json"}
    return found


def test_the_engine_lies_under_the_model_s_name(home: Home) -> None:
    folder = place(home, "one")
    assert folder == home.root / "engines" / "tiny"
    assert words(folder) == {"one"}
    # a second name for the store's file, not a copy of a gigabyte
    assert (folder / "model.plan").samefile(home.root.parent / "blobs-one" / "model.plan")


def test_the_next_one_takes_its_place_and_the_one_before_stays_readable(home: Home) -> None:
    held = place(home, "one").resolve()
    assert words(place(home, "two")) == {"two"}
    assert words(held) == {"one"}
    assert words(place(home, "three")) == {"three"}
    assert not held.exists()
    assert len(list((home.engines / ".versions" / "tiny").iterdir())) == 2


@pytest.mark.parametrize("step", ["_fill", "_take", "durable.sync_folder", "durable.write_atomically", "Path.replace"])
def test_a_pull_that_dies_leaves_the_old_one(home: Home, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    place(home, "one")

    class KilledError(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(f"builder.engine_folder.{step}", die)
        with pytest.raises(KilledError):
            place(home, "two")
    assert words(home.engines / "tiny") == {"one"}
    assert words(place(home, "three")) == {"three"}
    assert len(list((home.engines / ".versions" / "tiny").iterdir())) == 2


def test_readers_see_one_engine_while_others_write(home: Home) -> None:
    place(home, "w0")
    stop, seen = threading.Event(), list[set[str]]()

    def read() -> None:
        while not stop.is_set():
            # a slow reader may find its version gone after the second pull, but never a mixture
            with suppress(FileNotFoundError):
                folder = (home.engines / "tiny").resolve()
                seen.append(words(folder))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 20):
        place(home, f"w{number}")
    stop.set()
    reader.join()
    assert {len(found) for found in seen} == {1}


def test_a_folder_of_somebody_else_is_left_alone(home: Home) -> None:
    (home.engines / "tiny").mkdir(parents=True)
    assert refusal(lambda: place(home, "one")).reason is Reason.PATH_OCCUPIED


def test_where_files_have_one_name_only_they_are_copied(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    folder = place(home, "one")
    assert words(folder) == {"one"}
    assert not (folder / "model.plan").samefile(home.root.parent / "blobs-one" / "model.plan")


def copy(folder: Path, word: str, trust: Mapping[str, Any] | None = None) -> Path:
    return copy_engine(folder, files(folder.parent, word), trust or {"word": word})


def test_a_copy_is_a_plain_folder(tmp_path: Path) -> None:
    folder = copy(tmp_path / "out", "one")
    assert words(folder) == {"one"}
    assert words(copy(folder, "two")) == {"two"}
    assert (folder / "model.plan").stat().st_nlink == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs-one", "blobs-two", "out"]


def test_a_copy_replaces_nothing_foreign(tmp_path: Path) -> None:
    folder = copy(tmp_path / "out", "one")
    (folder / "notes.txt").touch()
    assert refusal(lambda: copy(folder, "two")).reason is Reason.PATH_OCCUPIED
    assert words_but(folder, "notes.txt") == {"one"}
    (tmp_path / "link").symlink_to(folder)
    assert refusal(lambda: copy(tmp_path / "link", "two")).reason is Reason.PATH_OCCUPIED
    (tmp_path / "file").touch()
    assert refusal(lambda: copy(tmp_path / "file", "two")).reason is Reason.PATH_OCCUPIED


def words_but(folder: Path, other: str) -> set[str]:
    (folder / other).unlink()
    return words(folder)


def test_a_copy_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy(tmp_path / "out", "one")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine_folder, "_swap", fail)
    assert refusal(lambda: copy(folder, "two")).reason is Reason.DISK_FULL
    assert words(folder) == {"one"}
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.parametrize("name", [".", ""])
def test_the_folder_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    blobs = files(tmp_path, "new")
    assert refusal(lambda: copy_engine(Path(name), blobs, {})).reason is Reason.PATH_OCCUPIED
    assert refusal(lambda: copy_engine(here, blobs, {})).reason is Reason.PATH_OCCUPIED
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("name", ["sub/..", "a" * 300])
def test_folders_with_odd_names(tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / "sub").mkdir(parents=True)
    blobs = files(tmp_path, "new")
    assert refusal(lambda: copy_engine(tmp_path / "out" / name, blobs, {})).reason is Reason.PATH_OCCUPIED
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sub"]


@pytest.mark.parametrize("title", ["model.plan", "trust.json"])
def test_folders_and_links_under_our_names_are_not_ours(tmp_path: Path, title: str) -> None:
    (tmp_path / "out" / title).mkdir(parents=True)
    (tmp_path / "out" / title / "work").touch()
    assert refusal(lambda: copy(tmp_path / "out", "new")).reason is Reason.PATH_OCCUPIED
    assert (tmp_path / "out" / title / "work").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / title).symlink_to(tmp_path / "out" / title / "work")
    assert refusal(lambda: copy(tmp_path / "other", "new")).reason is Reason.PATH_OCCUPIED


def test_links_that_lead_nowhere_are_replaced(home: Home) -> None:
    home.engines.mkdir(parents=True)
    for target in ("tiny", "nowhere", "/"):
        (home.engines / "tiny").unlink(missing_ok=True)
        (home.engines / "tiny").symlink_to(target)
        assert words(place(home, "one")) == {"one"}


@pytest.mark.parametrize("name", ["", ".versions", ".versions/tiny"])
def test_files_where_folders_should_be(home: Home, name: str) -> None:
    (home.engines / name).parent.mkdir(parents=True)
    (home.engines / name).touch()
    assert refusal(lambda: place(home, "one")).reason is Reason.PATH_OCCUPIED


def test_a_mount_point_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy(tmp_path / "out", "old")

    def busy(temp: Path, folder: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy", str(folder))

    monkeypatch.setattr(engine_folder, "_swap", busy)
    blobs = files(tmp_path, "new")
    assert refusal(lambda: copy_engine(tmp_path / "out", blobs, {})).reason is Reason.PATH_OCCUPIED
    assert words(tmp_path / "out") == {"old"}
