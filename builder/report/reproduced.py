"""How a reproduction came out, for people."""

from __future__ import annotations

from builder.levels import Rebuild, Reproduction
from builder.report.units import duration, short


def reproduction_lines(found: Reproduction) -> list[str]:
    """Write the level, both digests, what differs first, and one line per rebuild where there are several."""
    lines = [f"{found.job}: {found.level}{_how(found)}"]
    lines += [f"  engine   {found.engine_sha256}", f"  rebuilt  {found.rebuilt_sha256}"]
    if found.first_difference is not None:
        lines.append(f"  differs first in {found.first_difference}")
    lines += [f"  {detail}" for detail in found.details]
    if found.repeats is False:
        lines.append("  the engine itself gives other outputs each time it runs: no rebuild can do better")
    if len(found.measured) > 1:
        lines += [f"  rebuild {index}: {_rebuild(one)}" for index, one in enumerate(found.measured, 1)]
    return lines


def _how(found: Reproduction) -> str:
    count = f" ({found.rebuilds} rebuilds" if found.rebuilds > 1 else " (one rebuild"
    if found.cold:
        return f"{count} without a timing cache; not written into the manifest)"
    if found.timing_cache is not None:
        return f"{count} from timing cache {short(found.timing_cache)})"
    return f"{count})" if found.rebuilds > 1 else ""


def _rebuild(one: Rebuild) -> str:
    parts = [one.level, f"built in {duration(one.build_seconds)}", f"sha256 {short(one.sha256)}"]
    if one.difference is not None:
        parts.append(f"{one.difference.count} bytes differ")
    return ", ".join(parts)
