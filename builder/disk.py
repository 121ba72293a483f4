"""What the farm keeps on disk, when it was used last, and how to remove it: its own things, recognised one by one."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from builder.environments import DONE
from builder.project import Home
from builder.store import Store
from builder.workspace import LOCK, STARTED

STORE_KINDS = {"engine": "engine", "onnx": "ONNX model", "timing-cache": "timing cache"}
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PART = re.compile(r"[0-9a-f]{64}\.part")
_PULL = re.compile(r"([0-9a-f]{64}|mirror-[0-9a-f]{16}|\.removed-.+)")
_BASE = re.compile(r"(sha256-[0-9a-f]{64}-.+|standin-.+)")
_UNFINISHED = ("envs/.*-py*-*.*", "envs/.removed-*", "bases/.standin-*", "bases/.removed-*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something that can be made or fetched again. `used`: seconds since 1970; `remove` says whether it is gone."""

    kind: str
    name: str
    size: int
    used: float
    remove: Callable[[], bool]


def home_items(home: Home) -> Iterator[Item]:
    """List what lies below the farm's home and can be had again."""
    yield from _store_items(Store(home.store))
    for path in _matching(home.fetch / "sha256", _DIGEST):
        yield _file_item("fetched file", path, path)
    for path in sorted(home.envs.glob("*/")):
        if (path / DONE).is_file():
            yield _folder_item("environment", path, path / DONE)
    for path in _matching(home.bases, _BASE):
        if (path / "index.json").is_file():
            yield _folder_item("base image", path, path / "index.json")


def leftovers(home: Home, older_than_s: float) -> Iterator[Item]:
    """List what dead runs and broken transfers left behind; nobody can need it."""
    limit = time.time() - older_than_s
    for path in _matching(home.fetch / "sha256", _PART):
        if path.stat().st_mtime <= limit:
            yield _file_item("broken transfer", path, path)
    for pattern in _UNFINISHED:
        for path in sorted(home.root.glob(pattern)):
            if path.is_dir() and path.stat().st_mtime <= limit:
                yield _folder_item("unfinished work", path, path)
    for path in _matching(home.bases, _BASE):
        if not (path / "index.json").is_file() and path.stat().st_mtime <= limit:
            yield _folder_item("broken transfer", path, path)
    yield from _broken_pulls(home, limit)
    for path in sorted(home.work.glob("run-*/")):
        if not _alive(path):
            yield _folder_item("work of a dead run", path, path)


def _broken_pulls(home: Home, limit: float) -> Iterator[Item]:
    for path in _matching(home.pulls, _PULL):
        # one that goes on is written to
        if max(file.lstat().st_mtime for file in (path, *path.rglob("*"))) <= limit:
            yield _folder_item("broken transfer", path, path)


def oldest_live_run(home: Home) -> float | None:
    """When the oldest run that is still at work began, in seconds since 1970; null where none is."""
    folders = [*home.work.glob("run-*/"), *home.work.glob("kept-*/")]
    began = [_began(folder) for folder in folders if _alive(folder)]
    return min(began) if began else None


def size_of(path: Path) -> int:
    """Bytes that a file or folder takes on disk."""
    if not path.is_dir():
        return path.lstat().st_blocks * 512
    return sum(file.lstat().st_blocks * 512 for file in path.rglob("*"))


def _began(folder: Path) -> float:
    try:
        return (folder / STARTED).stat().st_mtime
    except FileNotFoundError:
        return folder.stat().st_mtime


def _alive(folder: Path) -> bool:
    lock = folder / LOCK
    if not lock.is_file():
        # made this instant, or never finished
        return time.time() - folder.stat().st_mtime < 60
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


def _store_items(store: Store) -> Iterator[Item]:
    for entry in store.entries():

        def remove(entry: object = entry) -> bool:
            store.remove(entry)  # type: ignore[arg-type]  # bound now, not when the loop is over
            return True

        noun = STORE_KINDS.get(entry.kind, entry.kind)
        yield Item(kind=noun, name=entry.name, size=store.size(entry), used=store.used(entry), remove=remove)


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in folder.glob("*") if pattern.fullmatch(path.name))


def _file_item(kind: str, path: Path, stamp: Path) -> Item:
    def remove() -> bool:
        path.unlink(missing_ok=True)
        return True

    return Item(kind=kind, name=path.name, size=size_of(path), used=stamp.stat().st_mtime, remove=remove)


def _folder_item(kind: str, path: Path, stamp: Path) -> Item:
    def remove() -> bool:
        # out of the way first: nobody must find half of it
        aside = path.with_name(f".removed-{path.name}-{time.time_ns()}")
        path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)
        return not aside.exists()

    return Item(kind=kind, name=path.name, size=size_of(path), used=stamp.stat().st_mtime, remove=remove)
