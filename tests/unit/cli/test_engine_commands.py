"""Commands that read the store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.cli import main
from builder.query import list_engines
from builder.store import Store
from builder.titles import ENGINE
from tests.engines import add_engine, job_id


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Make a home whose store has three engines, two of one job."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    store = Store(tmp_path / "home" / "store")
    add_engine(store, "vocos", "fp32")
    add_engine(store)
    add_engine(store, variant=1)
    return store


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home that does not exist."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_ls(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == [job_id(), job_id(), job_id("vocos", "fp32")]


def test_ls_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["key"] for row in rows] == [entry.key for entry in list_engines(store)]


def test_empty_store_is_no_error_and_stays_absent(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "enginefarm build" in captured.err
    assert main(["ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main(["verify-store"]) == 0
    assert not empty.exists()


def test_show(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    key = list_engines(store)[2].key
    assert main(["show", key[:8]]) == 0
    out = capsys.readouterr().out
    assert out.startswith(job_id("vocos", "fp32"))
    assert key in out
    assert main(["show", key[:8], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == key


def test_show_unknown(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "tiny"]) == 3
    assert "EF-109" in capsys.readouterr().err


def test_explain(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", job_id(), job_id("vocos", "fp32")]) == 0
    out = capsys.readouterr().out
    assert "precision: fp16 -> fp32" in out
    assert "What the proofs depend on besides:" in out


def test_explain_equal(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", job_id(), job_id()]) == 0
    assert "their keys are equal" in capsys.readouterr().out


def test_explain_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = list_engines(store)[:2]
    assert main(["explain", one.key, two.key, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["path"] for row in document["engine"]] == ["worker_sha256"]
    assert [row["path"] for row in document["proof"]] == ["tolerance.max_abs"]


def test_export(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path / "out"), "--name", "tiny-*"]) == 0
    captured = capsys.readouterr()
    assert captured.out.split()[0] == str(tmp_path / "out" / job_id())
    assert "1 engine written, 0 there already" in captured.err
    assert main(["export", str(tmp_path / "out"), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["written"] for row in rows] == [False, True]


def test_verify_store(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-store"]) == 0
    assert "3 engines; 0 problems" in capsys.readouterr().out
    blob = store.files(list_engines(store)[2])[ENGINE].path
    blob.chmod(0o644)
    blob.write_bytes(b"damage")
    assert main(["verify-store"]) == 7
    captured = capsys.readouterr()
    assert f"model.plan of {job_id('vocos', 'fp32')} is damaged" in captured.out
    assert "enginefarm build" in captured.err
    assert main(["verify-store", "--json"]) == 7
    document = json.loads(capsys.readouterr().out)
    assert [problem["name"] for problem in document["problems"]] == [job_id("vocos", "fp32")]
