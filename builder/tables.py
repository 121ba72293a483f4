"""Reads the package's own tables: data in TOML, which is written here and so needs no checks of its form."""

from __future__ import annotations

import sys
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def load_table(name: str) -> dict[str, Any]:
    """Read a file of builder/resources, such as `targets.toml`."""
    data: dict[str, Any] = tomllib.loads((resources.files("builder") / "resources" / name).read_text(encoding="utf-8"))
    return data
