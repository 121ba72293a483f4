"""Failures that others have met before: recognises their texts in a log and says cause and fix."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from builder.tables import load_table

_BLOCK_BYTES = 4 << 20
# longer than any text that a pattern of several lines can match
_OVERLAP_BYTES = 32 << 10
_SHOWN = 200
_DETAIL = 120
# one failure in several shapes, such as three missing libraries; more are only counted
_MOST_OF_ONE = 3
_NOT_LITERAL = frozenset("wWdDsSbBAZnrtx0123456789")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A compiled pattern and a text that is in everything it matches: looking for that first is much faster."""

    regex: re.Pattern[bytes]
    needle: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownFailure:
    """An entry of the catalogue. `cause` and `fix` may use the patterns' named groups; `see` is a reason code."""

    id: str
    title: str
    patterns: tuple[Pattern, ...]
    cause: str
    fix: str
    see: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A known failure in a log: where it is first, what matched there, and how often."""

    failure: KnownFailure
    line: int
    text: str
    details: tuple[tuple[str, str], ...]
    count: int

    @property
    def title(self) -> str:
        """What happened, with what this log says filled in."""
        return self.failure.title.format_map(dict(self.details))

    @property
    def cause(self) -> str:
        """The cause, with what this log says filled in."""
        return self.failure.cause.format_map(dict(self.details))

    @property
    def fix(self) -> str:
        """The remedy, with what this log says filled in."""
        return self.failure.fix.format_map(dict(self.details))


def load_catalogue() -> tuple[KnownFailure, ...]:
    """Read the catalogue, most specific first."""
    return tuple(_entry(row) for row in load_table("known_failures.toml")["failure"])


def recognise(log: BinaryIO, catalogue: Sequence[KnownFailure]) -> list[Finding]:
    """Find what the catalogue knows in a log of any size, most specific first; each line is explained once."""
    found = _Found()
    buffer, line = b"", 1
    explained: set[int] = set()
    while True:
        block = log.read(_BLOCK_BYTES)
        buffer += block
        limit = _whole_lines(buffer) if block else len(buffer)
        for failure, match in _matches(buffer, limit, catalogue, explained):
            found.add(failure, match, line)
        if not block:
            return found.ranked(catalogue)
        line += buffer.count(b"\n", 0, limit)
        buffer = buffer[limit:]
        explained = {start - limit for start in explained if start >= limit}


def needle(pattern: str) -> str:
    """Return the longest literal text that every match of a pattern holds; empty where none is certain."""
    runs = [""]
    depth = position = 0
    while position < len(pattern):
        piece = _piece(pattern, position)
        position += len(piece)
        depth += (piece == "(") - (piece == ")")
        if depth == 0 and piece == "|":
            return ""
        if piece[0] in "?*{":
            # what comes before it may be missing
            runs[-1] = runs[-1][:-1]
        literal = _literal(piece) if depth == 0 else ""
        if literal:
            runs[-1] += literal
        else:
            runs.append("")
    return max(runs, key=len)


class _Found:
    """The findings so far: one per failure and details, the first ones of each failure."""

    def __init__(self) -> None:
        self._findings: dict[str, dict[tuple[tuple[str, str], ...], Finding]] = {}

    def add(self, failure: KnownFailure, match: re.Match[bytes], first_line: int) -> None:
        same = self._findings.setdefault(failure.id, {})
        details = tuple((name, _readable(value, _DETAIL)) for name, value in match.groupdict(b"").items())
        old = same.get(details)
        if old is None and len(same) >= _MOST_OF_ONE:
            old = next(iter(same.values()))
        if old is None:
            line = first_line + match.string.count(b"\n", 0, match.start())
            text = _readable(match.group(), _SHOWN)
            same[details] = Finding(failure=failure, line=line, text=text, details=details, count=1)
        else:
            same[old.details] = Finding(
                failure=failure, line=old.line, text=old.text, details=old.details, count=old.count + 1
            )

    def ranked(self, catalogue: Iterable[KnownFailure]) -> list[Finding]:
        return [finding for failure in catalogue for finding in self._findings.get(failure.id, {}).values()]


def _entry(row: dict[str, Any]) -> KnownFailure:
    patterns = tuple(
        Pattern(re.compile(text.encode(), re.MULTILINE), needle(text).encode()) for text in row.pop("patterns")
    )
    return KnownFailure(patterns=patterns, **row)


def _matches(
    buffer: bytes, limit: int, catalogue: Iterable[KnownFailure], explained: set[int]
) -> Iterator[tuple[KnownFailure, re.Match[bytes]]]:
    for failure in catalogue:
        for pattern in failure.patterns:
            if pattern.needle not in buffer:
                continue
            for match in pattern.regex.finditer(buffer):
                if match.start() >= limit:
                    break
                lines = _line_starts(match)
                if explained.isdisjoint(lines):
                    explained.update(lines)
                    yield failure, match


def _line_starts(match: re.Match[bytes]) -> list[int]:
    text, start = match.string, match.start()
    starts = [text.rfind(b"\n", max(0, start - _OVERLAP_BYTES), start) + 1]
    while (end := text.find(b"\n", start, match.end() - 1)) >= 0:
        start = end + 1
        starts.append(start)
    return starts


def _whole_lines(buffer: bytes) -> int:
    """Return how much may be searched now: the rest is needed again with the next block."""
    keep_from = max(0, len(buffer) - _OVERLAP_BYTES)
    # only a line that is very long itself is cut
    return buffer.rfind(b"\n", 0, keep_from) + 1 or (keep_from if keep_from > _OVERLAP_BYTES else 0)


def _readable(text: bytes, most: int) -> str:
    words = " ".join(text.decode(errors="replace").split())
    return "".join(letter for letter in words if letter.isprintable())[:most]


def _piece(pattern: str, position: int) -> str:
    """Return the next piece of a pattern: an escape, a class, a quantifier in braces, or a single character."""
    first = pattern[position]
    if first == "\\":
        return pattern[position : position + 2]
    if first == "[":
        # a bracket right after the opening one is a member
        end = re.compile(r"\[\^?\]?(?:\\.|[^\\\]])*\]").match(pattern, position)
        return end.group() if end else first
    if first == "{":
        return pattern[position : pattern.index("}", position) + 1]
    return first


def _literal(piece: str) -> str:
    if piece[0] == "\\":
        return "" if piece[1] in _NOT_LITERAL else piece[1]
    return "" if len(piece) > 1 or piece in "().^$?*+|[{" else piece
