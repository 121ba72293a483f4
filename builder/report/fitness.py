"""What became of engines on a machine: a table, the reasons below it, and the same as data."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from builder.check import Checked
from builder.compat import Finding
from builder.machine import Facts
from builder.report.table import Cell, Column, Paint, table

_COLUMNS = (
    Column(title="ENGINE"),
    Column(title="FIT"),
    Column(title="GPU", rank=3),
    Column(title="TENSORRT", rank=4),
    Column(title="SM", rank=5),
    Column(title="REASONS", rank=1),
)
_NARROWEST = 40


def fitness_lines(checked: Sequence[Checked], width: int, paint: Paint) -> list[str]:
    """Lay out one row per engine, best first, and say each reason once below."""
    return [*table(_COLUMNS, [_row(one) for one in checked], width, paint), *_reasons(checked, width, paint)]


def machine_line(facts: Facts) -> str:
    """Say in one line what the machine is."""
    parts = [", ".join(dict.fromkeys(f"{gpu.name} (SM {gpu.sm})" for gpu in facts.gpus)) or "no NVIDIA GPU"]
    known = {
        "driver": facts.driver,
        "CUDA": facts.cuda,
        "TensorRT": facts.tensorrt,
        "TensorRT-RTX": facts.tensorrt_rtx,
        "L4T": facts.l4t,
    }
    parts += [f"{name} {value}" for name, value in known.items() if value is not None]
    if facts.tensorrt is None and facts.tensorrt_rtx is None:
        parts.append("no TensorRT found")
    return f"machine: {', '.join(parts)}, {facts.os}/{facts.architecture}"


def totals(checked: Sequence[Checked]) -> str:
    """Sum up: `3 of 14 engines fit`."""
    fitting = sum(one.verdict.fits for one in checked)
    return f"{fitting} of {len(checked)} {'engine fits' if len(checked) == 1 else 'engines fit'}"


def fitness_json(checked: Sequence[Checked], facts: Facts) -> dict[str, Any]:
    """Return all that is known."""
    return {
        "fits": any(one.verdict.fits for one in checked),
        "machine": asdict(facts),
        "engines": [checked_json(one) for one in checked],
    }


def checked_json(one: Checked) -> dict[str, Any]:
    """Return one engine's verdict."""
    candidate, found = one.subject.candidate, one.verdict
    return {
        "engine": one.subject.name,
        "model": one.subject.model or None,
        "key": candidate.key or None,
        "path": str(one.subject.path),
        "fits": found.fits,
        "fit": found.fit.value,
        "gpu": found.gpu,
        "stack": candidate.stack or None,
        "tensorrt": candidate.tensorrt or None,
        "precision": candidate.precision or None,
        "sms": list(candidate.sms),
        "refusals": [finding_json(finding) for finding in found.refusals],
        "warnings": [finding_json(finding) for finding in found.warnings],
    }


def finding_json(finding: Finding) -> dict[str, str]:
    """Return a reason with what it says of this engine and what to do."""
    info = finding.reason.value
    return {"code": info.code, "reason": info.slug, "text": finding.text, "fix": info.fix}


def _row(one: Checked) -> list[Cell | str]:
    candidate, found = one.subject.candidate, one.verdict
    findings = found.refusals or found.warnings
    style = "red" if found.refusals else "yellow" if found.warnings else "green"
    return [
        one.subject.name,
        Cell(found.fit.value if found.fits else "no", style),
        found.gpu or "",
        candidate.tensorrt,
        " ".join(candidate.sms),
        " ".join(_codes(findings)),
    ]


def _codes(findings: Iterable[Finding]) -> list[str]:
    return list(dict.fromkeys(finding.reason.value.code for finding in findings))


def _reasons(checked: Sequence[Checked], width: int, paint: Paint) -> list[str]:
    """Say each reason once with the number of engines it is true of; of an engine that does not fit no warnings."""
    counts: dict[tuple[str, str, str, str], int] = {}
    for one in checked:
        shown = [(finding, "red") for finding in one.verdict.refusals] or [
            (finding, "yellow") for finding in one.verdict.warnings
        ]
        for finding, style in shown:
            info = finding.reason.value
            entry = (info.code, info.slug, finding.text, style)
            counts[entry] = counts.get(entry, 0) + 1
    lines: list[str] = [""] if counts else []
    for (code, slug, text, style), count in sorted(counts.items()):
        several = f" ({count} engines)" if count > 1 else ""
        head, *rest = textwrap.wrap(
            f"{code} {slug}: {text}{several}",
            max(_NARROWEST, width),
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines += [head.replace(f"{code} {slug}", paint(f"{code} {slug}", style), 1), *rest]
    return lines
