"""`enginefarm mirror`."""

from __future__ import annotations

import threading

import click

from builder.artifact import MAX_BYTES
from builder.cli import options
from builder.cli.interrupt import stop_on_signals
from builder.cli.sizes import Bytes
from builder.console import open_console
from builder.mirror import mirror
from builder.places import Talk, locate
from builder.project import find_home
from builder.report.pulled import mirrored_json, mirrored_line, mirrored_remark
from builder.report.units import size


@click.command("mirror")
@click.argument("source")
@click.argument("destination")
@click.option("--accept-older-index", is_flag=True, help="Replace a newer list of engines by an older one.")
@click.option(
    "--max-bytes", type=Bytes(), metavar="N", help=f"Most that an engine may have [default: {size(MAX_BYTES)}]."
)
@click.option("--plain-http", is_flag=True, help="Talk without TLS to another machine.")
@options.as_json
def command(
    *,
    source: str,
    destination: str,
    accept_older_index: bool,
    max_bytes: int | None,
    plain_http: bool,
    as_json: bool,
) -> None:
    """Copy a model between registries and folders.

    Its engines and all that is attached to them are copied bit by bit.

    SOURCE and DESTINATION are each REGISTRY/PREFIX/MODEL[:TAG] or, for machines without a network, a folder as
    oci:FOLDER/MODEL[:TAG], which other OCI tools read too. Signatures come along; they are judged by who pulls.
    """
    cancel, err = threading.Event(), options.stderr()
    console = open_console(err, {})
    with stop_on_signals(cancel, console.stopping, err), console:
        talk = Talk(cancel=cancel, listen=console.listen, plain_http=plain_http)
        ends = locate(source, talk), locate(destination, talk)
        limit = MAX_BYTES if max_bytes is None else max_bytes
        done = mirror(*ends, find_home(), cancel, console.listen, accept_older=accept_older_index, max_bytes=limit)
    if as_json:
        options.print_json(mirrored_json(done))
        return
    options.stdout().line(mirrored_line(done))
    err.line(mirrored_remark(done))
