"""`enginefarm reproduce`."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path

import click

from builder.cli import options
from builder.cli.interrupt import stop_on_signals
from builder.console import open_console
from builder.errors import ExitCode
from builder.project import find_home
from builder.reproduce import reproduce
from builder.runner import Settings


@click.command("reproduce")
@click.argument("job")
@click.option("--no-install", is_flag=True, help="Refuse instead of installing a stack's packages.")
@click.option("--keep", "--keep-work", "keep_work", is_flag=True,
              help="Keep the folders of all stages, and containers that failed.")  # fmt: skip
@options.as_json
@options.project
def command(*, job: str, no_install: bool, keep_work: bool, as_json: bool, folder: Path | None) -> int:
    """Rebuild an engine and compare it byte for byte.

    JOB is a job id, or the first six or more digits of a key or of an engine's SHA-256. The exit code is 8 when the
    bytes differ.
    """
    project, home, err = options.locate_project(folder), find_home(), options.stderr()
    settings = Settings(install=not no_install, keep_work=keep_work)
    cancel = threading.Event()
    console = open_console(err, {})
    with stop_on_signals(cancel, console.stopping, err), console:
        verdict = reproduce(job, project, home, settings, console.listen, cancel)
    if as_json:
        options.print_json(asdict(verdict))
    else:
        lines = [f"{verdict.job}: {verdict.level}"]
        lines += [f"  engine   {verdict.engine_sha256}", f"  rebuilt  {verdict.rebuilt_sha256}"]
        if verdict.first_difference is not None:
            lines.append(f"  differs first in {verdict.first_difference}")
        options.print_lines([*lines, *(f"  {detail}" for detail in verdict.details)])
    return ExitCode.OK if verdict.same else ExitCode.NOT_REPRODUCIBLE
