"""`enginefarm reproduce`."""

from __future__ import annotations

import threading
from dataclasses import asdict
from pathlib import Path

import click

from builder.cli import options
from builder.cli.executor import executor_option
from builder.cli.interrupt import stop_on_signals
from builder.console import open_console
from builder.errors import ExitCode
from builder.project import find_home
from builder.report.reproduced import reproduction_lines
from builder.reproduce import REBUILDS_ON_GPU, Ask, reproduce
from builder.runner import Settings


@click.command("reproduce")
@click.argument("job")
@click.option("--rebuilds", type=click.IntRange(min=1), metavar="N",
              help=f"How often to rebuild [default: {REBUILDS_ON_GPU} on a GPU, else once].")  # fmt: skip
@click.option("--cold", is_flag=True, help="Rebuild without the engine's timing cache; the manifest stays as it is.")
@click.option("--no-install", is_flag=True, help="Refuse instead of installing a stack's packages.")
@click.option("--keep", "--keep-work", "keep_work", is_flag=True,
              help="Keep the folders of all stages, and containers that failed.")  # fmt: skip
@executor_option("What runs the stages of an engine of an image.")
@options.as_json
@options.project
def command(  # noqa: PLR0913 - one parameter per option
    *,
    job: str,
    rebuilds: int | None,
    cold: bool,
    no_install: bool,
    keep_work: bool,
    executor: str,
    as_json: bool,
    folder: Path | None,
) -> int:
    """Rebuild an engine and say how far it is the same.

    JOB is a job id, or the first six or more digits of a key or of an engine's SHA-256. The level is that of the worst
    rebuild: bitwise (same bytes), outputs (same results bit for bit), tolerance (results within the recipe's
    tolerance) or drifted; the exit code is 8 for the last. An engine that was tuned on a GPU is rebuilt from its own
    timing cache.
    """
    project, home, err = options.locate_project(folder), find_home(), options.stderr()
    settings = Settings(install=not no_install, keep_work=keep_work, executor=executor)
    cancel = threading.Event()
    console = open_console(err, {})
    with stop_on_signals(cancel, console.stopping, err), console:
        found = reproduce(job, project, home, settings, console.listen, cancel, Ask(rebuilds=rebuilds, cold=cold))
    if as_json:
        options.print_json(asdict(found))
    else:
        options.print_lines(reproduction_lines(found))
    return ExitCode.NOT_REPRODUCIBLE if found.level == "drifted" else ExitCode.OK
