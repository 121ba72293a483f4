"""How fast an engine is, as a page for people and as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from builder.bench_result import BaselineFacts, BenchPart, GpuConditions, Ratio, Series, Timing
from builder.manifest import BuildPart
from builder.report.engine import shapes_text
from builder.report.table import Cell, Column, Paint, table
from builder.report.units import duration, figure, size

_COLUMNS = (
    Column(title="WHAT"),
    Column(title="MEDIAN MS", right=True),
    Column(title="P95", rank=2, right=True),
    Column(title="SPREAD", rank=3, right=True),
    Column(title="GPU MS", rank=4, right=True),
    Column(title="VS ENGINE", rank=1, right=True),
    Column(title="OF ROUNDS", rank=5),
    Column(title="DIFFERS BY", rank=6),
)
_MARKDOWN = ("engine", "shapes", "what", "median ms", "p95 ms", "spread", "GPU median ms", "vs engine", "differs by")
_RIGHT = frozenset(_MARKDOWN[3:7])


def bench_page(job: str, result: BenchPart, build: BuildPart, width: int, paint: Paint) -> list[str]:
    """Write what was measured of an engine, and whether it can be trusted."""
    lines = [paint(job, "bold")]
    for case in result.cases:
        lines += ["", f"{case.name}  {shapes_text(dict(case.shapes))}"]
        lines += table(_COLUMNS, [_row(timing) for timing in case.timings], width, paint)
    lines.append("")
    rows = [
        ("runs", _runs(result)),
        *(("baseline", _baseline(one)) for one in result.baselines),
        *([] if result.baselines else [("baseline", "none: --baseline-python names a Python with PyTorch")]),
        ("engine", _engine(result)),
        ("built", f"in {duration(build.seconds)}, {size(build.max_rss_bytes)} of memory at most"),
        ("gpu", f"{result.gpu.name}, SM {result.gpu.sm}, driver {result.gpu.driver}"),
        ("clocks", _clocks(result.gpu)),
        *(("note", note) for note in result.notes),
    ]
    lines += [f"  {paint(f'{name:<8}', 'cyan')}  {text}" for name, text in rows]
    return [*lines, *_verdict(result, paint)]


def markdown(results: Sequence[tuple[str, BenchPart]]) -> str:
    """Write benches as one Markdown table, a row per engine, case and way of running; noise is said, not compared."""
    lines = [
        "| " + " | ".join(_MARKDOWN) + " |",
        "|" + "|".join("---:" if title in _RIGHT else "---" for title in _MARKDOWN) + "|",
    ]
    for job, result in results:
        for case in result.cases:
            for timing in case.timings:
                cells = [job, shapes_text(dict(case.shapes)), *_texts(result, timing)]
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def noise_text(result: BenchPart) -> str:
    """List all that makes noise of times, one line each; empty if nothing does."""
    single = [
        f"{case.name}, {timing.name}: {why}"
        for case in result.cases
        for timing in case.timings
        for why in timing.noise
        if f"{case.name}: {why}" not in result.noise
    ]
    return "\n".join([*result.noise, *single])


def milliseconds(value: float) -> str:
    """Write a time in milliseconds with four digits: `0.2264`, `12.34`, `1234`."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _row(timing: Timing) -> list[Cell | str]:
    wall, gpu = timing.wall, timing.gpu
    return [
        timing.name,
        milliseconds(wall.median_ms),
        milliseconds(wall.p95_ms),
        Cell(_percent((gpu or wall).spread), "yellow" if timing.noise else ""),
        _median(gpu),
        _times(timing.ratio),
        _range(timing.ratio) if timing.at_least is None else f"at least {timing.at_least:.2f}x",
        _difference(timing),
    ]


def _texts(result: BenchPart, timing: Timing) -> list[str]:
    noisy = timing.noise or result.verdict == "noise"
    takes = f"{_times(timing.ratio)} ({_range(timing.ratio)})" if timing.ratio is not None else "noise" if noisy else ""
    takes += f", at least {timing.at_least:.2f}x" if timing.at_least is not None else ""
    return [
        timing.name,
        milliseconds(timing.wall.median_ms),
        milliseconds(timing.wall.p95_ms),
        _percent((timing.gpu or timing.wall).spread),
        _median(timing.gpu),
        takes,
        _difference(timing),
    ]


def _median(series: Series | None) -> str:
    return "" if series is None else milliseconds(series.median_ms)


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _times(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.median:.2f}x"


def _range(ratio: Ratio | None) -> str:
    return "" if ratio is None else f"{ratio.low:.2f} to {ratio.high:.2f}"


def _difference(timing: Timing) -> str:
    """Say the largest error among the outputs, as measured between the engine and this baseline."""
    if not timing.difference:
        return ""
    if any(metrics.get("mse") is None for metrics in timing.difference.values()):
        return "not comparable"
    mse = max(float(metrics["mse"]) for metrics in timing.difference.values())
    largest = max(float(metrics["max_abs"]) for metrics in timing.difference.values())
    return f"mse {figure(mse)}, max_abs {figure(largest)}"


def _runs(result: BenchPart) -> str:
    shown = [f"{result.iterations} of each in {result.rounds} rounds", f"{result.warmup} before each block"]
    if any(timing.ratio for case in result.cases for timing in case.timings):
        shown.append(f"VS ENGINE is wall time divided by that of {result.cases[0].timings[0].name}")
    return ", ".join(shown)


def _baseline(facts: BaselineFacts) -> str:
    if facts.dropped is not None:
        return f"{facts.name} is left out: {facts.dropped}"
    settings = f" ({', '.join(facts.settings)})" if facts.settings else ""
    return f"{facts.name}: {facts.library} {facts.version}, {facts.precision}, on {facts.device}{settings}"


def _engine(result: BenchPart) -> str:
    cost = result.engine
    parts = [
        f"loads in {duration(cost.load_seconds)} under TensorRT {cost.tensorrt}",
        f"{cost.layers} layers",
        f"on the GPU {size(cost.used_bytes)}, {size(cost.context_bytes)} of it for a context",
        f"on the host {size(cost.max_rss_bytes)} at most",
    ]
    if not cost.graph:
        parts.append(f"no CUDA graph: {cost.no_graph.splitlines()[0] if cost.no_graph else 'unknown'}")
    return "; ".join(parts)


def _clocks(gpu: GpuConditions) -> str:
    if not gpu.round_clocks_mhz:
        return "not told by the driver"
    low, high = min(gpu.round_clocks_mhz), max(gpu.round_clocks_mhz)
    parts = [f"SM {low} MHz in every round" if low == high else f"SM {low} to {high} MHz over the rounds"]
    ends = (gpu.before.sm_clock_mhz, gpu.after.sm_clock_mhz)
    if None not in ends:
        parts.append(f"{ends[0]} before, {ends[1]} after")
    if gpu.temperature_c is not None:
        parts.append(f"{gpu.temperature_c} degrees C at most")
    if gpu.power_w is not None:
        parts.append(f"{gpu.power_w:.0f} W at most")
    return "; ".join([*parts, f"held down by {', '.join(gpu.throttle)}" if gpu.throttle else "not held down"])


def _verdict(result: BenchPart, paint: Paint) -> list[str]:
    if result.verdict == "ok":
        return [f"  {paint('verdict ', 'cyan')}  {paint('ok', 'green')}"]
    lines = [f"  {paint('verdict ', 'cyan')}  {paint('noise', 'red')}: no ratio is claimed"]
    return [*lines, *(f"            {why}" for why in result.noise)]
