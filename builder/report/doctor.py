"""Checks of this machine and explained failures as text for people."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from builder.doctor_checks import Check, Verdict
from builder.errors import Reason
from builder.known_failures import Finding
from builder.report.failure import labelled
from builder.report.planned import counted
from builder.report.table import Cell, Column, Paint, Row, table

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red", Verdict.ABSENT: "dim"}
_COLUMNS = (Column(title="CHECK"), Column(title="STATUS"), Column(title="FOUND"))
_NARROWEST = 30


def check_lines(checks: Sequence[Check], width: int, paint: Paint) -> list[str]:
    """Write all checks as a table, then what is missing with its consequence and remedy, then how many of each."""
    lines = [*table(_COLUMNS, list(_rows(checks, width)), width, paint), ""]
    for check in checks:
        if check.status is not Verdict.OK:
            head = f"{check.status.value}[{check.name}]:"
            lines += _wrapped(paint(head, _STYLES[check.status]), head, check.means or check.found, width)
            lines += [*labelled("fix", check.fix, width, paint), ""]
    counts = Counter(check.status for check in checks)
    summary = ", ".join(f"{counts[verdict]} {verdict.value}" for verdict in Verdict if counts[verdict])
    return [*lines, f"{counted(len(checks), 'check')}: {summary}"]


def finding_lines(name: str, findings: Iterable[Finding], width: int, paint: Paint) -> list[str]:
    """Write each recognised failure: what happened and where, why, and what to do."""
    lines: list[str] = []
    for finding in findings:
        head = f"known[{finding.failure.id}]:"
        lines += _wrapped(paint(head, "yellow"), head, finding.title, width)
        more = f" (and {finding.count - 1} more)" if finding.count > 1 else ""
        lines += [f"  {paint('-->', 'cyan')} {name}:{finding.line}{more}"]
        lines += labelled("text", finding.text, width, paint)
        lines += labelled("why", finding.cause, width, paint)
        lines += labelled("fix", finding.fix, width, paint)
        if finding.failure.see:
            reason = Reason.from_code(finding.failure.see).value
            lines += labelled("see", f"{reason.code} {reason.slug} in docs/errors.md", width, paint)
        lines.append("")
    return lines[:-1]


def finding_json(finding: Finding) -> dict[str, Any]:
    """Return a recognised failure as plain data."""
    return {
        "id": finding.failure.id,
        "title": finding.title,
        "line": finding.line,
        "text": finding.text,
        "count": finding.count,
        "details": dict(finding.details),
        "cause": finding.cause,
        "fix": finding.fix,
        "see": finding.failure.see,
    }


def _rows(checks: Sequence[Check], width: int) -> Iterable[Row]:
    used = max([len(column.title) for column in _COLUMNS[:1]] + [len(check.name) for check in checks])
    room = max(_NARROWEST, width - used - len("STATUS") - 4)
    for check in checks:
        first, *rest = textwrap.wrap(check.found, room, break_on_hyphens=False) or [""]
        yield check.name, Cell(check.status.value, _STYLES[check.status]), first
        yield from (("", "", line) for line in rest)


def _wrapped(head: str, plain: str, text: str, width: int) -> list[str]:
    """Put a text after its head, wrapped; the head counts without its colour."""
    wrapper = textwrap.TextWrapper(
        max(_NARROWEST, width), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    first, *rest = wrapper.wrap(f"{plain} {text}")
    return [first.replace(plain, head, 1), *rest]
