"""Timing caches that travel: what one machine measured serves another with the same GPU, and damage is noticed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from builder.errors import Reason
from builder.store import Store
from builder.timing_caches import (
    KIND,
    TIMING_CACHE,
    class_document,
    export_classes,
    import_classes,
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


def test_a_folder_without_caches_is_named(store: Store, tmp_path: Path) -> None:
    assert refusal(lambda: import_classes(store, tmp_path / "nothing")).reason is Reason.FILE_MISSING
