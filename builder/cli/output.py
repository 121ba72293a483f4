"""Where commands write, and --json. Apart from `options`, so that quick commands need not read what recipes are."""

from __future__ import annotations

import json
import os
import sys

import click

from builder.terminal import Terminal, open_terminal

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON for scripts.")


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
