"""`enginefarm caches`: timing caches for people and for scripts."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from builder.cli.caches import command
from builder.errors import Reason
from builder.project import Home
from builder.store import Store
from builder.timing_caches import TIMING_CACHE, save_cache
from tests.artifacts import add, refusal
from tests.unit.test_timing_caches import DOCUMENT

CONTENT = b"what was measured"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Make a home that holds a class and an engine with a cache of its own."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "160")
    store = Store(Home(root=tmp_path / "home").store)
    file = tmp_path / "new"
    file.write_bytes(CONTENT)
    save_cache(store, DOCUMENT, (), file)
    add(store, files={"model.plan": b"engine", TIMING_CACHE: b"its own"}, name="tiny-sm90")
    return store


def call(*arguments: str) -> None:
    command.main(list(arguments), standalone_mode=False)


def test_ls(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    call("ls")
    head, of_class, of_engine = capsys.readouterr().out.splitlines()
    assert head.split() == ["SHA-256", "SIZE", "FOR", "ADDED"]
    assert of_class.startswith(f"{DIGEST[:12]}  ")
    assert "fp16 builds with trt8.6-cuda12.0 on NVIDIA H200 with driver 580.159.04" in of_class
    assert "engine tiny-sm90" in of_engine


def test_ls_json(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    call("ls", "--json")
    of_class, of_engine = json.loads(capsys.readouterr().out)
    assert (of_class["sha256"], of_class["size"], of_class["class"]) == (DIGEST, len(CONTENT), DOCUMENT)
    assert (of_engine["name"], of_engine["kind"], of_engine["class"]) == ("tiny-sm90", "engine", None)


def test_export_leaves_links_and_pipes_as_they_are(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    call("export", DIGEST[:6], str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "cache").read_bytes() == CONTENT
    os.mkfifo(tmp_path / "pipe")
    assert refusal(lambda: call("export", DIGEST[:6], str(tmp_path / "pipe"))).reason is Reason.PATH_OCCUPIED
    assert (tmp_path / "pipe").is_fifo()


def test_export_all_of_an_empty_store_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "none"))
    call("export-all", str(tmp_path / "out"))
    assert "holds no timing cache" in capsys.readouterr().err


def test_ls_of_an_empty_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "none"))
    call("ls")
    said = capsys.readouterr()
    assert said.out == ""
    assert "holds no timing cache" in said.err
    call("ls", "--json")
    assert json.loads(capsys.readouterr().out) == []
    assert not (tmp_path / "none").exists()


def test_export(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out.cache"
    call("export", DIGEST[:8], str(target))
    assert target.read_bytes() == CONTENT
    said = capsys.readouterr()
    assert said.out == ""
    assert str(target) in said.err
    assert refusal(lambda: call("export", "0" * 8, str(target))).reason is Reason.NAME_UNKNOWN
