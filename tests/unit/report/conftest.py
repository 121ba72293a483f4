"""Committed texts: what people read changes only on purpose."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "data" / "snapshots"


@pytest.fixture
def snapshot() -> Callable[[str, str], None]:
    """Compare a text with tests/data/snapshots/<name>.txt; UPDATE_SNAPSHOTS=1 writes it."""

    def check(name: str, text: str) -> None:
        path = FOLDER / f"{name}.txt"
        if os.environ.get("UPDATE_SNAPSHOTS"):
            path.write_text(text + "\n", encoding="utf-8")
        expected = path.read_text(encoding="utf-8")
        assert text + "\n" == expected, f"{path} differs; if that is meant: UPDATE_SNAPSHOTS=1 pytest tests/unit/report"

    return check
