"""What is known of images, for people and for scripts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from builder.image_record import ImageRecord
from builder.report.table import Cell, Column, Paint, table
from builder.report.units import short, size
from builder.stacks import Stack

MIB = 1 << 20
_COLUMNS = (
    Column(title="STACK"),
    Column(title="PLATFORM", rank=5),
    Column(title="BASE", rank=3),
    Column(title="SIZE", rank=1, right=True),
    Column(title="BUDGET", rank=2, right=True),
    Column(title="CONFIRMED", rank=6),
    Column(title="DIGEST", rank=4),
)


def built_lines(record: ImageRecord, stack: Stack) -> list[str]:
    """Say what was built: name, digest, size per layer."""
    budget = stack.spec.image.budget_mib * MIB
    lines = [f"{record.tag}", f"  digest  {record.digest}"]
    lines += [f"  base    {'stand-in ' if record.standin else ''}{record.base}"]
    lines += [f"  size    {size(record.compressed_bytes)} compressed, budget {size(budget)}"]
    return [*lines, *(f"  {size(layer.size):>10}  {layer.made_by[:100]}" for layer in record.layers)]


def record_json(record: ImageRecord, stack: Stack) -> dict[str, Any]:
    """Return all that is known of an image."""
    return {
        **record.model_dump(mode="json", exclude={"tag"}),
        "image": record.tag,
        "compressed_bytes": record.compressed_bytes,
        "budget_bytes": stack.spec.image.budget_mib * MIB,
    }


def listed_lines(found: Iterable[tuple[Stack, ImageRecord | None]], width: int, paint: Paint) -> list[str]:
    """Lay out one row per stack and lock."""
    return table(_COLUMNS, [_row(stack, record) for stack, record in found], width, paint)


def listed_json(found: Iterable[tuple[Stack, ImageRecord | None]]) -> list[dict[str, Any]]:
    """Return one object per stack and lock."""
    return [
        {
            "stack": stack.name,
            "lock": stack.variant,
            "platform": stack.spec.platform,
            "base": stack.spec.image.base,
            "budget_mib": stack.spec.image.budget_mib,
            "confirmed": stack.spec.confirmed,
            "image": record_json(record, stack) if record is not None else None,
        }
        for stack, record in found
    ]


def _row(stack: Stack, record: ImageRecord | None) -> list[Cell | str]:
    name = f"{stack.name} --lock {stack.variant}" if stack.variant else stack.name
    budget, confirmed = size(stack.spec.image.budget_mib * MIB), "yes" if stack.spec.confirmed else "no"
    if record is None:
        return [name, stack.spec.platform, stack.spec.image.base, Cell("not built", "dim"), budget, confirmed, ""]
    base = "stand-in" if record.standin else stack.spec.image.base
    fits = record.compressed_bytes <= stack.spec.image.budget_mib * MIB
    weight = Cell(size(record.compressed_bytes), "" if fits else "red")
    return [name, stack.spec.platform, base, weight, budget, confirmed, short(record.digest.removeprefix("sha256:"))]
