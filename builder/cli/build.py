"""`enginefarm build`."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import click

from builder import github
from builder.cli import options
from builder.cli.executor import executor_option
from builder.cli.interrupt import stop_on_signals
from builder.console import open_console
from builder.journal import Journal
from builder.plan import make_plan, require_jobs, select_jobs
from builder.preflight import MIB
from builder.progress import expected_job_seconds
from builder.project import find_home
from builder.report.built import (
    exit_code,
    failure_lines,
    hint_lines,
    outcome_lines,
    outcomes_json,
    summary_markdown,
    totals,
)
from builder.report.planned import refusal_lines
from builder.runner import Settings, run
from builder.selection import Selection, load_catalogue
from builder.store import Store
from builder.targets import load_targets
from builder.timing_caches import find_cache


@click.command("build")
@options.selection
@click.option("-j", "jobs", type=click.IntRange(min=1), metavar="N", help="Jobs at once [default: one per processor].")
@click.option("--no-install", is_flag=True, help="Refuse instead of installing a stack's packages.")
@click.option("--skip-verify", is_flag=True, help="Build without checking the numbers; the manifest says so.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=3600.0, show_default=True,
              metavar="SECONDS", help="Limit for each stage.")  # fmt: skip
@click.option("--keep", "--keep-work", "keep_work", is_flag=True,
              help="Keep the folders of all stages, and containers that failed.")  # fmt: skip
@click.option("--job", "ids", multiple=True, metavar="GLOB", help="Only the jobs with such ids; repeatable.")
@executor_option("What runs the stages; auto: docker where one answers.")
@click.option("--memory", "memory_mib", type=click.IntRange(min=64), metavar="MIB",
              help="Limit of a stage in a container [default: what is free].")  # fmt: skip
@options.lock
@options.compat
@click.option("--sealed", metavar="DIGEST|FILE", help="Use this timing cache alone; fail where it does not hold all.")
@options.as_json
@options.project
def command(  # noqa: PLR0913 - one parameter per option
    *,
    targets: tuple[str, ...],
    recipes: tuple[str, ...],
    stacks: tuple[str, ...],
    precisions: tuple[str, ...],
    jobs: int | None,
    no_install: bool,
    skip_verify: bool,
    timeout: float,
    keep_work: bool,
    ids: tuple[str, ...],
    executor: str,
    memory_mib: int | None,
    lock: str | None,
    compat: str | None,
    sealed: str | None,
    as_json: bool,
    folder: Path | None,
) -> int:
    """Build and prove the engines of a target.

    What the store has already is reused. A failed job does not stop the others.
    """
    if not targets:
        listed = ", ".join(load_targets())
        raise click.UsageError(f"Missing option '--target'. Targets: {listed}.", click.get_current_context())
    project, home = options.locate_project(folder), find_home()
    catalogue = load_catalogue(project, Selection(targets=targets, recipes=recipes, stacks=stacks, lock=lock))
    plan = require_jobs(select_jobs(make_plan(catalogue, precisions, compat), ids))
    out, err = options.stdout(), options.stderr()
    for line in refusal_lines(plan.refusals, err.width, err.paint):
        err.line(line)
    settings = Settings(
        jobs=jobs,
        install=not no_install,
        verify=not skip_verify,
        timeout_s=timeout,
        keep_work=keep_work,
        executor=executor,
        memory_bytes=memory_mib * MIB if memory_mib is not None else None,
        lock=lock,
        sealed=find_cache(Store(home.store), sealed).path if sealed is not None else None,
        # a cache of the store was measured here; TensorRT itself shall judge a file from elsewhere
        sealed_here=sealed is not None and not Path(sealed).is_file(),
    )
    cancel = threading.Event()
    started = time.monotonic()
    console = open_console(err, expected_job_seconds(plan, Journal(home.journal)))
    with stop_on_signals(cancel, console.stopping, err), console:
        outcomes = run(plan, catalogue, project, home, settings, console.listen, cancel)
    seconds = time.monotonic() - started
    if as_json:
        options.print_json(outcomes_json(outcomes, plan.refusals, home.store))
    else:
        options.print_lines(outcome_lines(outcomes, out.width, out.paint))
    closing = [*failure_lines(outcomes, err.width, err.paint), "", totals(outcomes, seconds)]
    for line in [*closing, *hint_lines(outcomes, home.store)]:
        err.line(line)
    for outcome in outcomes if github.on_github(os.environ) else ():
        if outcome.log is not None:
            for line in github.folded_log(f"log of {outcome.job}", outcome.log):
                err.line(line)
    github.add_summary(os.environ, summary_markdown(outcomes, seconds))
    return exit_code(outcomes)
