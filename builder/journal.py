"""History of finished stages: one JSON line each, for estimates of time and memory."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

_RECENT = 5
_ROTATE_BYTES = 8 << 20
# some thousand entries: what older ones would add to estimates is not worth the time to read them
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEntry:
    """One finished stage. `ended` is an ISO 8601 time; `status` is ok or failed."""

    job: str
    recipe: str
    precision: str
    stack: str
    stage: str
    seconds: float
    max_rss_bytes: int
    status: str
    ended: str


_KINDS: dict[str, Callable[[Any], Any]] = {"str": str, "float": float, "int": int}
_FIELDS = {item.name: _KINDS[str(item.type)] for item in fields(JournalEntry)}


class Journal:
    """An append-only file. Estimates are read once, when first asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._older = path.with_suffix(".old.jsonl")

    def record(self, entry: JournalEntry) -> None:
        """Append an entry with one write, so that processes side by side never mix lines. A full disk is no failure."""
        line = (json.dumps(asdict(entry), separators=(",", ":")) + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > _ROTATE_BYTES:
                self._path.replace(self._older)
            descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, b"\n" + line if torn else line)
            finally:
                os.close(descriptor)
        except OSError:
            return

    def expected_seconds(self, recipe: str, precision: str, stack: str, stage: str) -> float | None:
        """Median wall time of the last successes of this very stage, else of the recipe's, else null."""
        entries = self._similar(recipe, precision, stack, stage)
        return statistics.median(entry.seconds for entry in entries) if entries else None

    def expected_rss(self, recipe: str, precision: str, stack: str, stage: str) -> int | None:
        """Largest peak memory among the last successes, in bytes, else null."""
        entries = self._similar(recipe, precision, stack, stage)
        return max(entry.max_rss_bytes for entry in entries) if entries else None

    def entries(self) -> tuple[JournalEntry, ...]:
        """Read the recent entries, oldest first; torn or foreign lines are passed over."""
        content = b""
        for path in (self._path, self._older):
            content = _end_of(path, _READ_BYTES - len(content)) + content
        lines = content.decode(errors="replace").splitlines()
        return tuple(entry for line in lines if (entry := _parse(line)) is not None)

    def _similar(self, recipe: str, precision: str, stack: str, stage: str) -> list[JournalEntry]:
        same = self._index.get((recipe, precision, stack, stage)) or self._index.get((recipe, "", "", stage))
        return same[-_RECENT:] if same else []

    @cached_property
    def _index(self) -> dict[tuple[str, str, str, str], list[JournalEntry]]:
        index: dict[tuple[str, str, str, str], list[JournalEntry]] = {}
        for entry in self.entries():
            if entry.status == "ok":
                exact, loose = (
                    (entry.recipe, entry.precision, entry.stack, entry.stage),
                    (entry.recipe, "", "", entry.stage),
                )
                index.setdefault(exact, []).append(entry)
                index.setdefault(loose, []).append(entry)
        return index


def _end_of(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            return stream.read(size)
    except OSError:
        return b""


def _parse(line: str) -> JournalEntry | None:
    try:
        row = json.loads(line)
        return JournalEntry(**{name: kind(row[name]) for name, kind in _FIELDS.items()})
    except (ValueError, KeyError, TypeError, OverflowError):
        return None
