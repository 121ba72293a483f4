"""Options that several commands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from builder.project import Project, find_project
from builder.recipe import COMPATIBILITY, Precision
from builder.terminal import Terminal, open_terminal

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")
project = click.option(
    "--project",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder with recipes/ and images/ [default: found from here upwards].",
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


def stdout() -> Terminal:
    """Where data goes."""
    return open_terminal(sys.stdout, os.environ)


def stderr() -> Terminal:
    """Where everything else goes."""
    return open_terminal(sys.stderr, os.environ)


def print_lines(lines: list[str]) -> None:
    """Print data for people."""
    stdout().line("\n".join(lines))


def print_json(document: object) -> None:
    """Print data for scripts."""
    stdout().line(json.dumps(document, indent=2, ensure_ascii=False))
