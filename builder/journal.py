"""History of finished stages: one JSON line each, for estimates of time and memory."""

from __future__ import annotations

import json
import os
import statistics
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

_RECENT = 5
_ROTATE_BYTES = 8 << 20


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


_FIELDS = frozenset(item.name for item in fields(JournalEntry))


class Journal:
    """An append-only file. Estimates are read once, when first asked for."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, entry: JournalEntry) -> None:
        """Append an entry with one write, so that processes side by side never mix lines. A full disk is no failure."""
        line = (json.dumps(asdict(entry), separators=(",", ":")) + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size > _ROTATE_BYTES:
                self._path.replace(self._path.with_suffix(".old.jsonl"))
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(descriptor, line)
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
        """Read all entries; torn or foreign lines are passed over."""
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ()
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


def _parse(line: str) -> JournalEntry | None:
    try:
        row = json.loads(line)
        return JournalEntry(**{name: row[name] for name in _FIELDS})
    except (ValueError, KeyError, TypeError):
        return None
