"""`enginefarm ls`."""

from __future__ import annotations

import click

from builder.cli import options
from builder.jobs import read_manifest
from builder.project import find_home
from builder.query import list_engines
from builder.report.engine import engine_json, engine_rows
from builder.store import Store


@click.command("ls")
@options.as_json
def command(*, as_json: bool) -> None:
    """List the engines of the store."""
    home = find_home()
    store = Store(home.store)
    engines = [(entry, read_manifest(store, entry)) for entry in list_engines(store)]
    if as_json:
        options.print_json([engine_json(entry, manifest) for entry, manifest in engines])
    elif engines:
        out = options.stdout()
        options.print_lines(engine_rows(engines, out.width, out.paint))
    else:
        options.stderr().line(f"the store {home.store} holds no engine: `enginefarm build --target <name>` makes some")
