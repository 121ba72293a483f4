"""Values of the options that say what is asked of an engine, checked before anything is read."""

from __future__ import annotations

import re

import click

from builder.compat import PRECISIONS

__all__ = ["PRECISION", "VERSION"]


class _Version(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    name = "version"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take numbers with dots between them."""
        if not re.fullmatch(r"\d{1,4}(\.\d{1,6}){0,4}", value):
            self.fail(f"{value!r} is no version such as 10.9 or 10.9.0.34", param, ctx)
        return value


PRECISION = click.Choice(PRECISIONS)
VERSION = _Version()
