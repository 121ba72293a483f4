"""The worker's entry, without starting a process: the kernel's parent-death signal is left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from builder.worker import __main__ as entry
from builder.worker.protocol import Job, Outcome, ProtocolError, StageFailure


def _stage(run: object) -> ModuleType:
    module = ModuleType("builder.worker.toy")
    module.run = run  # type: ignore[attr-defined]
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # so that the entry's own chdir is undone
    monkeypatch.setattr(entry, "_die_with_the_farm", lambda: None)
    monkeypatch.setitem(entry.STAGES, "toy", "toy")
    job = {"protocol": 1, "stage": "toy", "job": "j", "inputs": {}, "params": {}}
    (tmp_path / "job.json").write_text(json.dumps(job))
    return tmp_path


def _run(folder: Path, monkeypatch: pytest.MonkeyPatch, run: object) -> dict[str, object]:
    monkeypatch.setitem(sys.modules, "builder.worker.toy", _stage(run))
    assert entry.main([str(folder)]) == 0
    result: dict[str, object] = json.loads((folder / "result.json").read_text())
    return result


def test_success_says_what_was_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = _run(folder, monkeypatch, lambda job: Outcome({"engine": "out/e"}, {"job": job.job}))
    assert (result["status"], result["error"]) == ("ok", None)
    assert (result["outputs"], result["data"]) == ({"engine": "out/e"}, {"job": "j"})
    assert isinstance(result["max_rss_bytes"], int)
    assert result["max_rss_bytes"] > 1 << 20


def test_an_understood_failure_is_a_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(job: Job) -> Outcome:
        raise StageFailure("profile-invalid", "no", details={"axis": 1})

    result = _run(folder, monkeypatch, run)
    assert result["status"] == "failed"
    assert result["error"] == {
        "reason": "profile-invalid",
        "message": "no",
        "why": "",
        "fix": "",
        "details": {"axis": 1},
    }


def test_running_out_of_memory_is_understood(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(job: Job) -> Outcome:
        raise MemoryError

    error = _run(folder, monkeypatch, run)["error"]
    assert isinstance(error, dict)
    assert error["reason"] == "out-of-memory"


def test_a_bug_leaves_no_result(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(job: Job) -> Outcome:
        raise KeyError("x")

    monkeypatch.setitem(sys.modules, "builder.worker.toy", _stage(run))
    with pytest.raises(KeyError):
        entry.main([str(folder)])
    assert not (folder / "result.json").exists()


def test_an_unknown_stage_is_named(folder: Path) -> None:
    (folder / "job.json").write_text(
        json.dumps({"protocol": 1, "stage": "bake", "job": "j", "inputs": {}, "params": {}})
    )
    with pytest.raises(ProtocolError, match="unknown stage 'bake'"):
        entry.main([str(folder)])
