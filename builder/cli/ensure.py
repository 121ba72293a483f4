"""`enginefarm ensure`."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import click

from builder.cli import output
from builder.cli.executor import executor_option
from builder.cli.interrupt import stop_on_signals
from builder.cli.wishes import PRECISION, VERSION
from builder.compat import Wish
from builder.ensure import ensure_models, find_asker
from builder.ensure_means import Setup, real_means
from builder.facts_file import load_facts
from builder.report.ensured import ensured_json
from builder.runner import Settings


@click.command("ensure")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--auto", is_flag=True, help="Download and build without asking.")
@click.option("--registry", metavar="PREFIX", help="Where models are published [default: $ENGINEFARM_REGISTRY].")
@click.option("--precision", type=PRECISION, help="This precision [default: that of the last session].")
@click.option("--stack", metavar="NAME", help="Only engines of this stack.")
@click.option("--tensorrt", type=VERSION, help="The TensorRT that will load it; 1.x is TensorRT-RTX.")
@click.option("--policy", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Who may sign what is pulled [default: $ENGINEFARM_POLICY, policy.toml of the home].")  # fmt: skip
@click.option("--facts", "facts_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Have engines for the machine of this file.")  # fmt: skip
@executor_option("What runs the stages of a build.")
@click.option("--plain-http", is_flag=True, help="Talk to another machine without TLS.")
@output.as_json
@click.option("--project", type=click.Path(path_type=Path, file_okay=False),
              help="Folder with recipes/ and images/ [default: found from here upwards].")  # fmt: skip
def command(  # noqa: PLR0913 - one parameter per option
    *,
    models: tuple[str, ...],
    auto: bool,
    registry: str | None,
    precision: str | None,
    stack: str | None,
    tensorrt: str | None,
    policy: Path | None,
    facts_file: Path | None,
    executor: str,
    plain_http: bool,
    as_json: bool,
    project: Path | None,
) -> None:
    """Have engines that fit this machine: reuse, pull or rebuild.

    Says what has changed since the last session, and asks before it downloads or builds. Without anyone to ask and
    without --auto it says what it would do, and fails.
    """
    err, cancel = output.stderr(), threading.Event()
    setup = Setup(
        registry=registry,
        project=project,
        terminal=err,
        cancel=cancel,
        policy=policy,
        facts=load_facts(facts_file) if facts_file is not None else None,
        settings=Settings(executor=executor),
        plain_http=plain_http,
    )
    # questions go to the terminal as all but data does
    ask = None if as_json or find_asker() is None else _ask
    means = real_means(setup, auto=auto, ask=ask, say=err.line)
    wish = Wish(precision=precision, stack=stack, tensorrt=tensorrt)
    with stop_on_signals(cancel, lambda: err.line("stopping"), err):
        done = ensure_models(models, wish, means)
    if as_json:
        output.print_json({"models": [ensured_json(one) for one in done]})
    else:
        output.print_lines([f"{one.model} {one.job} {one.path}" for one in done])


def _ask(question: str) -> bool:
    # while a run is to be stopped by Ctrl-C, a question would not hear of it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(question, err=True)
    finally:
        signal.signal(signal.SIGINT, before)
