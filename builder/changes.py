"""Which stacks a change touches, as git tells."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from builder import process
from builder.errors import EnginefarmError, Reason
from builder.project import Project

# a change to one of these touches every stack's image
_SHARED = ("bases.toml", "steps")


def changed_stacks(project: Project, since: str, names: Iterable[str]) -> set[str]:
    """Name the stacks whose files differ from a git revision.

    Raises:
        EnginefarmError: NAME_UNKNOWN where git does not know the revision, TOOL_MISSING.

    """
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as name:
        log = Path(name) / "log"
        argv = ["git", "diff", "--name-only", "--relative", "--end-of-options", since, "--", "."]
        try:
            outcome = process.run(argv, cwd=project.images, env=os.environ, log=log, timeout_s=60.0)
        except FileNotFoundError as error:
            raise EnginefarmError(Reason.TOOL_MISSING, "the program git is not installed") from error
        said = log.read_text(encoding="utf-8", errors="replace")
    if outcome.exit_code != 0:
        raise EnginefarmError(Reason.NAME_UNKNOWN, f"git knows no revision {since!r}", why=said, fix="name a commit")
    touched = {line.partition("/")[0] for line in said.splitlines()}
    return set(names) if touched & set(_SHARED) else touched & set(names)
