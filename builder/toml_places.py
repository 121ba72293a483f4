"""Finds where a value stands in a TOML file: the parser of the standard library keeps no positions."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

Step = str | int
_HEADER = re.compile(r"\s*\[(?P<array>\[)?(?P<name>[^\[\]]+)\](?(array)\])\s*(#.*)?$")
_ASSIGNMENT = re.compile(r"""\s*(?P<name>(?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")
_LONG_STRING = re.compile(r"\"\"\"|'''")


def locate(text: str, path: Sequence[Step]) -> tuple[int, int]:
    """Return line and column, counted from 1, of a value; the deepest part of the path that has a line counts."""
    best, found = 0, (1, 1)
    for place, known in _places(text):
        depth = _common(known, path)
        if depth > best and depth == len(known):
            best, found = depth, place
    return found


def _places(text: str) -> Iterator[tuple[tuple[int, int], tuple[Step, ...]]]:
    """Yield every table and every assignment with its path; elements of arrays of tables are counted."""
    table: tuple[Step, ...] = ()
    counts: dict[tuple[Step, ...], int] = {}
    closing: str | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        if closing is not None:
            closing = None if closing in line else closing
            continue
        place = (number, len(line) - len(line.lstrip()) + 1)
        if (header := _HEADER.match(line)) is not None:
            table = _resolve(_parts(header["name"]), counts)
            if header["array"]:
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            yield place, table
        elif (assignment := _ASSIGNMENT.match(line)) is not None:
            yield place, (*table, *_parts(assignment["name"]))
            opened = _LONG_STRING.findall(line)
            closing = opened[-1] if len(opened) % 2 else None


def _resolve(parts: Sequence[str], counts: dict[tuple[Step, ...], int]) -> tuple[Step, ...]:
    # [[rules.keys]] belongs to the last [[rules]]
    path: tuple[Step, ...] = ()
    for index, part in enumerate(parts):
        path = (*path, part)
        if path in counts and index < len(parts) - 1:
            path = (*path, counts[path])
    return path


def _parts(name: str) -> list[str]:
    return [part.strip("\"'") for part in _PART.findall(name)]


def _common(left: Sequence[Step], right: Sequence[Step]) -> int:
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count
