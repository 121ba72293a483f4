"""`enginefarm images`, as far as no Docker Engine is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.cli import main

ROOT = Path(__file__).parents[3]


def test_ls_says_that_nothing_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("builder.cli.images.changed_stacks", lambda *_: set())
    assert main(["images", "ls", "--changed-since", "HEAD", "--project", str(ROOT)]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "no stack has changed since HEAD\n")
