"""`enginefarm export`."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli import options
from builder.export_dir import choose_engines, export_engine
from builder.project import find_home
from builder.report.planned import counted
from builder.report.units import short, size
from builder.store import Store


@click.command("export")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--name", "patterns", multiple=True, metavar="GLOB", help="Only these job ids; repeatable.")
@options.as_json
def command(*, folder: Path, patterns: tuple[str, ...], as_json: bool) -> None:
    """Write engines as plain files for trtexec or Triton.

    Every engine becomes DIR/<job id>/ with model.plan, manifest.json and key.json. What is there already is left as it
    is; files of others are never overwritten.
    """
    store = Store(find_home().store)
    exported = [export_engine(store, entry, folder) for entry in choose_engines(store, patterns)]
    if as_json:
        options.print_json(
            [
                {
                    "job": item.job,
                    "folder": str(item.folder.absolute()),
                    "sha256": item.engine_sha256,
                    "bytes": item.engine_bytes,
                    "written": item.written,
                }
                for item in exported
            ]
        )
        return
    for item in exported:
        options.stdout().line(f"{item.folder}  {size(item.engine_bytes)}  {short(item.engine_sha256)}")
    written = sum(item.written for item in exported)
    options.stderr().line(f"{counted(written, 'engine')} written, {len(exported) - written} there already")
