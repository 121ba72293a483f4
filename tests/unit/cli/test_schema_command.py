"""`enginefarm schema`."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.cli import main


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project of which two files are generated."""
    for folder in ("recipes", "images"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENGINEFARM_PROJECT", raising=False)
    files = {"docs/a.md": "one\n", "b.json": "{}\n"}
    monkeypatch.setattr("builder.cli.schema.generated_files", lambda: files)
    return tmp_path


def test_writes_what_is_missing_or_stale(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "b.json").write_text("old\n", encoding="utf-8")
    assert main(["schema"]) == 0
    assert capsys.readouterr().out.splitlines() == ["docs/a.md", "b.json"]
    assert (project / "docs" / "a.md").read_text(encoding="utf-8") == "one\n"
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == ""


def test_check_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--check"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "not up to date: docs/a.md" in captured.err
    assert not (project / "docs").exists()
    assert main(["schema"]) == 0
    assert main(["schema", "--check"]) == 0
