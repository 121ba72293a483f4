"""Keys of this machine, for people and for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from builder.keys import KeyPair
from builder.report.table import Column, Paint, table

_COLUMNS = (
    Column(title="NAME"),
    Column(title="KEY ID"),
    Column(title="STATE"),
    Column(title="CREATED", rank=3),
    Column(title="EXPIRES", rank=2),
)


def key_rows(
    found: Sequence[KeyPair], now: datetime, revoked: Mapping[str, str], width: int, paint: Paint
) -> list[str]:
    """Lay out one row per key."""
    rows = [
        (
            one.name,
            one.key_id[:16],
            state(one, now, revoked),
            f"{one.created:%Y-%m-%d}",
            "never" if one.not_after is None else f"{one.not_after:%Y-%m-%d}",
        )
        for one in found
    ]
    return table(_COLUMNS, rows, width, paint)


def key_json(one: KeyPair, now: datetime, revoked: Mapping[str, str]) -> dict[str, Any]:
    """Return all that is known of a key."""
    return {
        "name": one.name,
        "id": one.key_id,
        "state": state(one, now, revoked),
        "created": one.created.isoformat(),
        "not_after": None if one.not_after is None else one.not_after.isoformat(),
        "private": str(one.private),
        "public": str(one.public),
        "revoked": revoked.get(one.key_id),
    }


def policy_lines(one: KeyPair, pem: str) -> list[str]:
    """Write a rule by which a policy trusts a key: a policy by itself, or a part of one."""
    rule = ["[[rules]]", "# globs of the models that it may sign; the first rule that matches decides alone"]
    lines = [*rule, 'models = ["*"]', "", "[[rules.keys]]", f'name = "{one.name}"', f"# id: {one.key_id}"]
    if one.not_after is not None:
        lines.append(f"not_after = {one.not_after:%Y-%m-%dT%H:%M:%SZ}")
    return [*lines, 'pem = """', *pem.strip().splitlines(), '"""']


def state(one: KeyPair, now: datetime, revoked: Mapping[str, str]) -> str:
    """Say what a key is good for now."""
    if one.key_id in revoked:
        return "revoked"
    if one.not_after is not None and now > one.not_after:
        return "expired"
    return "current" if one.current else "replaced"
