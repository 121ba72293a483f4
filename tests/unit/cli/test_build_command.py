"""`enginefarm build`, `plan` and `reproduce` around a farm that only pretends."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.cli import main
from builder.errors import EnginefarmError, Reason
from builder.events import JobFinished, JobOutcome, Listener, RunStarted, Status, StepStarted
from builder.plan import Catalogue, Job, Plan, Refusal
from builder.project import Home, Project
from builder.reproduce import Reproduction
from builder.runner import Settings
from tests.engines import STACK, job_id, manifest

JOBS = tuple(
    Job(recipe=recipe, precision="fp16", stack=STACK, target="ampere", sms=("8.0", "8.6"))
    for recipe in ("tiny", "vocos")
)
REFUSAL = Refusal(
    recipe="tiny",
    precision="fp16",
    stack=STACK,
    target="hopper",
    reason=Reason.SM_MISMATCH,
    what=f"stack {STACK} cannot build for SM 9.0 (hopper)",
    fix="stacks for SM 9.0: none yet",
)


def built(job: Job) -> JobOutcome:
    return JobOutcome(job=job.id, status=Status.BUILT, seconds=1.0, manifest=manifest(job.recipe))


def failed(job: Job, reason: Reason = Reason.BUILD_FAILED) -> JobOutcome:
    error = EnginefarmError(reason, "TensorRT gave no engine")
    return JobOutcome(job=job.id, status=Status.FAILED, seconds=1.0, error=error)


class Farm:
    """Stands in for the runner."""

    def __init__(self) -> None:
        self.end: Callable[[Job], JobOutcome] = built
        self.during: Callable[[threading.Event], None] = lambda cancel: None
        self.settings = Settings()

    def run(  # a run's own parameters
        self,
        plan: Plan,
        catalogue: Catalogue,
        project: Project,
        home: Home,
        settings: Settings,
        listen: Listener,
        cancel: threading.Event,
    ) -> tuple[JobOutcome, ...]:
        self.settings = settings
        listen(RunStarted(jobs=tuple(job.id for job in plan.jobs), parallel=settings.parallel))
        listen(StepStarted(subject=plan.jobs[0].id, step="build", expected_s=None))
        self.during(cancel)
        outcomes = tuple(self.end(job) for job in plan.jobs)
        for outcome in outcomes:
            listen(JobFinished(outcome=outcome))
        return outcomes


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """Make a project and a home, plan two jobs and a refusal, and run them by pretending."""
    project = tmp_path / "project"
    for folder in ("recipes", "images", "deep/down"):
        (project / folder).mkdir(parents=True)
    monkeypatch.chdir(project / "deep" / "down")
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    for name in ("ENGINEFARM_PROJECT", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    farm = Farm()
    plan = Plan(jobs=JOBS, refusals=(REFUSAL,))
    for module in ("build", "plan"):
        monkeypatch.setattr(f"builder.cli.{module}.load_catalogue", lambda *_: None)
        monkeypatch.setattr(f"builder.cli.{module}.make_plan", lambda *_: plan)
    monkeypatch.setattr("builder.cli.build.run", farm.run)
    return farm


def test_build(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "--target", "ampere"]) == 0
    captured = capsys.readouterr()
    assert [line.split()[:2] for line in captured.out.splitlines()[1:]] == [[job.id, "built"] for job in JOBS]
    assert "refused[EF-201 sm-mismatch]" in captured.err
    assert "enginefarm export DIR" in captured.err


def test_what_the_plan_left_out_is_not_told(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builder.cli.build.make_plan", lambda *_: Plan(jobs=JOBS, refusals=(), left_out=(REFUSAL,)))
    assert main(["build", "--target", "ampere", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["refusals"] == []
    assert "hopper" not in captured.err
    assert captured.err.splitlines()[-3].startswith("2 built")


def test_json_is_alone_on_standard_output(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    farm.end = failed
    assert main(["build", "--target", "ampere", "--json"]) == 6
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["exit_code"] == 6
    assert [job["error"]["code"] for job in document["jobs"]] == ["EF-409", "EF-409"]
    assert document["refusals"][0]["code"] == "EF-201"
    assert "error[EF-409 build-failed]" in captured.err


def test_failures_of_one_kind_keep_their_exit_code(farm: Farm) -> None:
    farm.end = lambda job: failed(job, Reason.FETCH_FAILED) if job is JOBS[0] else built(job)
    assert main(["build", "--target", "ampere"]) == 5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_the_run_to_stop(
    farm: Farm, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    def during(cancel: threading.Event) -> None:
        os.kill(os.getpid(), number)
        assert cancel.wait(5)

    before = signal.getsignal(number)
    farm.during = during
    farm.end = lambda job: JobOutcome(job=job.id, status=Status.CANCELLED, seconds=0.0)
    assert main(["build", "--target", "ampere"]) == 130
    assert "2 cancelled" in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_second_signal_ends_at_once(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    class EndedError(BaseException):
        pass

    def leave(code: int) -> None:
        raise EndedError(code)

    def during(cancel: threading.Event) -> None:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(EndedError, match="130"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "_exit", leave)
    farm.during = during
    assert main(["build", "--target", "ampere"]) == 0


def test_options_reach_the_runner(farm: Farm) -> None:
    options = ["-j", "3", "--no-install", "--skip-verify", "--timeout", "7.5", "--keep-work"]
    assert main(["build", "--target", "ampere", *options]) == 0
    assert farm.settings == Settings(jobs=3, install=False, verify=False, timeout_s=7.5, keep_work=True)


def test_workflow_gets_a_summary_and_folded_logs(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "build.log"
    log.write_text("line of the log\n", encoding="utf-8")
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    error = EnginefarmError(Reason.BUILD_FAILED, "no engine")
    farm.end = lambda job: JobOutcome(job=job.id, status=Status.FAILED, seconds=1.0, error=error, log=log)
    assert main(["build", "--target", "ampere"]) == 6
    assert f"::group::log of {JOBS[0].id}" in capsys.readouterr().err
    assert JOBS[1].id in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_outside_a_project(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan"]) == 3
    assert "EF-108" in capsys.readouterr().err
    assert main(["plan", "--project", "project"]) == 0


def test_plan(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 0
    out = capsys.readouterr().out
    assert all(job.id in out for job in JOBS)
    assert "refused[EF-201 sm-mismatch]" in out
    assert out.splitlines()[-1] == "2 jobs, 1 refused"


def test_plan_json(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == Plan(jobs=JOBS, refusals=(REFUSAL,)).to_json() + "\n"
    assert captured.err == ""


@pytest.mark.parametrize(("same", "code"), [(True, 0), (False, 8)])
def test_reproduce(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], same: bool, code: int
) -> None:
    verdict = Reproduction(
        job=job_id(),
        level="bitwise" if same else "drifted",
        rebuilds=1,
        same=same,
        engine_sha256="1" * 64,
        rebuilt_sha256=("1" if same else "2") * 64,
        first_difference=None if same else "the lowered ONNX model",
        details=() if same else ("12 bytes differ",),
    )

    def pretend(*arguments: Any) -> Reproduction:
        assert arguments[0] == job_id()
        return verdict

    monkeypatch.setattr("builder.cli.reproduce.reproduce", pretend)
    assert main(["reproduce", job_id()]) == code
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{job_id()}: {verdict.level}"
    assert ("differs first in the lowered ONNX model" in out) is not same
    assert main(["reproduce", job_id(), "--json"]) == code
    assert json.loads(capsys.readouterr().out)["level"] == verdict.level
