"""Workflow output."""

from __future__ import annotations

from pathlib import Path

from builder.github import add_summary, folded_log, on_github


def test_only_the_documented_value_counts() -> None:
    """GITHUB_ACTIONS is `true` in a workflow."""
    assert on_github({"GITHUB_ACTIONS": "true"})
    assert not on_github({"GITHUB_ACTIONS": "false"})
    assert not on_github({})


def test_log_cannot_give_commands(tmp_path: Path) -> None:
    """Commands are off between two lines with a word that the log cannot know."""
    log = tmp_path / "log.txt"
    log.write_text("::error::pretend\n", encoding="utf-8")
    first, off, line, on, last = folded_log("job build", log)
    assert (first, line, last) == ("::group::job build", "::error::pretend", "::endgroup::")
    word = off.removeprefix("::stop-commands::")
    assert on == f"::{word}::"
    assert folded_log("job build", log)[1] != off


def test_missing_log_is_no_error(tmp_path: Path) -> None:
    """Nothing to fold."""
    assert folded_log("job", tmp_path / "none") == []


def test_summary_is_appended(tmp_path: Path) -> None:
    """Steps share the file."""
    path = tmp_path / "summary.md"
    add_summary({}, ["lost"])
    add_summary({"GITHUB_STEP_SUMMARY": str(path)}, ["one"])
    add_summary({"GITHUB_STEP_SUMMARY": str(path)}, ["two"])
    assert path.read_text(encoding="utf-8") == "one\ntwo\n"


def test_summary_that_cannot_be_written_fails_no_build(tmp_path: Path) -> None:
    """The engines are there; the table is only for people, and they may have odd file names."""
    add_summary({"GITHUB_STEP_SUMMARY": str(tmp_path / "none" / "summary.md")}, ["lost"])
    path = tmp_path / "summary.md"
    add_summary({"GITHUB_STEP_SUMMARY": str(path)}, ["caf\udce9"])
    assert path.read_text(encoding="utf-8") == "caf\\udce9\n"
