"""`enginefarm push`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli import options, signing
from builder.cli.interrupt import stop_on_signals
from builder.console import open_console
from builder.project import find_home
from builder.report.planned import counted
from builder.report.units import short, size
from builder.store import Store

if TYPE_CHECKING:
    from builder.publish import Pushed


@click.command("push")
@click.argument("destination", metavar="REGISTRY[/PREFIX]")
@click.argument("patterns", metavar="[NAME-GLOB]...", nargs=-1)
@click.option("--tag", default="latest", show_default=True, help="Version of the models: the tag of their indexes.")
@signing.signer
@click.option("--plain-http", is_flag=True, help="Talk without TLS to registries on other machines, too.")
@options.as_json
def command(  # noqa: PLR0913 - click hands over one argument per option
    *,
    destination: str,
    patterns: tuple[str, ...],
    tag: str,
    key: str | None,
    certificate: Path | None,
    chain: tuple[Path, ...],
    keyless: bool,
    trust_config: Path | None,
    plain_http: bool,
    as_json: bool,
) -> None:
    """Push engines of the store to a registry.

    Every model gets a repository REGISTRY/PREFIX/MODEL, in it an artifact per engine and an index under the tag that
    `enginefarm pull` chooses from. Without a glob all engines are pushed, the newest of each job. Bill of materials,
    provenance and signatures go beside each engine. Pushing again changes nothing; a push that broke off goes on.

    Log-ins are Docker's. Registries on this machine are talked to in plain HTTP, others only with --plain-http.
    """
    from builder.publish import choose_packages, parse_destination, push_engines  # noqa: PLC0415 - slow to import
    from builder.publish_seal import Seal  # noqa: PLC0415

    home, err, cancel = find_home(), options.stderr(), threading.Event()
    place = parse_destination(destination, tag, plain_http=plain_http)
    asked = signing.SignerOptions(
        key=key, certificate=certificate, chain=chain, keyless=keyless, trust_config=trust_config
    )
    signer = signing.make_signer(asked, home, datetime.now(tz=timezone.utc), err)
    store, console = Store(home.store), open_console(err, {})
    packages = choose_packages(store, patterns)
    with stop_on_signals(cancel, console.stopping, err), console:
        seal = Seal(store=store, signer=signer)
        pushed = push_engines(packages, place, cancel=cancel, listen=console.listen, seal=seal)
    if as_json:
        options.print_json([asdict(one) for one in pushed])
    else:
        options.print_lines([line for one in pushed for line in _lines(one)])
        err.line(_summary(pushed))


def _lines(pushed: Pushed) -> list[str]:
    state = "changed" if pushed.changed else "unchanged"
    listed = counted(pushed.listed, "engine")
    head = f"{pushed.reference}@{pushed.digest}  {listed}, serial {pushed.serial}, {state}"
    width = max(len(one.job) for one in pushed.engines)
    return [
        head,
        *(
            f"  {one.job:<{width}}  {size(one.engine_bytes):>9}  {short(one.digest.removeprefix('sha256:'))}"
            f"  {'pushed' if one.new else 'there already'}"
            for one in pushed.engines
        ),
    ]


def _summary(pushed: Sequence[Pushed]) -> str:
    engines = [engine for one in pushed for engine in one.engines]
    new = sum(engine.new for engine in engines)
    return f"{counted(new, 'engine')} pushed, {len(engines) - new} there already"
