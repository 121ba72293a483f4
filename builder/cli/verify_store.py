"""`enginefarm verify-store`."""

from __future__ import annotations

from collections import Counter

import click

from builder.cli import options
from builder.errors import ExitCode
from builder.project import find_home
from builder.report.failure import labelled
from builder.report.planned import counted
from builder.report.units import size
from builder.store import Store

_NOUNS = {"engine": "engine", "onnx": "ONNX model"}


@click.command("verify-store")
@options.as_json
def command(*, as_json: bool) -> int:
    """Check every file of the store against its digest.

    The exit code is 7 when something is damaged; `enginefarm build` sets it aside and builds it again.
    """
    store = Store(find_home().store)
    problems, entries = store.verify(), store.entries()
    orphans = store.orphans() if not problems else ()
    if as_json:
        found = [
            {"name": problem.entry.name if problem.entry else None, "what": problem.what, "why": problem.why}
            for problem in problems
        ]
        options.print_json(
            {"store": str(store.root), "entries": len(entries), "problems": found, "orphans": len(orphans)}
        )
    else:
        out = options.stdout()
        for problem in problems:
            out.line(f"{out.paint('damaged:', 'red')} {problem.what}")
            for line in labelled("why", problem.why, out.width, out.paint):
                out.line(line)
        kinds = Counter(_NOUNS.get(entry.kind, entry.kind) for entry in entries)
        listed = ", ".join(counted(count, noun) for noun, count in sorted(kinds.items()))
        out.line(f"{store.root}: {listed or 'empty'}; {counted(len(problems), 'problem')}")
        if orphans:
            waste = sum(path.stat().st_size for path in orphans)
            options.stderr().line(f"{counted(len(orphans), 'file')} ({size(waste)}) that no entry needs, harmless")
        if problems:
            options.stderr().line("fix: run `enginefarm build` again: it sets damaged entries aside and rebuilds them")
    return ExitCode.STORE if problems else ExitCode.OK
