"""The memory of serials: no older list of engines goes unnoticed."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import Reason
from builder.project import Home
from builder.pull_memory import PullMemory
from tests.artifacts import document, refusal

PLACE, OTHER = "registry.example/farm/tiny:latest", "registry.example/farm/tiny:1"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(root=tmp_path)


def test_the_serial_grows(home: Home) -> None:
    memory = PullMemory(home)
    assert memory.serial(PLACE) is None
    for serial in (1, 1, 7):
        memory.note(PLACE, serial)
        assert PullMemory(home).serial(PLACE) == serial
    assert memory.serial(OTHER) is None


def test_an_older_one_is_refused_and_not_noted(home: Home) -> None:
    memory = PullMemory(home)
    memory.note(PLACE, 7)
    error = refusal(lambda: memory.note(PLACE, 6))
    assert (error.reason, error.why) == (Reason.INDEX_ROLLED_BACK, "serial 7 was seen before, this is 6")
    assert memory.serial(PLACE) == 7
    memory.note(OTHER, 6)


def test_an_older_one_that_is_accepted_counts_from_then_on(home: Home) -> None:
    memory = PullMemory(home)
    memory.note(PLACE, 7)
    memory.note(PLACE, 3, accept_older=True)
    memory.note(PLACE, 4)
    assert memory.serial(PLACE) == 4
    assert refusal(lambda: memory.note(PLACE, 3)).reason is Reason.INDEX_ROLLED_BACK


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"[" * 100_000,
        b'{"schema": 2, "serials": {}}',
        b'{"schema": 1, "serials": {"a": "x"}}',
        b'{"schema": 1, "serials": {"a": 1e999}}',
    ],
)
def test_an_unreadable_memory_is_not_an_empty_one(home: Home, content: bytes) -> None:
    home.pulls.mkdir()
    (home.pulls / "serials.json").write_bytes(content)
    assert refusal(lambda: PullMemory(home).note(PLACE, 1)).reason is Reason.STORE_CORRUPT
    assert (home.pulls / "serials.json").read_bytes() == content


def test_it_is_a_plain_file(home: Home) -> None:
    PullMemory(home).note(PLACE, 1)
    assert document(home.pulls / "serials.json") == {"schema": 1, "serials": {PLACE: 1}}


def test_a_file_in_its_way_is_said(home: Home) -> None:
    home.pulls.touch()
    assert refusal(lambda: PullMemory(home).note(PLACE, 1)).reason is Reason.PATH_OCCUPIED
