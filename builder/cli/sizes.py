"""Sizes as people type them."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[kmgt]i?)?b?", re.IGNORECASE)


class Bytes(click.ParamType):  # type: ignore[type-arg]  # generic in newer releases only
    """A number of bytes, with a unit if need be: 20GB, 512MiB."""

    name = "bytes"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read it."""
        match = _SIZE.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no size such as 20GB or 512MiB", param, ctx)
        return int(float(match["number"]) * _UNITS[(match["unit"] or "").lower()])
