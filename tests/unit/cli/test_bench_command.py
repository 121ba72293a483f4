"""`enginefarm bench` around a bench that only pretends."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from builder.bench import Benched, BenchSettings
from builder.bench_result import BenchPart
from builder.cli import main
from builder.errors import ExitCode
from builder.events import Listener
from builder.project import Home, Project
from tests.benches import result
from tests.engines import job_id, manifest

ROOT = Path(__file__).parents[3]


class Farm:
    """Stands in for the bench."""

    def __init__(self) -> None:
        self.found: BenchPart = result()
        self.settings = BenchSettings()
        self.name = ""

    def bench(
        self,
        name: str,
        project: Project,
        home: Home,
        settings: BenchSettings,
        listen: Listener,
        cancel: threading.Event,
    ) -> Benched:
        self.name, self.settings = name, settings
        return Benched(job=job_id(), manifest=manifest(), result=self.found)


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Farm:
    """Pretend, in a project."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ENGINEFARM_PROJECT", str(ROOT))
    monkeypatch.delenv("ENGINEFARM_BASELINE_PYTHON", raising=False)
    monkeypatch.delenv("ENGINEFARM_EXECUTOR", raising=False)
    made = Farm()
    monkeypatch.setattr("builder.cli.bench.bench", made.bench)
    return made


def noise() -> BenchPart:
    return result(verdict="noise", noise=["the GPU was throttled: hw_slowdown"])


def test_page(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tiny"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(job_id())
    assert "engine (graph)" in out
    assert farm.name == "tiny"
    assert farm.settings == BenchSettings()


def test_options(farm: Farm) -> None:
    arguments = [
        "--baseline-python",
        sys.executable,
        "--rounds",
        "7",
        "--all-shapes",
        "--executor",
        "local",
        "--baseline",
        "eager",
    ]
    assert main(["bench", "tiny", *arguments, "--no-install", "--keep", "--timeout", "60"]) == 0
    assert farm.settings == BenchSettings(
        baseline_python=Path(sys.executable),
        baselines=("eager",),
        rounds=7,
        all_shapes=True,
        executor="local",
        install=False,
        keep_work=True,
        timeout_s=60.0,
    )


def test_python_from_the_environment_by_name(farm: Farm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python-with-torch"
    program.write_text("", encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ENGINEFARM_BASELINE_PYTHON", "python-with-torch")
    assert main(["bench", "tiny"]) == 0
    assert farm.settings.baseline_python == program


def test_python_that_is_not_there(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tiny", "--baseline-python", "/nowhere/python"]) == 2
    assert "/nowhere/python is no program" in capsys.readouterr().err


def test_one_round_says_nothing_of_drift(farm: Farm) -> None:
    assert main(["bench", "tiny", "--rounds", "1"]) == 2


def test_json(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "tiny", "--json"]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["job"] == job_id()
    assert BenchPart.model_validate(document["bench"]) == farm.found


@pytest.mark.parametrize(("strict", "code"), [(False, ExitCode.OK), (True, ExitCode.STAGE_FAILED)])
def test_noise(farm: Farm, capsys: pytest.CaptureFixture[str], code: int, *, strict: bool) -> None:
    farm.found = noise()
    assert main(["bench", "tiny", *(["--strict"] if strict else [])]) == code
    captured = capsys.readouterr()
    assert "noise: no ratio is claimed" in captured.out
    assert ("EF-421" in captured.err) is strict


def test_json_of_noise_stays_one_document(farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    farm.found = noise()
    assert main(["bench", "tiny", "--json", "--strict"]) == ExitCode.STAGE_FAILED
    captured = capsys.readouterr()
    assert json.loads(captured.out)["bench"]["verdict"] == "noise"
    assert "the GPU was throttled: hw_slowdown" in captured.err
