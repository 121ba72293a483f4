"""How a run ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from builder.errors import EnginefarmError, ExitCode, Reason
from builder.events import JobOutcome, Status
from builder.report.built import (
    exit_code,
    failure_lines,
    hint_lines,
    outcome_lines,
    outcomes_json,
    summary_markdown,
    totals,
)
from tests.engines import job_id, manifest


def plain(text: str, style: str) -> str:
    return text


def good(recipe: str, status: Status = Status.BUILT, precision: str = "fp16") -> JobOutcome:
    return JobOutcome(
        job=job_id(recipe, precision),
        status=status,
        seconds=3.1,
        manifest=manifest(recipe, precision),
        stage_seconds={"build": 0.5219},
    )


def bad(recipe: str, reason: Reason = Reason.BUILD_FAILED, what: str = "TensorRT gave no engine") -> JobOutcome:
    error = EnginefarmError(reason, what, why="(x) Internal error | at node /conv1/Conv")
    error.log = Path("/home/logs/build.log")
    return JobOutcome(job=job_id(recipe), status=Status.FAILED, seconds=0.31, error=error, log=error.log)


def cancelled(recipe: str) -> JobOutcome:
    error = EnginefarmError(Reason.INTERRUPTED, "stopped before it began")
    return JobOutcome(job=job_id(recipe), status=Status.CANCELLED, seconds=0.0, error=error)


RUN = (
    good("tiny", Status.REUSED),
    good("vocos-decoder", precision="fp32"),
    good("ppocrv4-rec", Status.PROVED),
    bad("ppocrv4-det"),
    bad("ppocrv4-cls", Reason.NUMERICS_NONFINITE, "output y holds inf"),
    cancelled("later"),
)


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ((), ExitCode.OK),
        (RUN[:3], ExitCode.OK),
        (RUN[:4], ExitCode.STAGE_FAILED),
        ((bad("a", Reason.FETCH_FAILED), good("b")), ExitCode.ENVIRONMENT),
        ((bad("a", Reason.FETCH_FAILED), bad("b")), ExitCode.STAGE_FAILED),
        ((bad("a", Reason.FETCH_FAILED), cancelled("b")), ExitCode.INTERRUPTED),
    ],
)
def test_exit_code(outcomes: tuple[JobOutcome, ...], code: ExitCode) -> None:
    assert exit_code(outcomes) is code


@pytest.mark.parametrize("width", [80, 140])
def test_table(width: int, snapshot: Callable[[str, str], None]) -> None:
    lines = outcome_lines(RUN, width, plain)
    assert max(map(len, lines)) <= width
    snapshot(f"built-{width}", "\n".join(lines))


def test_failures(snapshot: Callable[[str, str], None]) -> None:
    snapshot("built-failures", "\n".join(failure_lines(RUN, 80, plain)))


def test_one_cause_is_told_once() -> None:
    lines = failure_lines((bad("a"), bad("b")), 80, plain)
    assert sum("error[" in line for line in lines) == 1
    assert lines[1:3] == [job_id("a"), job_id("b")]


def test_totals() -> None:
    assert totals(RUN, 12.34) == "1 built, 1 reused, 1 proved, 2 failed, 1 cancelled in 12.3 s"


def test_hint_only_where_there_are_engines() -> None:
    assert hint_lines(RUN, Path("/store"))[0] == "store: /store"
    assert hint_lines((bad("a"),), Path("/store")) == []


def test_json_is_complete() -> None:
    document = json.loads(json.dumps(outcomes_json(RUN, (), Path("/store"))))
    jobs = {job["job"]: job for job in document["jobs"]}
    assert document["exit_code"] == 130
    assert [job["status"] for job in document["jobs"]] == [outcome.status.value for outcome in RUN]
    assert len(jobs[job_id("vocos-decoder", "fp32")]["engine"]["sha256"]) == 64
    assert jobs[job_id("vocos-decoder", "fp32")]["stage_seconds"] == {"build": 0.522}
    assert jobs[job_id("ppocrv4-det")]["error"]["code"] == "EF-409"
    assert jobs[job_id("ppocrv4-det")]["log"] == "/home/logs/build.log"
    assert jobs[job_id("later")]["engine"] is None


def test_markdown(snapshot: Callable[[str, str], None]) -> None:
    snapshot("summary", "\n".join(summary_markdown(RUN, 12.34)))
