"""Logs of unexpected errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import __version__
from builder.crash import write_crash_log


def test_log_holds_what_a_report_needs(tmp_path: Path) -> None:
    """Traceback, versions and command line, each log in a file of its own."""
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 / 0
    paths = [write_crash_log(caught.value, ["show", "a b"], tmp_path / "crash") for _ in range(2)]
    text = paths[0].read_text(encoding="utf-8")
    assert len(set(paths)) == 2
    assert f"enginefarm {__version__}" in text
    assert "command enginefarm show 'a b'" in text
    assert "ZeroDivisionError: division by zero" in text
    assert "_ = 1 / 0" in text
