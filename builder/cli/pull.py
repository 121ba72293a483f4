"""`enginefarm pull`."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.artifact import MAX_BYTES
from builder.cli import options, signing
from builder.cli.executor import executor_option
from builder.cli.interrupt import stop_on_signals
from builder.cli.sizes import Bytes
from builder.cli.wishes import PRECISION, VERSION
from builder.compat import Wish
from builder.compat_rules import load_known_bad
from builder.console import open_console
from builder.engine_cache import engines_limit
from builder.facts import load_facts, read_facts
from builder.places import Talk, full_reference, locate
from builder.policy import load_policy
from builder.project import find_home
from builder.pull import Order, Pulled, Puller
from builder.pull_checks import Machine
from builder.report.pulled import pulled_json, pulled_line, pulled_remarks
from builder.report.units import size

if TYPE_CHECKING:
    from builder.build_here import Built


@click.command("pull")
@click.argument("name", metavar="REFERENCE|MODEL")
@click.option("--registry", metavar="PREFIX", help="Where a MODEL is [default: $ENGINEFARM_REGISTRY].")
@click.option("--facts", "facts_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Pull for the machine of this file.")  # fmt: skip
@click.option("--precision", type=PRECISION, help="Only this precision.")
@click.option("--stack", metavar="NAME", help="Only this stack.")
@click.option("--tensorrt", type=VERSION, help="The TensorRT that will load it; 1.x is TensorRT-RTX.")
@click.option("--require-verified", is_flag=True, help="Refuse what was never verified on a GPU.")
@signing.policy
@click.option("--allow-unsigned", is_flag=True, help="Take an engine that nobody has signed. It can run any code here.")
@click.option("--accept-older-index", is_flag=True, help="Take an older list of engines than was seen before.")
@click.option(
    "--max-bytes", type=Bytes(), metavar="N", help=f"Most that an engine may have [default: {size(MAX_BYTES)}]."
)
@click.option("--to", type=click.Path(path_type=Path), metavar="DIR",
              help="Write the engine here, not where applications find it by name.")  # fmt: skip
@click.option("--or-build", is_flag=True, help="Build one here where none fits.")
@executor_option("With --or-build: what runs the stages.")
@click.option("--plain-http", is_flag=True, help="Talk without TLS to another machine.")
@options.as_json
@options.project
def command(  # noqa: PLR0913 - one parameter per option
    *,
    name: str,
    registry: str | None,
    facts_file: Path | None,
    precision: str | None,
    stack: str | None,
    tensorrt: str | None,
    require_verified: bool,
    policy_file: Path | None,
    allow_unsigned: bool,
    accept_older_index: bool,
    max_bytes: int | None,
    to: Path | None,
    or_build: bool,
    executor: str,
    plain_http: bool,
    as_json: bool,
    folder: Path | None,
) -> None:
    """Pull the engine that fits this machine, checked.

    REFERENCE is REGISTRY/PREFIX/MODEL[:TAG][@DIGEST], or oci:FOLDER/MODEL[:TAG] for a folder that `enginefarm mirror`
    wrote. The engine goes to the store and to $ENGINEFARM_HOME/engines/MODEL, as builder.runtime.load("MODEL") expects.
    """
    out, err, home = options.stdout(), options.stderr(), find_home()
    reference = full_reference(name, registry, os.environ)
    order = Order(
        machine=Machine(
            facts=load_facts(facts_file) if facts_file is not None else read_facts(os.environ),
            wish=Wish(precision=precision, stack=stack, tensorrt=tensorrt, require_verified=require_verified),
            known_bad=load_known_bad(),
        ),
        policy=load_policy(policy_file),
        allow_unsigned=allow_unsigned,
        accept_older=accept_older_index,
        max_bytes=MAX_BYTES if max_bytes is None else max_bytes,
        to=to,
    )
    project = options.locate_project(folder) if or_build else None
    cancel, console = threading.Event(), open_console(err, {})
    with stop_on_signals(cancel, console.stopping, err), console:
        located = locate(reference, Talk(cancel=cancel, listen=console.listen, plain_http=plain_http))
        limit = engines_limit(os.environ)
        puller = Puller(home=home, cancel=cancel, listen=console.listen, engines_bytes=limit)
        if project is None:
            done: Pulled | Built = puller.pull(located, order)
        else:
            # a fifth of a second that plain pulls do not pay
            from builder.build_here import Workshop, pull_or_build  # noqa: PLC0415
            from builder.runner import Settings  # noqa: PLC0415

            settings = Settings(executor=executor)
            workshop = Workshop(project=project, home=home, settings=settings, listen=console.listen, cancel=cancel)
            done = pull_or_build(puller, located, order, workshop)
    if as_json:
        options.print_json(pulled_json(done))
        return
    out.line(pulled_line(done))
    for line in pulled_remarks(done):
        err.line(line)
