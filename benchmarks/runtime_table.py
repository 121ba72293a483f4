"""The figures of benchmarks/runtime.py as people read them. Python 3.8 or later."""

from __future__ import annotations

import statistics
from typing import Any, Dict, List


def summary(calls: List[float], ends: List[float], base: float) -> Dict[str, float]:
    """Sum up microseconds per call, until it returned and until the GPU was done; `base`: what it is compared with."""
    median = statistics.median(calls)
    return {
        "median_us": round(median, 2),
        "p95_us": round(sorted(calls)[int(len(calls) * 0.95)], 2),
        "over_raw_us": round(median - base, 2),
        "with_wait_us": round(statistics.median(ends), 2),
        "calls": len(calls),
    }


def table(results: List[Dict[str, Any]]) -> str:
    """Write the figures as Markdown."""
    lines: List[str] = []
    for found in results:
        lines += [
            f"## {found['job']}",
            "",
            f"{found['gpu']['name']}, TensorRT {found['tensorrt']}, Python {found['python']}.",
        ]
        lines += [
            f"{len(found['equal'])} comparisons, bit for bit; failed checks: {', '.join(found['failed']) or 'none'}.",
            "",
        ]
        lines += [
            "| per call on the host | median µs | 95 % µs | over raw µs | until the GPU is done µs |",
            "|---|---|---|---|---|",
        ]
        for name, row in found.get("overhead", {}).items():
            lines.append(
                f"| {name} | {row['median_us']} | {row['p95_us']} | {row['over_raw_us']} | {row['with_wait_us']} |"
            )
        lines += ["", "| memory | calls | process grew by KiB | GPU by KiB |", "|---|---|---|---|"]
        for name, row in found.get("memory", {}).items():
            lines.append(f"| {name} | {row['calls']} | {row['rss_growth'] >> 10} | {row['gpu_growth'] >> 10} |")
        lines += ["", "| refused | reason | deserialized | as it should |", "|---|---|---|---|"]
        for row in found.get("fallbacks", []):
            good = "yes" if row["good"] else "NO"
            lines.append(f"| {row['case']} | {row.get('reason', '')} | {row.get('deserialized', '')} | {good} |")
        lines += ["", "| threads | calls | seconds | wrong |", "|---|---|---|---|"]
        for name, row in found.get("threads", {}).items():
            lines.append(f"| {row['threads']}, {name} | {row['calls']} | {row['seconds']} | {row['wrong']} |")
        lines.append("")
    return "\n".join(lines)
