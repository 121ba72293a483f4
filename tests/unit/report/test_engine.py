"""What people see of an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from builder.report.engine import dimensions, engine_json, engine_page, engine_rows, figure_or_dash, worst_text
from builder.store import Entry
from tests.engines import job_id, manifest


def plain(text: str, style: str) -> str:
    return text


def entry(recipe: str = "tiny", precision: str = "fp16") -> Entry:
    return Entry(
        kind="engine",
        key=manifest(recipe, precision).key,
        name=job_id(recipe, precision),
        digest="sha256:" + "5" * 64,
        size=500,
        created="2026-01-02T03:04:05.000000+00:00",
    )


def skipped() -> dict[str, Any]:
    part = manifest().proof.model_copy(
        update={"status": "skipped", "reason": "verification was left out", "worst": None, "cases": [], "outside": []}
    )
    return {"proof": part}


def test_page(snapshot: Callable[[str, str], None]) -> None:
    snapshot("show", "\n".join(engine_page(entry(), manifest(), 100, plain)))


def test_page_of_an_unproved_engine(snapshot: Callable[[str, str], None]) -> None:
    snapshot("show-skipped", "\n".join(engine_page(entry(), manifest(**skipped()), 80, plain)))


def test_list(snapshot: Callable[[str, str], None]) -> None:
    engines = [(entry(), manifest()), (entry("vocos-decoder", "fp32"), manifest("vocos-decoder", "fp32"))]
    for width in (80, 140):
        snapshot(f"ls-{width}", "\n".join(engine_rows(engines, width, plain)))


def test_mixed_precision_stands_out() -> None:
    mixed = manifest().precision.model_copy(update={"realised": "mixed"})
    rows = engine_rows([(entry(), manifest(precision="fp16"))], 140, lambda text, style: f"{style}:{text}")
    assert "yellow:" not in "\n".join(rows)
    changed = manifest().model_copy(update={"precision": mixed})
    rows = engine_rows([(entry(), changed)], 140, lambda text, style: f"{style}:{text}")
    assert "yellow:mixed" in "\n".join(rows)


def test_worst_error_says_its_limit() -> None:
    assert worst_text(manifest()) == "max_abs 0.0012 <= 0.01"
    cosine = {"case": "a", "output": "y", "metric": "cosine", "value": 0.999998, "limit": 0.9999, "headroom": 0.9}
    proof = manifest().proof.model_copy(update={"worst": cosine})
    assert worst_text(manifest(proof=proof)) == "cosine 0.999998 >= 0.999900"
    assert worst_text(manifest(**skipped())) == ""


def test_json_has_whole_digests() -> None:
    document = engine_json(entry(), manifest())
    assert len(document["sha256"]) == len(document["key"]) == 64
    assert document["precision"] == {"requested": "fp16", "realised": "fp16"}


def test_small_texts() -> None:
    assert dimensions([-1, 3, 48]) == "?x3x48"
    assert dimensions([]) == "scalar"
    assert [figure_or_dash(value) for value in (None, 0.9999991, 1.0, 0.5)] == ["-", "0.999999", "1", "0.5"]
