"""How a run ended: the table of engines, what failed and why, the exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from builder.console import STATUS_STYLE
from builder.errors import ExitCode
from builder.events import JobOutcome, Status
from builder.plan import Refusal
from builder.report.engine import manifest_json, precision_cell, worst_text
from builder.report.failure import error_json, error_lines
from builder.report.table import Cell, Column, Paint, table
from builder.report.units import duration, short, size

_COLUMNS = (
    Column(title="JOB"),
    Column(title="STATUS", rank=1),
    Column(title="SIZE", rank=2, right=True),
    Column(title="TIME", rank=3, right=True),
    Column(title="PRECISION", rank=5),
    Column(title="WORST ERROR", rank=6),
    Column(title="SHA-256", rank=4),
)


def exit_code(outcomes: Iterable[JobOutcome]) -> ExitCode:
    """Choose the exit code: interrupted, all well, the one that all failures share, or that of failed stages."""
    by_status = Counter(outcome.status for outcome in outcomes)
    if by_status[Status.CANCELLED]:
        return ExitCode.INTERRUPTED
    codes = {outcome.error.exit_code for outcome in outcomes if outcome.error is not None}
    if len(codes) == 1:
        return codes.pop()
    return ExitCode.STAGE_FAILED if codes or by_status[Status.FAILED] else ExitCode.OK


def outcome_lines(outcomes: Sequence[JobOutcome], width: int, paint: Paint) -> list[str]:
    """Lay out one row per job, in the plan's order."""
    return table(_COLUMNS, [_row(outcome) for outcome in outcomes], width, paint)


def failure_lines(outcomes: Sequence[JobOutcome], width: int, paint: Paint) -> list[str]:
    """Write each failed job with its error; jobs that failed for one and the same error share its text."""
    groups: dict[str, list[JobOutcome]] = {}
    for outcome in outcomes:
        if outcome.status is Status.FAILED and outcome.error is not None:
            groups.setdefault(str(outcome.error), []).append(outcome)
    lines: list[str] = []
    for group in groups.values():
        error = group[0].error
        if error is not None:
            lines += ["", *(paint(outcome.job, "bold") for outcome in group), *error_lines(error, width, paint)]
    return lines


def totals(outcomes: Sequence[JobOutcome], seconds: float) -> str:
    """Sum up: `3 built, 1 failed in 12.3 s`."""
    counts = Counter(outcome.status for outcome in outcomes)
    parts = [f"{counts[status]} {status.value}" for status in Status if counts[status]]
    return f"{', '.join(parts)} in {duration(seconds)}"


def hint_lines(outcomes: Sequence[JobOutcome], store: Path) -> list[str]:
    """Say where the engines are and how to get plain files; nothing where there are none."""
    if not any(outcome.manifest is not None for outcome in outcomes):
        return []
    return [f"store: {store}", "plain files for trtexec or Triton: enginefarm export DIR"]


def outcomes_json(outcomes: Sequence[JobOutcome], refusals: Sequence[Refusal], store: Path) -> dict[str, Any]:
    """Return all that is known about a run."""
    return {
        "exit_code": int(exit_code(outcomes)),
        "store": str(store),
        "jobs": [_outcome_json(outcome) for outcome in outcomes],
        "refusals": [refusal.as_json() for refusal in refusals],
    }


def summary_markdown(outcomes: Sequence[JobOutcome], seconds: float) -> list[str]:
    """Write the run as a Markdown table."""
    lines = [f"### enginefarm: {totals(outcomes, seconds)}", "", "| " + " | ".join(c.title for c in _COLUMNS) + " |"]
    lines.append("|" + "|".join("---:" if column.right else "---" for column in _COLUMNS) + "|")
    for outcome in outcomes:
        texts = [cell.text if isinstance(cell, Cell) else cell for cell in _row(outcome)]
        lines.append("| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |")
    failed = [outcome for outcome in outcomes if outcome.status is Status.FAILED and outcome.error is not None]
    for outcome in failed:
        lines += ["", f"**{outcome.job}**", "", "```text", *str(outcome.error).splitlines(), "```"]
    return lines


def _row(outcome: JobOutcome) -> list[Cell | str]:
    status, manifest = Cell(outcome.status.value, STATUS_STYLE[outcome.status]), outcome.manifest
    time = duration(outcome.seconds) if outcome.status is not Status.CANCELLED else ""
    if manifest is None:
        reason = outcome.error.reason.value if outcome.error is not None else None
        why = Cell(reason.slug, "red") if reason is not None and outcome.status is Status.FAILED else ""
        return [outcome.job, status, "", time, "", why, ""]
    return [
        outcome.job,
        status,
        size(manifest.engine.size),
        time,
        precision_cell(manifest),
        worst_text(manifest) or f"proof {manifest.proof.status}",
        short(manifest.engine.sha256),
    ]


def _outcome_json(outcome: JobOutcome) -> dict[str, Any]:
    return {
        "job": outcome.job,
        "status": outcome.status.value,
        "seconds": round(outcome.seconds, 3),
        "stage_seconds": {stage: round(seconds, 3) for stage, seconds in outcome.stage_seconds.items()},
        "engine": None if outcome.manifest is None else manifest_json(outcome.manifest),
        "key": None if outcome.manifest is None else outcome.manifest.key,
        "error": None if outcome.error is None else error_json(outcome.error),
        "log": None if outcome.log is None else str(outcome.log),
    }
