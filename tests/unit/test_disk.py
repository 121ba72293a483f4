"""What lies below the farm's home: its own things are recognised one by one, and nothing else is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.disk import Item, home_items, leftovers, oldest_live_run, size_of
from builder.environments import DONE
from builder.project import Home
from builder.store import Entry, Store
from builder.workspace import LOCK, STARTED, Workspace
from tests.artifacts import KEY, OTHER_KEY, add, blob

DAY = 86400.0
HOUR = 3600.0
DIGESTS = [letter * 64 for letter in "0123"]
ENVIRONMENT = f"export-py3.11-{'a' * 16}"
PULLED, MADE = f"sha256-{'b' * 64}-linux-amd64", f"standin-bookworm-{'c' * 16}"


def age(path: Path, seconds: float) -> Path:
    """Let a file or folder have been used so long ago."""
    moment = time.time() - seconds
    os.utime(path, (moment, moment))
    return path


def write(path: Path, size: int = 5000, *, seconds: float = 0.0) -> Path:
    """Make a file of some age."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return age(path, seconds)


def fetched(home: Home, digest: str, size: int = 5000, *, seconds: float = 0.0) -> Path:
    """Make a fetched file."""
    return write(home.fetch / "sha256" / digest, size, seconds=seconds)


def environment(home: Home, name: str = ENVIRONMENT, *, seconds: float = 0.0) -> Path:
    """Make an installed environment."""
    write(home.envs / name / "bin" / "python")
    return write(home.envs / name / DONE, 1, seconds=seconds).parent


def base(home: Home, name: str = PULLED, *, seconds: float = 0.0) -> Path:
    """Make a base image."""
    write(home.bases / name / "blobs" / "sha256" / "0")
    return write(home.bases / name / "index.json", 1, seconds=seconds).parent


def engine(home: Home, key: str = KEY, content: bytes = b"engine", *, seconds: float = 0.0) -> Entry:
    """Put an engine into the store; one of its files is that of every other."""
    store = Store(home.store)
    files = {"model.plan": content, "manifest.json": b"{}\n", "key.json": key.encode()}
    entry = add(store, key, files=files, name=f"tiny-{key[0]}")
    age(blob(store, entry.digest), seconds)
    return entry


FOREIGN = (
    "notes.txt",
    "fetch/notes.txt",
    "fetch/sha256/notes.txt",
    "fetch/sha256/film.part",
    f"fetch/sha256/{'0' * 63}",
    f"fetch/sha256/{'A' * 64}",
    f"fetch/sha256/{'0' * 64}.bak",
    "envs/mine/bin/python",
    "envs/notes.txt",
    "envs/.git/config",
    "bases/other/index.json",
    "bases/.cache/blob",
    "bases/notes.txt",
    f"bases/{PULLED[:-20]}/notes.txt",
    "work/foo/notes.txt",
    "work/notes.txt",
    "images/x.json",
    "logs/x.log",
    "locks/x.lock",
    "store/notes.txt",
    "store/blobs/notes.txt",
    "store/blobs/sha256/notes.txt",
    "store/quarantine/x/engine",
    "journal.jsonl",
    "crash/x.log",
)


def strangers(home: Home) -> None:
    """Put old files of somebody else into every folder of the home."""
    for name in FOREIGN:
        path = write(home.root / name, 100, seconds=1000 * DAY)
        while (path := path.parent) != home.root:
            age(path, 1000 * DAY)


