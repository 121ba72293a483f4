"""The journal: whole lines from many writers, estimates from the last successes, no trouble from damage."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from builder import journal as module
from builder.journal import Journal, JournalEntry

ENTRY = JournalEntry(
    job="tiny-fp16-rtx-sm80",
    recipe="tiny",
    precision="fp16",
    stack="rtx",
    stage="build",
    seconds=1.0,
    max_rss_bytes=100,
    status="ok",
    ended="2026-01-01T00:00:00+00:00",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Name a journal that does not exist yet."""
    return tmp_path / "home" / "journal.jsonl"


def seconds(path: Path, precision: str = "fp16", stage: str = "build") -> float | None:
    """Ask as a later run would."""
    return Journal(path).expected_seconds("tiny", precision, "rtx", stage)


def test_no_history(path: Path) -> None:
    assert Journal(path).entries() == ()
    assert seconds(path) is None
    assert Journal(path).expected_rss("tiny", "fp16", "rtx", "build") is None
    assert not path.parent.exists()


def test_entries_come_back(path: Path) -> None:
    entries = tuple(replace(ENTRY, seconds=number / 3, job=f"jöb {number}") for number in range(5))
    for entry in entries:
        Journal(path).record(entry)
    assert Journal(path).entries() == entries
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5


def test_estimates_come_from_the_last_five_successes(path: Path) -> None:
    for taken, rss in [(100.0, 1), (1.0, 10), (2.0, 50), (3.0, 40), (4.0, 20), (50.0, 30)]:
        Journal(path).record(replace(ENTRY, seconds=taken, max_rss_bytes=rss))
    Journal(path).record(replace(ENTRY, seconds=0.1, max_rss_bytes=999, status="failed"))
    assert seconds(path) == 3.0
    assert Journal(path).expected_rss("tiny", "fp16", "rtx", "build") == 50


def test_other_precisions_of_the_recipe_stand_in(path: Path) -> None:
    Journal(path).record(replace(ENTRY, seconds=7.0))
    Journal(path).record(replace(ENTRY, seconds=9.0, recipe="another"))
    assert seconds(path, precision="bf16") == 7.0
    Journal(path).record(replace(ENTRY, seconds=8.0, precision="bf16"))
    assert (seconds(path, precision="bf16"), seconds(path)) == (8.0, 7.0)
    assert seconds(path, stage="verify") is None


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"\n\n",
        b"[]\n",
        b"null\n",
        b'{"job": "x"}\n',
        b"\xff\xfe\n",
        json.dumps({**asdict(ENTRY), "seconds": "long"}).encode() + b"\n",
        json.dumps({**asdict(ENTRY), "seconds": None}).encode() + b"\n",
    ],
)
def test_damaged_lines_are_passed_over(path: Path, damage: bytes) -> None:
    Journal(path).record(ENTRY)
    with path.open("ab") as stream:
        stream.write(damage)
    Journal(path).record(replace(ENTRY, seconds=3.0))
    assert [entry.seconds for entry in Journal(path).entries()] == [1.0, 3.0]


def test_torn_line_takes_no_other_with_it(path: Path) -> None:
    Journal(path).record(ENTRY)
    Journal(path).record(ENTRY)
    path.write_bytes(path.read_bytes()[:-20])
    assert len(Journal(path).entries()) == 1
    Journal(path).record(replace(ENTRY, seconds=3.0))
    assert [entry.seconds for entry in Journal(path).entries()] == [1.0, 3.0]


def test_fields_of_a_later_version_are_ignored(path: Path) -> None:
    Journal(path).record(ENTRY)
    path.write_text(json.dumps({**json.loads(path.read_text()), "gpu": "H100", "seconds": 2}) + "\n")
    assert Journal(path).entries() == (replace(ENTRY, seconds=2.0),)


def test_rotation_keeps_the_recent_history(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROTATE_BYTES", 1000)
    for number in range(12):
        Journal(path).record(replace(ENTRY, seconds=float(number)))
        assert path.stat().st_size < 1000 + 250
        assert Journal(path).entries()[-1].seconds == number
    assert path.with_suffix(".old.jsonl").stat().st_size > 1000
    assert [entry.seconds for entry in Journal(path).entries()][-6:] == [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]


def test_long_history_is_read_from_its_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        Journal(path).record(replace(ENTRY, seconds=float(number)))
    line = len(path.read_bytes()) // 20
    monkeypatch.setattr(module, "_READ_BYTES", 5 * line + line // 2)
    assert [entry.seconds for entry in Journal(path).entries()] == [15.0, 16.0, 17.0, 18.0, 19.0]


def test_writers_side_by_side_never_mix_lines(path: Path) -> None:
    def write(writer: int) -> None:
        own = Journal(path)
        for number in range(50):
            own.record(replace(ENTRY, job=f"{writer}" * 500, seconds=float(number)))

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = Journal(path).entries()
    assert len(entries) == 200
    for writer in range(4):
        own = [entry.seconds for entry in entries if entry.job == f"{writer}" * 500]
        assert own == [float(number) for number in range(50)]


def test_journal_that_cannot_be_written_stops_nothing(path: Path) -> None:
    path.parent.write_text("a file in the way")
    Journal(path).record(ENTRY)
    assert Journal(path).entries() == ()
