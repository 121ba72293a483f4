"""Exit codes of the command: one table; docs/errors.md is generated from it."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the `enginefarm` command. One table; docs/errors.md is generated from it."""

    OK = 0
    BUG = 1
    USAGE = 2
    BAD_INPUT = 3
    REFUSED = 4
    ENVIRONMENT = 5
    STAGE_FAILED = 6
    STORE = 7
    NOT_REPRODUCIBLE = 8
    UNTRUSTED = 9
    INTERRUPTED = 130


EXIT_MEANING: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.BUG: "a bug in enginefarm: the traceback is in the log that the message names",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.BAD_INPUT: "a recipe, a stack file or a name on the command line is wrong",
    ExitCode.REFUSED: "the request is understood but no job can fulfil it, for example an SM that the stack lacks",
    ExitCode.ENVIRONMENT: "this machine lacks something: Python, network, disk space, permission",
    ExitCode.STAGE_FAILED: "at least one job failed; the other jobs are done and kept",
    ExitCode.STORE: "the store holds something that is not what it claims to be",
    ExitCode.NOT_REPRODUCIBLE: "a rebuild drifted: other bytes, or where a GPU can tell, other outputs",
    ExitCode.UNTRUSTED: "an engine is not trusted: unsigned, changed, or signed by somebody the policy does not name",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C; finished jobs are kept",
}
