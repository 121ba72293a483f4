"""`enginefarm caches`."""

from __future__ import annotations

from pathlib import Path

import click

from builder.cli import options
from builder.project import Home, find_home
from builder.report.caches import cache_json, cache_rows
from builder.report.planned import counted
from builder.report.units import size
from builder.store import Store
from builder.timing_caches import export_cache, export_classes, import_classes, list_caches


@click.group("caches")
def command() -> None:
    """List timing caches and write them to files.

    A build on a GPU keeps what TensorRT measured: for later builds on such a GPU, and beside the engine, which can
    then be built again with the same choices: `enginefarm build --sealed DIGEST`.
    """


@command.command("ls")
@options.as_json
def list_all(*, as_json: bool) -> None:
    """List the timing caches of the store."""
    home = find_home()
    caches = list_caches(Store(home.store))
    if as_json:
        options.print_json([cache_json(one) for one in caches])
    elif caches:
        out = options.stdout()
        options.print_lines(cache_rows(caches, out.width, out.paint))
    else:
        options.stderr().line(_none(home))


@command.command("export")
@click.argument("digest")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
def export(*, digest: str, file: Path) -> None:
    """Write a timing cache to FILE.

    It is of the form that trtexec --timingCacheFile takes. DIGEST is the first six or more digits of its SHA-256.
    """
    blob = export_cache(Store(find_home().store), digest, file)
    options.stderr().line(f"wrote {size(blob.size)} to {file}")


@command.command("export-all")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def export_all(*, folder: Path) -> None:
    """Write all timing caches to FOLDER.

    For `caches import` on another machine with such a GPU. Worth it before a rented machine goes back: what took
    TensorRT minutes to measure is some hundred kilobytes.
    """
    home = find_home()
    names = export_classes(Store(home.store), folder)
    if names:
        options.stderr().line(f"wrote {counted(len(names), 'timing cache')} to {folder}")
    else:
        options.stderr().line(_none(home))


@command.command("import")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
def import_all(*, folder: Path) -> None:
    """Take the timing caches of FOLDER.

    As written by `caches export-all`. Builds use them on the same stack and image, GPU model and driver, with the same
    options.
    """
    names = import_classes(Store(find_home().store), folder)
    options.stderr().line(f"took {counted(len(names), 'new timing cache')}")


def _none(home: Home) -> str:
    return f"the store {home.store} holds no timing cache: builds on a GPU make them"