def tree(root: Path) -> dict[str, bytes]:
    """Map all files to their content; folders to nothing."""
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*")}
    return {name: path.read_bytes() if path.is_file() else b"" for name, path in paths.items()}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that does not exist yet."""
    return Home(root=tmp_path / "home")


def named(items: Iterator[Item]) -> dict[str, str]:
    """Map name to kind."""
    return {item.name: item.kind for item in items}


def test_looking_makes_nothing(home: Home) -> None:
    assert [*home_items(home), *leftovers(home, 0.0)] == []
    assert oldest_live_run(home) is None
    assert not home.root.exists()


def test_everything_that_can_be_had_again_is_listed(home: Home) -> None:
    strangers(home)
    fetched(home, DIGESTS[0])
    environment(home)
    base(home, PULLED)
    base(home, MADE)
    engine(home)
    add(Store(home.store), kind="onnx", name="export tiny")
    assert named(home_items(home)) == {
        DIGESTS[0]: "fetched file",
        ENVIRONMENT: "environment",
        PULLED: "base image",
        MADE: "base image",
        "tiny-a": "engine",
        "export tiny": "ONNX model",
    }


def test_strangers_are_not_listed(home: Home) -> None:
    strangers(home)
    assert [*leftovers(home, 0.0)] == []
    assert [*home_items(home)] == []


def test_unfinished_things_are_not_listed(home: Home) -> None:
    environment(home).joinpath(DONE).unlink()
    base(home).joinpath("index.json").unlink()
    write(home.fetch / "sha256" / f"{DIGESTS[0]}.part")
    assert [*home_items(home)] == []


def test_last_use_is_that_of_the_mark(home: Home) -> None:
    fetched(home, DIGESTS[0], seconds=5 * DAY)
    environment(home, seconds=4 * DAY)
    base(home, seconds=3 * DAY)
    engine(home, seconds=2 * DAY)
    ages = {item.kind: round((time.time() - item.used) / DAY) for item in home_items(home)}
    assert ages == {"fetched file": 5, "environment": 4, "base image": 3, "engine": 2}


def test_sizes_are_those_on_disk(home: Home, tmp_path: Path) -> None:
    path = fetched(home, DIGESTS[0], size=100_000)
    assert size_of(path) >= 100_000
    folder = environment(home)
    write(folder / "lib" / "deep" / "numpy.so", 200_000)
    assert size_of(folder) >= 200_000 + 5000
    os.link(path, folder / "link")
    (folder / "dangling").symlink_to(tmp_path / "nowhere")
    (folder / "loop").symlink_to(folder)
    assert size_of(folder) < 500_000
    sizes = {item.kind: item.size for item in home_items(home)}
    assert sizes == {"fetched file": size_of(path), "environment": size_of(folder)}


def test_size_of_an_engine_is_that_of_its_files(home: Home) -> None:
    entry = engine(home, content=b"x" * 7000)
    (item,) = home_items(home)
    assert item.size == entry.size + 7000 + len(b"{}\n") + len(KEY)


def test_removing_takes_one_thing(home: Home) -> None:
    strangers(home)
    before = tree(home.root)
    fetched(home, DIGESTS[0])
    environment(home)
    base(home)
    for item in home_items(home):
        assert item.remove()
    assert tree(home.root) == before


def test_each_entry_is_removed_by_its_own_item(home: Home) -> None:
    first, second = engine(home), engine(home, OTHER_KEY, b"other")
    items = {item.name: item for item in home_items(home)}
    assert items[first.name].remove()
    assert Store(home.store).entries() == (second,)


def test_file_that_is_gone_is_removed(home: Home) -> None:
    path = fetched(home, DIGESTS[0])
    (item,) = home_items(home)
    path.unlink()
    assert item.remove()


def test_broken_transfers_go_once_they_are_old(home: Home) -> None:
    old, young = (home.fetch / "sha256" / f"{digest}.part" for digest in DIGESTS[:2])
    write(old, seconds=2 * HOUR)
    write(young, seconds=HOUR / 2)
    assert named(leftovers(home, HOUR)) == {old.name: "broken transfer"}


@pytest.mark.parametrize("name", [DIGESTS[0], f"mirror-{'a' * 16}"])
def test_pulls_that_broke_off_go_once_nothing_is_written_there(home: Home, name: str) -> None:
    write(home.pulls / "serials.json", seconds=2 * HOUR)
    age(write(home.pulls / "others" / "file").parent, 2 * HOUR)
    part = write(home.pulls / name / f"{DIGESTS[1]}.part")
    age(part.parent, 2 * HOUR)
    assert [*leftovers(home, HOUR)] == []
    age(part, 2 * HOUR)
    (item,) = leftovers(home, HOUR)
    assert (item.kind, item.name) == ("broken transfer", name)
    assert item.remove()
    assert sorted(path.name for path in home.pulls.iterdir()) == ["others", "serials.json"]


@pytest.mark.parametrize(
    "name",
    [
        f"envs/.{ENVIRONMENT}.x1y2",
        f"envs/.removed-{ENVIRONMENT}-17",
        "bases/.standin-x1y2",
        f"bases/.removed-{MADE}-17",
    ],
)
def test_unfinished_work_goes_once_it_is_old(home: Home, name: str) -> None:
    folder = home.root / name
    write(folder / "file")
    assert [*leftovers(home, HOUR)] == []
    age(folder, 2 * HOUR)
    (item,) = leftovers(home, HOUR)
    assert (item.kind, item.name) == ("unfinished work", folder.name)
    assert item.remove()
    assert list(folder.parent.iterdir()) == []


def test_folders_of_dead_runs_go(home: Home) -> None:
    write(home.work / "run-dead" / "job" / "build" / "model.plan")
    write(home.work / "run-dead" / LOCK, 0)
    write(home.work / "kept-dead" / LOCK, 0)
    write(home.work / "foo" / LOCK, 0)
    age(home.work / "run-dead", 2 * HOUR)
    (home.work / "run-bare").mkdir()
    age(home.work / "run-bare", 120)
    # between its folder and its lock a run takes an instant
    (home.work / "run-new").mkdir()
    with Workspace(home, keep=False), Workspace(home, keep=True):
        # a run sweeps, too
        write(home.work / "run-dead" / LOCK, 0)
        (home.work / "run-bare").mkdir(exist_ok=True)
        age(home.work / "run-bare", 120)
        assert named(leftovers(home, HOUR)) == {"run-bare": "work of a dead run", "run-dead": "work of a dead run"}


@pytest.mark.parametrize("keep", [False, True])
def test_live_run_began_when_its_folder_was_made(home: Home, *, keep: bool) -> None:
    assert oldest_live_run(home) is None
    with Workspace(home, keep=keep) as workspace:
        age(workspace.folder / STARTED, HOUR)
        # jobs come and go in it
        (workspace.folder / "job").mkdir()
        began = oldest_live_run(home)
        assert began is not None
        assert round(time.time() - began) == HOUR
    assert oldest_live_run(home) is None


def test_oldest_of_several_runs_counts(home: Home) -> None:
    with Workspace(home, keep=False) as first, Workspace(home, keep=False) as second:
        age(first.folder / STARTED, HOUR)
        age(second.folder / STARTED, HOUR / 2)
        began = oldest_live_run(home)
        assert began == (first.folder / STARTED).stat().st_mtime
