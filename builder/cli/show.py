"""`enginefarm show`."""

from __future__ import annotations

import json

import click

from builder.cli import options
from builder.jobs import read_manifest
from builder.project import find_home
from builder.query import find_engine
from builder.report.engine import engine_page
from builder.store import Store


@click.command("show")
@click.argument("name")
@options.as_json
def command(*, name: str, as_json: bool) -> None:
    """Show what an engine is and what was proved.

    NAME is a job id, or the first six or more digits of a key or of an engine's SHA-256.
    """
    store = Store(find_home().store)
    entry = find_engine(store, name)
    manifest = read_manifest(store, entry)
    if as_json:
        options.print_json(json.loads(manifest.to_json()))
    else:
        out = options.stdout()
        options.print_lines(engine_page(entry, manifest, out.width, out.paint))
