"""What people see of a process: its command without secrets, the end of its log."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import process


@pytest.mark.parametrize(
    ("argv", "shown"),
    [
        (["pip", "install", "-r", "requirements.lock"], "pip install -r requirements.lock"),
        (["x", "--password", "hunter2", "next"], "x --password *** next"),
        (["x", "--password=hunter2"], "x --password=***"),
        (["x", "--hf-token", "hunter2"], "x --hf-token ***"),
        (["x", "--hf_token=hunter2"], "x --hf_token=***"),
        (["x", "-registry-token", "hunter2"], "x -registry-token ***"),
        (["x", "--api-key", "hunter2", "--api_key", "hunter2"], "x --api-key *** --api_key ***"),
        (["x", "--PASSWORD", "hunter2"], "x --PASSWORD ***"),
        (["x", "--password", "--token", "hunter2"], "x --password *** ***"),
        (["x", "token=hunter2"], "x token=***"),
        (["x", "HF_TOKEN=hunter2"], "x HF_TOKEN=***"),
        (["x", "https://host/path?token=hunter2&page=2"], "x https://host/path?token=***&page=2"),
        (["x", "https://me:hunter2@host/path"], "x https://***@host/path"),
        (["x", "https://me:hunter@2@host/path"], "x https://***@host/path"),
        (["x", "--index-url=https://me:hunter2@host/simple"], "x --index-url=https://***@host/simple"),
        (["x", "--secret=one\nhunter2"], "x --secret=***"),
        (["x", "mail@host", "https://host/a@b"], "x mail@host https://host/a@b"),
    ],
)
def test_secrets_are_masked(argv: list[str], shown: str) -> None:
    assert process.show(argv) == shown


def test_outcome_shows_its_command_masked(tmp_path: Path) -> None:
    outcome = process.Outcome(
        argv=("x", "--password", "hunter2"),
        exit_code=0,
        signal=None,
        duration_s=0.1,
        log=tmp_path / "log",
        max_rss_bytes=1,
        timed_out=False,
        cancelled=False,
    )
    assert outcome.shown() == "x --password ***"


def test_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert process.tail(log) == ""
    log.write_text("".join(f"line {number}\n" for number in range(50_000)) + "\n\n")
    assert process.tail(log, lines=2) == "line 49998\nline 49999"
    log.write_bytes(b"\xff broken \xfe\nend")
    assert process.tail(log) == "\ufffd broken \ufffd\nend"
