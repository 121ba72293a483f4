"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from builder.cli.output import as_json, print_json, print_lines, stderr, stdout
from builder.project import Project, find_project
from builder.recipe import COMPATIBILITY, Precision

__all__ = [
    "as_json",
    "compat",
    "locate_project",
    "lock",
    "print_json",
    "print_lines",
    "project",
    "selection",
    "stderr",
    "stdout",
]

F = TypeVar("F", bound=Callable[..., Any])

project = click.option(
    "--project",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with recipes/ and images/ [default: $ENGINEFARM_PROJECT, else found from here upwards].",
)
lock = click.option("--lock", metavar="VERSION", help="Take a stack's other lock, such as 8.6.0 of trt8.6-cuda12.0.")
compat = click.option(
    "--compat",
    type=click.Choice(COMPATIBILITY),
    help="Engines for more GPUs than the one they are tuned on, instead of what recipes say.",
)


def selection(command: F) -> F:
    """Add --target, --recipe, --stack and --precision."""
    precisions = click.Choice([precision.value for precision in Precision])
    for option in (
        click.option("--precision", "precisions", multiple=True, type=precisions, help="Only this; repeatable."),
        click.option("--stack", "stacks", multiple=True, metavar="NAME", help="Only this stack; repeatable."),
        click.option("--recipe", "recipes", multiple=True, metavar="GLOB", help="Only these recipes; repeatable."),
        click.option("--target", "targets", multiple=True, metavar="NAME", help="GPU family; repeatable."),
    ):
        command = option(command)
    return command


def locate_project(folder: Path | None) -> Project:
    """Find the project from the folder given or the current one."""
    return find_project(Path.cwd(), folder)
