"""GitHub Actions: folded logs and the step summary."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

_LONGEST_LOG = 200_000


def on_github(environ: Mapping[str, str]) -> bool:
    """Tell whether this is a step of a GitHub workflow."""
    return environ.get("GITHUB_ACTIONS") == "true"


def folded_log(title: str, log: Path) -> list[str]:
    """Return the lines that show the end of a log folded under a title.

    A log could hold workflow commands; a random word turns them off until it is said again.
    """
    try:
        text = log.read_text(encoding="utf-8", errors="replace")[-_LONGEST_LOG:]
    except OSError:
        return []
    word = secrets.token_hex(16)
    return [f"::group::{title}", f"::stop-commands::{word}", *text.splitlines(), f"::{word}::", "::endgroup::"]


def add_summary(environ: Mapping[str, str], lines: Iterable[str]) -> None:
    """Append Markdown to the step summary; without a workflow, or where its file cannot be written, nothing happens.

    In a container of one's own the variable may name a file that is not there.
    """
    path = environ.get("GITHUB_STEP_SUMMARY")
    if path:
        with suppress(OSError), Path(path).open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{line}\n" for line in lines)
