"""`enginefarm explain`."""

from __future__ import annotations

import click

from builder.cli import options
from builder.project import find_home
from builder.query import find_key_documents
from builder.report.explained import explained_json, explained_lines
from builder.store import Store


@click.command("explain")
@click.argument("a")
@click.argument("b")
@options.as_json
def command(*, a: str, b: str, as_json: bool) -> None:
    """Say why two engines have different keys.

    A and B are each a job id, the first six or more digits of a key, or the path of a key.json.
    """
    store = Store(find_home().store)
    left, right = find_key_documents(store, a), find_key_documents(store, b)
    engine = explained_json(left.engine, right.engine)
    proof = explained_json(left.proof, right.proof) if left.proof is not None and right.proof is not None else []
    if as_json:
        options.print_json({"a": left.label, "b": right.label, "engine": engine, "proof": proof})
        return
    out = options.stdout()
    lines = [f"A: {left.label}", f"B: {right.label}", ""]
    lines += explained_lines(engine, out.paint) or ["The engines depend on the same things: their keys are equal."]
    if proof:
        lines += ["", "What the proofs depend on besides:", *explained_lines(proof, out.paint)]
    options.print_lines(lines)
