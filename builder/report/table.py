"""A small text table that fits the width it is given: the least important columns give way first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

_GAP = "  "
Paint = Callable[[str, str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column. `rank` 0 always stays; of the others the highest goes first when room is short."""

    title: str
    rank: int = 0
    right: bool = False


@dataclass(frozen=True, slots=True)
class Cell:
    """A text and the style that a terminal with colour gives it."""

    text: str
    style: str = ""


Row = Sequence[Cell | str]


def table(columns: Sequence[Column], rows: Sequence[Row], width: int, paint: Paint) -> list[str]:
    """Lay rows out as lines of at most `width` characters; columns of rank 0 stay even where they do not fit.

    A column without any text is left out.
    """
    cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
    widths = [max([len(column.title), *(len(row[i].text) for row in cells)]) for i, column in enumerate(columns)]
    filled = [i for i in range(len(columns)) if any(row[i].text for row in cells)]
    shown = _fitting(columns, widths, filled, width)
    lines = [paint(_line(columns, widths, shown, [c.title for c in columns]), "bold")]
    for row in cells:
        texts = (_painted(_pad(columns[i], widths[i], row[i].text), row[i], paint) for i in shown)
        lines.append(_GAP.join(texts).rstrip())
    return lines


def _fitting(columns: Sequence[Column], widths: Sequence[int], filled: list[int], width: int) -> list[int]:
    shown = list(filled)
    while sum(widths[i] for i in shown) + len(_GAP) * (len(shown) - 1) > width:
        last = max(shown, key=lambda i: columns[i].rank)
        if columns[last].rank == 0:
            break
        shown.remove(last)
    return shown


def _line(columns: Sequence[Column], widths: Sequence[int], shown: Sequence[int], texts: Sequence[str]) -> str:
    return _GAP.join(_pad(columns[i], widths[i], texts[i]) for i in shown).rstrip()


def _painted(padded: str, cell: Cell, paint: Paint) -> str:
    # Spaces stay unpainted: underlines and backgrounds would show them.
    return padded.replace(cell.text, paint(cell.text, cell.style), 1) if cell.text and cell.style else padded


def _pad(column: Column, width: int, text: str) -> str:
    return text.rjust(width) if column.right else text.ljust(width)
