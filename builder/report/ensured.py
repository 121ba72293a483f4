"""What was done to have engines that fit, as data."""

from __future__ import annotations

from typing import Any

from builder.ensure import Ensured
from builder.report.fitness import finding_json


def ensured_json(one: Ensured) -> dict[str, Any]:
    """Return what a script needs to load the engine, and what has changed."""
    return {
        "model": one.model,
        "action": one.action.value,
        "job": one.job,
        "key": one.key,
        "path": str(one.path),
        "fit": one.verdict.fit.value,
        "gpu": one.verdict.gpu,
        "warnings": [finding_json(finding) for finding in one.verdict.warnings],
        "since": one.since or None,
        "changes": [{"name": change.name, "before": change.before, "now": change.now} for change in one.changes],
    }
