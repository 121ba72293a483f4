"""The option that says what runs stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from builder.executors import AUTO, EXECUTORS


def executor_option(says: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make the option; `says`: what is run, and what `auto` means."""
    return click.option(
        "--executor",
        type=click.Choice([AUTO, *sorted(EXECUTORS)]),
        default=AUTO,
        show_default=True,
        envvar="ENGINEFARM_EXECUTOR",
        show_envvar=True,
        help=says,
    )
