"""What an engine is and what was proved, as a list, as a page and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from builder.candidates import is_rtx
from builder.manifest import Manifest
from builder.report.table import Cell, Column, Paint, table
from builder.report.units import duration, figure, short, size
from builder.store import Entry

METRICS = ("max_abs", "max_rel", "mse", "cosine")
_LIST = (
    Column(title="ENGINE"),
    Column(title="SIZE", rank=1, right=True),
    Column(title="PRECISION", rank=4),
    Column(title="PROOF", rank=5),
    Column(title="KEY", rank=2),
    Column(title="BUILT", rank=3),
)


def engine_rows(engines: Sequence[tuple[Entry, Manifest]], width: int, paint: Paint) -> list[str]:
    """List engines with size, realised precision, proof, key and age."""
    rows = [
        (
            entry.name,
            size(manifest.engine.size),
            precision_cell(manifest),
            manifest.proof.status,
            short(entry.key),
            entry.created[:16].replace("T", " "),
        )
        for entry, manifest in engines
    ]
    return table(_LIST, rows, width, paint)


def engine_json(entry: Entry, manifest: Manifest) -> dict[str, Any]:
    """Return what a script needs to pick an engine."""
    return {
        "job": entry.name,
        "key": entry.key,
        "created": entry.created,
        **manifest_json(manifest),
    }


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """Return the manifest's main figures."""
    return {
        "sha256": manifest.engine.sha256,
        "bytes": manifest.engine.size,
        "recipe": manifest.recipe.name,
        "stack": manifest.stack.name,
        "image": manifest.stack.image,
        "target": manifest.target.name,
        "sms": manifest.target.sms,
        "precision": {"requested": manifest.precision.requested, "realised": manifest.precision.realised},
        "proof": {
            "status": manifest.proof.status,
            "engine_verified": manifest.proof.engine_verified,
            "worst": manifest.proof.worst,
        },
        "reproducibility": manifest.reproducibility.level,
    }


def precision_cell(manifest: Manifest) -> Cell:
    """Say the realised precision; in yellow where it is not what was asked for."""
    part = manifest.precision
    return Cell(part.realised, "" if part.realised == part.requested else "yellow")


def worst_text(manifest: Manifest) -> str:
    """Say the error closest to its limit, such as `max_abs 0.0012 <= 0.01`; empty where nothing was compared."""
    worst = manifest.proof.worst
    if not worst:
        return ""
    comparison = ">=" if worst["metric"] == "cosine" else "<="
    return f"{worst['metric']} {figure_or_dash(worst['value'])} {comparison} {figure_or_dash(worst['limit'])}"


def figure_or_dash(value: object) -> str:
    """Write a metric; cosine keeps its nines, an absent one is a dash."""
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.6f}" if 0.9 < value < 1 else figure(value)


def engine_page(entry: Entry, manifest: Manifest, width: int, paint: Paint) -> list[str]:
    """Write everything a person wants to know about an engine."""
    proof, precision = manifest.proof, manifest.precision
    compute = f"{precision.share:.1%} of the {_basis(precision.share_basis)} in {precision.requested}"
    lines = [paint(entry.name, "bold"), manifest.recipe.description, ""]
    lines += _fields(
        [
            ("engine", f"{size(manifest.engine.size)}  sha256 {manifest.engine.sha256}"),
            ("refit from", ", ".join(f"{one.file}  {size(one.size)}" for one in manifest.engine.weights)),
            ("key", entry.key),
            ("for", f"{manifest.target.name}: SM {', '.join(manifest.target.sms)}"),
            ("loads under", _loader(manifest)),
            ("weights", f"{manifest.recipe.weights}, {manifest.recipe.licence}"),
            ("precision", f"asked {precision.requested}, realised {precision.realised}; {compute}"),
            ("proof", _proof(manifest)),
            ("reference", proof.reference or ""),
            ("worst", _worst(manifest)),
            ("rebuilt", _rebuilt(manifest)),
            ("built", f"in {duration(manifest.build.seconds)}, {size(manifest.build.max_rss_bytes)} of memory at most"),
            ("tuned on", _tuned(manifest)),
            ("timing cache", _timing(manifest)),
            ("speed", _speed(manifest)),
        ],
        paint,
    )
    lines += ["", *_tensors(manifest, width, paint)]
    if proof.cases:
        lines += ["", *_cases(proof.cases, width, paint)]
    if proof.outside:
        lines += ["", paint("Just outside the shape profiles", "bold")]
        lines += [f"  {item['profile']} {shapes_text(item['shapes'])}: {_outside(item)}" for item in proof.outside]
    return lines


