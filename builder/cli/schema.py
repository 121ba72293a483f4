"""`enginefarm schema`."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli import options
from builder.errors import ExitCode
from builder.schemas import generated_files


@click.command("schema")
@click.option("--check", is_flag=True, help="Write nothing; fail where a file is not up to date.")
@options.project
def command(*, check: bool, folder: Path | None) -> int:
    """Write the generated schemas and pages, or check them.

    The exit code of --check is 3 when a file is not up to date.
    """
    root = options.locate_project(folder).root
    stale = [(root / path, text) for path, text in generated_files(root).items() if _differs(root / path, text)]
    for path, text in stale:
        if check:
            options.stderr().line(f"not up to date: {path.relative_to(root)}; run `enginefarm schema`")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            options.stdout().line(str(path.relative_to(root)))
    return ExitCode.BAD_INPUT if check and stale else ExitCode.OK


def _differs(path: Path, text: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8") != text
