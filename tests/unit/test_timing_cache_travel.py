"""Timing caches that travel: what one machine measured serves another with the same GPU, and damage is noticed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from builder import timing_caches
from builder.errors import Reason
from builder.store import Store
from builder.timing_caches import (
    KIND,
    TIMING_CACHE,
    class_document,
    export_classes,
    import_classes,
    list_caches,
    save_cache,
)
from tests.artifacts import refusal
from tests.unit.test_timing_caches import DOCUMENT, OPTIONS, TUNING, held, runtime

OTHER = class_document(runtime(), "fp32", OPTIONS, TUNING)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store with two classes."""
    made = Store(tmp_path / "store")
    for document, content in ((DOCUMENT, '["a", "b"]'), (OTHER, '["c"]')):
        new = tmp_path / "new"
        new.write_text(content)
        save_cache(made, document, (), new)
    return made


def test_classes_travel_to_another_machine(store: Store, tmp_path: Path) -> None:
    carried, there = tmp_path / "carried", Store(tmp_path / "there")
    assert len(export_classes(store, carried)) == 2
    assert sorted(import_classes(there, carried)) == sorted(path.name for path in carried.iterdir())
    assert held(there) == [{"a", "b"}]
    assert held(there, OTHER) == [{"c"}]
    assert import_classes(there, carried) == []
    assert len(there.entries(KIND)) == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / TIMING_CACHE).write_text('["b"]'),
        lambda place: (place / TIMING_CACHE).unlink(),
        lambda place: (place / "class.json").write_text((place / "class.json").read_text().replace("580", "570")),
        lambda place: (place / "class.json").write_text("[]"),
        lambda place: (place / "class.json").write_text("{"),
    ],
    ids=["cache", "no cache", "class", "no class", "no JSON"],
)
def test_of_damaged_caches_none_is_taken(store: Store, tmp_path: Path, damage: Any) -> None:
    carried, there = tmp_path / "carried", Store(tmp_path / "there")
    name = export_classes(store, carried)[1]
    damage(carried / name)
    error = refusal(lambda: import_classes(there, carried))
    assert error.reason is Reason.TIMING_CACHE_INVALID
    assert error.where == str(carried / name)
    assert there.entries(KIND) == ()


def _without(place: Path, name: str) -> None:
    document = json.loads((place / "class.json").read_bytes())
    del document[name]
    _again(place, document)


def _again(place: Path, document: dict[str, Any]) -> None:
    """Describe the class otherwise, under the name that this has."""
    (place / "class.json").write_text(json.dumps(document))
    sha256 = hashlib.sha256((place / TIMING_CACHE).read_bytes()).hexdigest()
    place.rename(place.parent / timing_caches._place_name(document, sha256))


def _instead(path: Path, target: str | None = None) -> None:
    path.unlink()
    if target is None:
        os.mkfifo(path)
    else:
        path.symlink_to(target)


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (lambda place: _instead(place / TIMING_CACHE), "timing.cache is no file of at most"),
        (lambda place: _instead(place / TIMING_CACHE, "/dev/zero"), "timing.cache is no file of at most"),
        (lambda place: _instead(place / "class.json", "/dev/zero"), "class.json is no file of at most"),
        (lambda place: os.truncate(place / TIMING_CACHE, (64 << 20) + 1), "timing.cache is no file of at most"),
        (lambda place: (place / "class.json").write_text("[" * 100_000), "nested too deeply"),
        (lambda place: _without(place, "driver"), "KeyError('driver')"),
        (lambda place: _again(place, {**DOCUMENT, "device": ["NVIDIA H200"]}), "names that are no text"),
        (lambda place: _again(place, {**DOCUMENT, "precision": "fp16\n\x1b[31m"}), "names that are no text"),
    ],
    ids=["pipe", "no end", "class without end", "too large", "deep", "a field less", "a list", "control characters"],
)
def test_a_folder_from_elsewhere_may_hold_anything(store: Store, tmp_path: Path, attack: Any, why: str) -> None:
    carried, there = tmp_path / "carried", Store(tmp_path / "there")
    attack(carried / next(name for name in export_classes(store, carried) if "fp16" in name))
    error = refusal(lambda: import_classes(there, carried))
    assert error.reason is Reason.TIMING_CACHE_INVALID
    assert why in (error.why or "")
    assert there.entries(KIND) == ()


def test_a_class_that_describes_nothing_is_not_listed(store: Store, tmp_path: Path) -> None:
    files: dict[str, Path | bytes] = {TIMING_CACHE: b"x", "class.json": b'{"stack": {"name": "s"}}'}
    store.add(kind=KIND, key="0" * 64, name="odd", files=files)
    assert len(store.entries(KIND)) == 3
    assert len(list_caches(store)) == 2


def test_a_folder_without_caches_is_named(store: Store, tmp_path: Path) -> None:
    assert refusal(lambda: import_classes(store, tmp_path / "nothing")).reason is Reason.FILE_MISSING
