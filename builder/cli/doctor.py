"""`enginefarm doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import click

from builder.cli import options
from builder.doctor import check_machine
from builder.doctor_checks import Verdict
from builder.errors import ExitCode
from builder.known_failures import load_catalogue, recognise
from builder.project import find_home
from builder.report.doctor import check_lines, finding_json, finding_lines
from builder.report.failure import labelled

_UNKNOWN_FIX = """\
look at the first error of the log, not the last: what comes after it often only follows from it
if the cause took you long to find, report the lines around that error together with `enginefarm doctor --json`, so \
that the next one gets an answer here"""


@click.command("doctor")
@click.option("--log", type=click.File("rb"), metavar="FILE", help="Explain what failed in this log; - is stdin.")
@click.option("--offline", is_flag=True, help="Leave out what needs the network.")
@options.as_json
@options.project
def command(*, log: BinaryIO | None, offline: bool, as_json: bool, folder: Path | None) -> int:
    """Check this machine, or explain a failure from a log.

    Without --log: Python, disks, network, clock, GPUs, stacks and Docker. A machine without GPU or Docker is fine for
    building without images. The exit code is 5 when a check failed.

    With --log: the known failures in the file with cause and remedy, the most specific first. The exit code is 3 when
    none is known.
    """
    if log is not None:
        return _explain(log, as_json)
    checks = check_machine(folder, find_home(), offline=offline)
    if as_json:
        options.print_json({"checks": [check.as_json() for check in checks]})
    else:
        out = options.stdout()
        options.print_lines(check_lines(checks, out.width, out.paint))
    failed = any(check.status is Verdict.FAIL for check in checks)
    return ExitCode.ENVIRONMENT if failed else ExitCode.OK


def _explain(log: BinaryIO, as_json: bool) -> int:  # noqa: FBT001 - private
    name = getattr(log, "name", "<stdin>")
    findings = recognise(log, load_catalogue())
    if as_json:
        options.print_json({"log": name, "findings": [finding_json(finding) for finding in findings]})
    elif findings:
        out = options.stdout()
        options.print_lines(finding_lines(name, findings, out.width, out.paint))
    if findings:
        return ExitCode.OK
    err = options.stderr()
    err.line(f"nothing in {name} is known to this version of enginefarm")
    for line in labelled("fix", _UNKNOWN_FIX, err.width, err.paint):
        err.line(line)
    return ExitCode.BAD_INPUT
