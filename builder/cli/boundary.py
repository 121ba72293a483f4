"""The one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from builder import durable
from builder.crash import write_crash_log
from builder.errors import EnginefarmError, ExitCode, Reason
from builder.project import find_home
from builder.report.failure import error_json, error_lines
from builder.terminal import open_terminal, silence

_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})


def report(error: BaseException, arguments: Sequence[str]) -> int:
    """Tell the user on stderr, a script on stdout when it asked for JSON, and return the exit code."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        return ExitCode.OK  # the reader has seen enough
    if isinstance(error, OSError):
        said = _of_the_disk(error)
        error = said.with_traceback(error.__traceback__) if said is not None else error
    if "--debug" in arguments:
        traceback.print_exception(error)
    wants_json = "--json" in arguments
    if isinstance(error, click.ClickException):
        error.show()
        return _json(wants_json, {"reason": "usage", "exit_code": error.exit_code, "what": error.format_message()})
    if isinstance(error, KeyboardInterrupt | click.Abort):
        open_terminal(sys.stderr, os.environ).line("interrupted")
        return _json(wants_json, {"reason": "interrupted", "exit_code": int(ExitCode.INTERRUPTED)})
    if isinstance(error, EnginefarmError):
        terminal = open_terminal(sys.stderr, os.environ)
        for line in error_lines(error, terminal.width, terminal.paint):
            terminal.line(line)
        return _json(wants_json, error_json(error))
    return _json(wants_json, _bug(error, arguments))


def _of_the_disk(error: OSError) -> EnginefarmError | None:
    """Put into words what a full disk, or a home that is not this user's, did where nobody else has."""
    try:
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout)
    name, said = error.filename or "a file", os.strerror(error.errno or 0)
    if error.errno in durable.FULL:
        return EnginefarmError(Reason.DISK_FULL, f"{name} was not written: {said}", fix="free space where it lies")
    if error.errno == errno.EROFS:
        return EnginefarmError(Reason.STORE_READ_ONLY, f"{name} was not written: {said}")
    ours = isinstance(name, str) and Path(name).is_relative_to(find_home().root)
    if ours and error.errno in _FORBIDDEN:
        return EnginefarmError(Reason.STORE_READ_ONLY, f"{name}: {said}")
    if ours and error.errno == errno.ENOTDIR:
        return EnginefarmError(Reason.STORE_FOREIGN, f"{name}: {said}")
    return None


def _json(wanted: bool, document: dict[str, object]) -> int:  # noqa: FBT001 - private
    if wanted:
        with suppress(OSError):
            open_terminal(sys.stdout, os.environ).line(json.dumps({"error": document}, indent=2, ensure_ascii=False))
    return int(str(document["exit_code"]))


def _bug(error: BaseException, arguments: Sequence[str]) -> dict[str, object]:
    terminal = open_terminal(sys.stderr, os.environ)
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    terminal.line(f"{terminal.paint('error[bug]:', 'red')} unexpected {what}")
    log = _crash_log(error, arguments)
    if log is not None:
        terminal.line(f"  log: {log}")
    terminal.line("  fix: please report it together with the log; --debug shows the traceback here")
    return {
        "reason": "bug",
        "exit_code": int(ExitCode.BUG),
        "what": what,
        "log": None if log is None else str(log),
    }


def _crash_log(error: BaseException, arguments: Sequence[str]) -> Path | None:
    for folder in (find_home().root / "crash", Path(tempfile.gettempdir())):
        with suppress(OSError):
            return write_crash_log(error, arguments, folder)
    return None