def shapes_text(shapes: dict[str, Any]) -> str:
    """Write shapes such as `x 1x3x48x320`."""
    return ", ".join(f"{name} {dimensions(shape)}" for name, shape in shapes.items())


def dimensions(shape: Sequence[int]) -> str:
    """Write a shape such as `1x3x48x320`; a dynamic axis is a question mark."""
    return "x".join("?" if axis == -1 else str(axis) for axis in shape) or "scalar"


def _fields(rows: Sequence[tuple[str, str]], paint: Paint) -> list[str]:
    return [f"  {paint(f'{name:<12}', 'cyan')} {text}" for name, text in rows if text]


def _basis(basis: str) -> str:
    return "multiply-adds" if basis == "macs" else "compute layers"


def _loader(manifest: Manifest) -> str:
    stack = manifest.stack
    family = "TensorRT-RTX" if is_rtx(stack.name, stack.tensorrt) else "TensorRT"
    return f"{family} {stack.tensorrt}, CUDA {stack.cuda} ({stack.name})"


def _proof(manifest: Manifest) -> str:
    proof = manifest.proof
    if proof.status == "skipped":
        return f"none: {proof.reason}"
    where = "on the engine itself" if proof.engine_verified else f"not on the engine itself: {proof.reason}"
    return f"{proof.status}; {where}"


def _rebuilt(manifest: Manifest) -> str:
    level = manifest.reproducibility
    if level.level == "unmeasured":
        return "not compared yet; `enginefarm reproduce` does it"
    return f"{level.level}" if level.detail is None else f"{level.level}: {level.detail}"


def _tuned(manifest: Manifest) -> str:
    tuned = manifest.build.tuned_on
    if tuned is None:
        return ""
    less = "; ran out of memory once" if tuned.retried_with_less_memory else ""
    return f"{tuned.name}, SM {tuned.sm}, driver {tuned.driver}; {duration(tuned.build_seconds)} in the builder{less}"


def _timing(manifest: Manifest) -> str:
    tuned = manifest.build.tuned_on
    if tuned is None:
        return ""
    cache = tuned.timing_cache
    added = "held all that was needed" if cache["unchanged"] else "was added to"
    began = f"{'sealed; ' if cache['sealed'] else ''}{added}" if cache["read"] else "began empty"
    return f"{cache['sha256'][:12]}, {size(cache['bytes'])}; {began}"


def _speed(manifest: Manifest) -> str:
    bench = manifest.bench
    if bench is None:
        return "" if manifest.build.tuned_on is None else "not timed yet; `enginefarm bench` does it"
    timed = bench.cases[0]
    best = min(timed.timings, key=lambda item: item.wall.median_ms if item.role == "engine" else float("inf"))
    return f"{best.wall.median_ms:.3f} ms at {timed.name} ({best.name}) on {bench.gpu.name}: {bench.verdict}"


def _worst(manifest: Manifest) -> str:
    worst = manifest.proof.worst
    return f"{worst_text(manifest)} ({worst['output']}, {worst['case']})" if worst else ""


def _tensors(manifest: Manifest, width: int, paint: Paint) -> list[str]:
    columns = (Column(title="TENSOR"), Column(title="TYPE", rank=1), Column(title="SHAPE"), Column(title="", rank=2))
    rows = [
        (item["name"], item["dtype"], dimensions(item["shape"]), kind)
        for kind, items in (("input", manifest.engine.inputs), ("output", manifest.engine.outputs))
        for item in items
    ]
    return table(columns, rows, width, paint)


def _cases(cases: Sequence[dict[str, Any]], width: int, paint: Paint) -> list[str]:
    columns = (
        Column(title="CASE"),
        Column(title="SHAPES", rank=6),
        Column(title="OUTPUT"),
        *(Column(title=name.upper(), rank=rank, right=True) for rank, name in enumerate(METRICS, start=1)),
        Column(title="", rank=5),
    )
    rows = [
        (
            f"{case['profile']}/{case['point']}",
            shapes_text(case["shapes"]),
            name,
            *(figure_or_dash(result.get(metric)) for metric in METRICS),
            Cell("ok", "green") if result["ok"] else Cell("fails", "red"),
        )
        for case in cases
        for name, result in case["outputs"].items()
    ]
    return table(columns, rows, width, paint)


def _outside(item: dict[str, Any]) -> str:
    graph = {
        "agrees": "the graph would take it",
        "differs": "the graph gives other numbers than the reference",
        "refuses": "the graph refuses it",
    }
    if item["graph"] == "not run":
        return "the engine refuses it"
    return f"the engine's shape profile leaves it out; {graph.get(item['graph'], item['graph'])}"
