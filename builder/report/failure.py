"""Errors as text for people and as plain data for scripts."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Callable
from typing import Any

from builder.errors import EnginefarmError, ErrorGroup

_NARROWEST = 40
# control characters, directions of writing, halves of characters
_OBEYED = frozenset({"Cc", "Cf", "Cs"})


def error_lines(error: EnginefarmError, width: int, paint: Callable[[str, str], str]) -> list[str]:
    """Write an error: code and what happened, then place, cause and remedy, each on lines of its own.

    A group is its errors, one block each, and a last line that sums them up.
    """
    if isinstance(error, ErrorGroup):
        blocks = [[*error_lines(each, width, paint), ""] for each in error.errors]
        return [*(line for block in blocks for line in block), _head(error, paint)]
    lines = [_head(error, paint)]
    if error.where:
        lines.append(f"  {paint('-->', 'cyan')} {_plain(error.where)}")
    for label, text in (("why", error.why), ("fix", error.fix)):
        if text:
            lines += labelled(label, text, width, paint)
    if error.log:
        lines.append(f"  {paint('log:', 'cyan')} {error.log}")
    return lines


def labelled(label: str, text: str, width: int, paint: Callable[[str, str], str]) -> list[str]:
    """Write `  label: text`, wrapped under itself; lines that begin with a space are kept as they are."""
    indent = " " * (len(label) + 4)
    room = max(_NARROWEST, width - len(indent))
    wrapped: list[str] = []
    for line in map(_plain, text.splitlines()):
        if line.startswith((" ", "\t")) or len(line) <= room:
            wrapped.append(line.rstrip())
        else:
            wrapped += textwrap.wrap(line, room, break_long_words=False, break_on_hyphens=False)
    first, *rest = wrapped or [""]
    return [f"  {paint(label + ':', 'cyan')} {first}", *(indent + line if line else "" for line in rest)]


def error_json(error: EnginefarmError) -> dict[str, Any]:
    """Return an error as plain data; a group lists its errors."""
    document: dict[str, Any] = error.as_json()
    if isinstance(error, ErrorGroup):
        document["errors"] = [error_json(each) for each in error.errors]
    return document


def _head(error: EnginefarmError, paint: Callable[[str, str], str]) -> str:
    info = error.reason.value
    return f"{paint(f'error[{info.code} {info.slug}]:', 'red')} {_plain(error.what)}"


def _plain(text: str) -> str:
    """Spell out what terminals would obey: servers and files of others have a say in messages."""
    return "".join(c if unicodedata.category(c) not in _OBEYED or c in "\t\n" else ascii(c)[1:-1] for c in text)
