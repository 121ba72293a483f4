"""A plan as a table of jobs, with what is refused below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from builder.plan import Plan, Refusal
from builder.report.failure import labelled
from builder.report.table import Cell, Column, Paint, table

_COLUMNS = (
    Column(title="JOB"),
    Column(title="TARGET", rank=1),
    Column(title="SM", rank=2),
    Column(title="PRECISION", rank=3),
    Column(title="STACK", rank=4),
)


def plan_lines(plan: Plan, width: int, paint: Paint) -> list[str]:
    """List the jobs in the plan's order, then the refusals, then how many there are of each.

    What was left out is one line, so that nobody looks for it in vain.
    """
    lines: list[str] = []
    if plan.jobs:
        rows = [(job.id, job.target, ", ".join(job.sms), job.precision, Cell(job.stack, "dim")) for job in plan.jobs]
        lines += [*table(_COLUMNS, rows, width, paint), ""]
    if plan.refusals:
        lines += [*refusal_lines(plan.refusals, width, paint), ""]
    if plan.left_out:
        lines += [paint(_left_out(plan.left_out), "dim"), ""]
    return [*lines, f"{counted(len(plan.jobs), 'job')}, {len(plan.refusals)} refused"]


def refusal_lines(refusals: Iterable[Refusal], width: int, paint: Paint) -> list[str]:
    """Write each different refusal once, with how many combinations it meets."""
    groups = Counter((refusal.reason, refusal.what, refusal.fix) for refusal in refusals)
    lines = []
    for (reason, what, fix), count in groups.items():
        head = paint(f"refused[{reason.value.code} {reason.value.slug}]:", "yellow")
        times = f" ({count} combinations)" if count > 1 else ""
        lines += [f"{head} {what}{times}", *labelled("fix", fix, width, paint)]
    return lines


def _left_out(items: Iterable[Refusal]) -> str:
    counts = Counter(item.precision for item in items)
    listed = ", ".join(f"{precision} ({count})" for precision, count in counts.items())
    return f"left out: {listed}, which recipes have for other targets only"


def counted(count: int, noun: str) -> str:
    """Write `1 job`, `2 jobs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
