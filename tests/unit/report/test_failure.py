"""Errors as text and as data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import EnginefarmError, ErrorGroup, Reason
from builder.report.failure import error_json, error_lines, labelled

SIMPLE = EnginefarmError(
    Reason.SM_MISMATCH,
    "stack trtrtx1.7-cuda13 cannot build for SM 9.0 (hopper)",
    fix="stacks for SM 9.0: none yet; trtrtx1.7-cuda13 has 7.5, 8.0, 8.6, 8.9, 12.0",
)
PLACED = EnginefarmError(
    Reason.RECIPE_INVALID,
    "unknown field `presicions`",
    where="recipes/tiny/recipe.yaml:14:1",
    why="a recipe has no such field; a field that is not known is refused, so that a typing mistake is found at once",
    fix="did you mean `precisions`?",
)
MANY_LINES = EnginefarmError(
    Reason.WORKER_DIED, "stage build was killed by signal 9", why="first line\n    indented line\n\nlast line"
)
GROUP = ErrorGroup(Reason.RECIPE_INVALID, "2 problems in 1 recipe", (PLACED, SIMPLE))
CASES = {"simple": SIMPLE, "placed": PLACED, "many-lines": MANY_LINES, "group": GROUP}


def plain(text: str, style: str) -> str:
    """Paint nothing."""
    return text


def test_terminals_obey_nobody_else() -> None:
    bad = "a\x1b[2Jb\x9b31mc\u202ed\te"
    error = EnginefarmError(Reason.REGISTRY_REFUSED, bad, where=bad, why=f"{bad}\n{bad}", fix=bad)
    text = "\n".join(error_lines(error, 80, plain))
    assert text.count(r"a\x1b[2Jb\x9b31mc\u202ed" + "\te") == 5
    assert not any(character in text for character in "\x1b\x9b\u202e")


@pytest.mark.parametrize("name", CASES)
def test_text(name: str, snapshot: Callable[[str, str], None]) -> None:
    """Every shape of error reads as committed."""
    snapshot(f"error-{name}", "\n".join(error_lines(CASES[name], 80, plain)))


def test_log_is_named() -> None:
    """A failed stage's log is said."""
    error = EnginefarmError(Reason.BUILD_FAILED, "no engine")
    error.log = Path("/logs/tiny.build.log")
    assert error_lines(error, 80, plain)[-1] == "  log: /logs/tiny.build.log"


def test_wrapping_loses_no_word() -> None:
    """Long texts wrap under themselves and keep every word; paths are not broken."""
    text = f"{'word ' * 40}/a/very/long/path/{'x' * 90}"
    lines = labelled("why", text, 60, plain)
    assert " ".join(lines).replace("why:", "").split() == text.split()
    assert all(line.startswith("       ") for line in lines[1:])
    assert all(len(line) <= 60 for line in lines[:-1])


def test_json_of_group_lists_its_errors() -> None:
    """Scripts see each problem with its place and code."""
    document = json.loads(json.dumps(error_json(GROUP)))
    assert [item["where"] for item in document["errors"]] == ["recipes/tiny/recipe.yaml:14:1", None]
    assert document["exit_code"] == 3
