"""Timing caches of the store, for people and for scripts."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from builder.report.table import Column, Paint, table
from builder.report.units import short, size
from builder.timing_caches import CacheFile

_COLUMNS = (
    Column(title="SHA-256"),
    Column(title="SIZE", right=True, rank=2),
    Column(title="FOR"),
    Column(title="ADDED", rank=3),
)


def cache_rows(caches: Sequence[CacheFile], width: int, paint: Paint) -> list[str]:
    """Lay out one row per timing cache."""
    rows = [(short(one.sha256), size(one.blob.size), _purpose(one), _day(one.entry.created)) for one in caches]
    return table(_COLUMNS, rows, width, paint)


def cache_json(one: CacheFile) -> dict[str, Any]:
    """Return all that is known of a timing cache. `class` is null for one that lies beside an engine."""
    document = None if one.document is None else dict(one.document)
    names = {"name": one.entry.name, "kind": one.entry.kind, "created": one.entry.created}
    return {"sha256": one.sha256, "size": one.blob.size, **names, "class": document}


def _purpose(one: CacheFile) -> str:
    if one.document is None:
        return f"engine {one.entry.name}"
    document = one.document
    device = f"{document['device']} with driver {document['driver']}"
    return f"{document['precision']} builds with {document['stack']['name']} on {device}"


def _day(created: str) -> str:
    return f"{datetime.fromisoformat(created).astimezone(timezone.utc):%Y-%m-%d %H:%M}"
