"""Logs of unexpected errors."""

from __future__ import annotations

from pathlib import Path

from builder import __version__
from builder.crash import write_crash_log


def test_log_holds_what_a_report_needs(tmp_path: Path) -> None:
    """Traceback, versions and command line, each log in a file of its own."""
    paths = []
    for _ in range(2):
        try:
            _ = 1 / 0
        except ZeroDivisionError as error:
            paths.append(write_crash_log(error, ["show", "a b"], tmp_path / "crash"))
    text = paths[0].read_text(encoding="utf-8")
    assert len(set(paths)) == 2
    assert f"enginefarm {__version__}" in text
    assert "command enginefarm show 'a b'" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "_ = 1 / 0" in text
