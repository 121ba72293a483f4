"""`enginefarm check`."""

from __future__ import annotations

import os
from pathlib import Path

import click

from builder.check import check, find_subjects
from builder.cli import output
from builder.cli.wishes import PRECISION, VERSION
from builder.compat import Wish
from builder.compat_rules import load_known_bad
from builder.errors import ExitCode
from builder.facts_file import facts_json, load_facts, write_facts
from builder.machine import Facts
from builder.project import find_home
from builder.report.fitness import fitness_json, fitness_lines, machine_line, totals
from builder.store import Store


@click.command("check")
@click.argument("names", nargs=-1, metavar="[ENGINE|MODEL|FILE|FOLDER]...")
@click.option("--facts", "facts_file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Judge for the machine of this file.")  # fmt: skip
@click.option("--write-facts", "write_to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
              help="Write down what this machine is; without names nothing is judged.")  # fmt: skip
@click.option("--precision", type=PRECISION, help="Only this precision counts.")
@click.option("--stack", metavar="NAME", help="Only this stack counts.")
@click.option("--tensorrt", type=VERSION, help="The TensorRT that will load it; 1.x is TensorRT-RTX.")
@click.option("--require-verified", is_flag=True, help="Refuse what was never verified on a GPU.")
@click.option("--allow-host-code", is_flag=True, help="Accept engines that carry code for the host.")
@output.as_json
def command(  # noqa: PLR0913 - one parameter per option
    *,
    names: tuple[str, ...],
    facts_file: Path | None,
    write_to: Path | None,
    precision: str | None,
    stack: str | None,
    tensorrt: str | None,
    require_verified: bool,
    allow_host_code: bool,
    as_json: bool,
) -> int:
    """Say which engines fit this machine, and why not.

    Without a name all engines of the store are judged. Needs no TensorRT, and for a facts file no driver.
    """
    facts = load_facts(facts_file) if facts_file is not None else _here()
    if write_to is not None:
        write_facts(write_to, facts)
        if not names:
            if as_json:
                output.print_lines([facts_json(facts).rstrip()])
            output.stderr().line(f"wrote {write_to}; {machine_line(facts)}")
            return ExitCode.OK
    wish = Wish(
        precision=precision,
        stack=stack,
        tensorrt=tensorrt,
        require_verified=require_verified,
        allow_host_code=allow_host_code,
    )
    home, out, err = find_home(), output.stdout(), output.stderr()
    checked = check(find_subjects(Store(home.store), names), facts, wish, load_known_bad())
    err.line(machine_line(facts))
    if as_json:
        output.print_json(fitness_json(checked, facts))
    elif checked:
        output.print_lines(fitness_lines(checked, out.width, out.paint))
    err.line(totals(checked) if checked else f"the store {home.store} holds no engine: `enginefarm pull` or `build`")
    return ExitCode.OK if any(one.verdict.fits for one in checked) else ExitCode.REFUSED


def _here() -> Facts:
    from builder.facts import read_facts  # noqa: PLC0415 - the driver's library is not needed for a facts file

    return read_facts(os.environ)
