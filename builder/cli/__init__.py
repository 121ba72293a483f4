"""The command `enginefarm`: a table of commands, each imported only when it runs, so that --help costs nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from builder import __version__

COMMANDS: dict[str, str] = {
    "build": "Build and prove the engines of a target.",
    "plan": "List the jobs of a selection and what is refused.",
    "ls": "List the engines of the store.",
    "show": "Show what an engine is and what was proved.",
    "explain": "Say why two engines have different keys.",
    "export": "Write engines as plain files for trtexec or Triton.",
    "push": "Push engines of the store to a registry.",
    "trtexec": "Print the trtexec commands that do what a job does.",
    "pull": "Pull the engine that fits this machine, checked.",
    "mirror": "Copy a model between registries and folders.",
    "check": "Say which engines fit this machine, and why not.",
    "sign": "Sign an engine, or check who signed it.",
    "keys": "Make, list, replace and revoke keys that sign.",
    "ensure": "Have engines that fit this machine: reuse, pull or rebuild.",
    "verify": "Prove an engine on this machine's GPU.",
    "verify-store": "Check every file of the store against its digest.",
    "doctor": "Check this machine, or explain a failure from a log.",
    "bench": "Time an engine on a GPU against what runs without one.",
    "reproduce": "Rebuild an engine and say how far it is the same.",
    "caches": "List timing caches and write them to files.",
    "images": "Build, check and list the images of stacks.",
    "gc": "Remove what the farm keeps and no longer needs.",
    "schema": "Write the generated schemas and pages, or check them.",
}


class LazyGroup(click.Group):
    """A group that knows the names and summaries of its commands without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return the names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"builder.cli.{cmd_name.replace('-', '_')}")
        command = module.command
        return command if isinstance(command, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the table; click's own version would import every command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="enginefarm")
def cli(debug: bool) -> None:  # noqa: FBT001 - the boundary reads the flag
    """Build TensorRT engines from recipes, prove them, and keep them with a manifest.

    Data goes to standard output, everything else to standard error. Every command that a script would read takes
    --json. Files lie under $ENGINEFARM_HOME (default: enginefarm in $XDG_CACHE_HOME or ~/.cache).
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become messages here and nowhere else."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    try:
        result = cli.main(arguments, prog_name="enginefarm", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the one boundary
        from builder.cli.boundary import report  # noqa: PLC0415 - not needed when nothing fails

        return report(error, arguments)
    return result if isinstance(result, int) else 0


def _open_streams() -> None:
    # Started with a stream closed (`>&-`), the next file opened would get its number, and what is meant for it.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - a device, for good
