"""`enginefarm verify`."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import click

from builder.cli import options
from builder.cli.executor import executor_option
from builder.cli.interrupt import stop_on_signals
from builder.console import open_console
from builder.project import find_home
from builder.runner import Settings
from builder.verify_engine import verify_engine


@click.command("verify")
@click.argument("engine")
@click.option("--no-install", is_flag=True, help="Refuse instead of installing a stack's packages.")
@click.option("--keep", "--keep-work", "keep_work", is_flag=True,
              help="Keep the folders of all stages, and containers that failed.")  # fmt: skip
@executor_option("What runs the stages; auto: as the engine was built.")
@options.as_json
@options.project
def command(
    *, engine: str, no_install: bool, keep_work: bool, executor: str, as_json: bool, folder: Path | None
) -> None:
    """Prove an engine on this machine's GPU.

    ENGINE is a job id, or the first six or more digits of a key or of an engine's SHA-256. It runs at every shape of
    its recipe and is held against the model; its manifest says so from then on. This completes the proof of an engine
    that was built elsewhere, or without a GPU.
    """
    project, home, err = options.locate_project(folder), find_home(), options.stderr()
    settings = Settings(install=not no_install, keep_work=keep_work, executor=executor)
    cancel = threading.Event()
    console = open_console(err, {})
    with stop_on_signals(cancel, console.stopping, err), console:
        verified = verify_engine(engine, project, home, settings, console.listen, cancel)
    if as_json:
        options.print_json(json.loads(verified.manifest.to_json())["proof"])
        return
    proof = verified.manifest.proof
    lines = [f"{verified.job}: verified on {verified.gpu}", f"  {len(proof.cases)} shapes agree with {proof.reference}"]
    if proof.worst is not None:
        worst = proof.worst
        lines.append(
            f"  closest to a limit: {worst['metric']} {worst['value']:.3g} of {worst['limit']:.3g} at {worst['case']}"
        )
    options.print_lines([*lines, f"  {len(proof.outside)} shapes outside the profiles are refused"])
