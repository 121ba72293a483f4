"""`enginefarm plan`."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli import options
from builder.plan import make_plan
from builder.report.planned import plan_lines
from builder.selection import Selection, load_catalogue


@click.command("plan")
@options.selection
@options.lock
@options.compat
@options.as_json
@options.project
def command(  # noqa: PLR0913 - one parameter per option
    *,
    targets: tuple[str, ...],
    recipes: tuple[str, ...],
    stacks: tuple[str, ...],
    precisions: tuple[str, ...],
    lock: str | None,
    compat: str | None,
    as_json: bool,
    folder: Path | None,
) -> None:
    """List the jobs of a selection and what is refused.

    Without options: every recipe, every precision, every target, the default stacks. Nothing is built or fetched.
    """
    selection = Selection(targets=targets, recipes=recipes, stacks=stacks, lock=lock)
    plan = make_plan(load_catalogue(options.locate_project(folder), selection), precisions, compat)
    if as_json:
        options.stdout().line(plan.to_json())
    else:
        out = options.stdout()
        options.print_lines(plan_lines(plan, out.width, out.paint))
