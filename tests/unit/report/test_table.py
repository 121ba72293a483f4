"""The table's layout."""

from __future__ import annotations

import pytest

from builder.report.table import Cell, Column, table

COLUMNS = (Column(title="JOB"), Column(title="SIZE", rank=1, right=True), Column(title="SHA-256", rank=2))
ROWS: list[tuple[Cell | str, ...]] = [
    ("tiny-fp16", "512 B", "0123456789ab"),
    (Cell("vocos-fp32", "red"), "4.7 MiB", "ba9876543210"),
]


def plain(text: str, style: str) -> str:
    """Paint nothing."""
    return text


def tagged(text: str, style: str) -> str:
    """Paint visibly."""
    return f"<{style}>{text}</{style}>" if style else text


def test_columns_line_up() -> None:
    """Text to the left, figures to the right, no trailing spaces."""
    assert table(COLUMNS, ROWS, 100, plain) == [
        "JOB            SIZE  SHA-256",
        "tiny-fp16     512 B  0123456789ab",
        "vocos-fp32  4.7 MiB  ba9876543210",
    ]


@pytest.mark.parametrize(("width", "titles"), [(33, 3), (32, 2), (19, 2), (18, 1), (3, 1)])
def test_least_important_columns_give_way(width: int, titles: int) -> None:
    """The highest rank goes first; rank 0 stays even where it does not fit."""
    lines = table(COLUMNS, ROWS, width, plain)
    assert len(lines[0].split()) == titles
    assert titles == 1 or max(map(len, lines)) <= width


def test_empty_columns_are_left_out() -> None:
    """A column without text takes no room."""
    assert table(COLUMNS, [("tiny", "", "ab")], 100, plain)[0] == "JOB   SHA-256"


def test_paint_leaves_spaces_alone() -> None:
    """Colour covers the text only, and layout ignores it."""
    lines = table(COLUMNS, [(Cell("a", "red"), Cell("1 B", "dim"), "x"), ("bbbbb", "22 B", "y")], 100, tagged)
    assert lines[1] == "<red>a</red>       <dim>1 B</dim>  x"
