"""`enginefarm doctor`: exit codes, text and JSON."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from builder.cli import main
from builder.doctor_checks import Check, Verdict

GOOD = Check(name="disk:home", status=Verdict.OK, found="54.9 GiB free in /home/user/.cache/enginefarm")
ABSENT = Check(
    name="gpu", status=Verdict.ABSENT, found="no nvidia-smi on PATH", means="Engines cannot run.", fix="none"
)
BAD = Check(
    name="index", status=Verdict.FAIL, found="https://x: timed out", means="No stacks.", fix="check the network"
)
LOG = "line one\nlibnvinfer.so.8: cannot open shared object file\n"


def machine(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    """Make the machine look like this."""
    monkeypatch.setattr("builder.cli.doctor.check_machine", lambda *_, **__: list(checks))


@pytest.mark.parametrize(("checks", "code"), [((GOOD, ABSENT), 0), ((GOOD, BAD), 5)])
def test_exit_code(checks: tuple[Check, ...], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, *checks)
    assert main(["doctor"]) == code


def test_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine(monkeypatch, GOOD, ABSENT, BAD)
    monkeypatch.setenv("COLUMNS", "60")
    main(["doctor"])
    assert capsys.readouterr().out.splitlines() == [
        "CHECK      STATUS  FOUND",
        "disk:home  ok      54.9 GiB free in",
        "                   /home/user/.cache/enginefarm",
        "gpu        absent  no nvidia-smi on PATH",
        "index      fail    https://x: timed out",
        "",
        "absent[gpu]: Engines cannot run.",
        "  fix: none",
        "",
        "fail[index]: No stacks.",
        "  fix: check the network",
        "",
        "3 checks: 1 ok, 1 fail, 1 absent",
    ]


@pytest.mark.parametrize("width", [80, 140])
def test_text_keeps_its_width(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    long = "a sentence with many words " * 10
    machine(monkeypatch, Check(name="stack:trtrtx1.7-cuda13", status=Verdict.WARN, found=long, means=long, fix=long))
    monkeypatch.setenv("COLUMNS", str(width))
    main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert width - 20 < max(map(len, lines)) <= width


def test_colour_does_not_move_the_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine(monkeypatch, ABSENT)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    main(["doctor"])
    assert "\x1b[2mabsent[gpu]:\x1b[0m Engines cannot run." in capsys.readouterr().out


def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    machine(monkeypatch, GOOD, BAD)
    assert main(["doctor", "--json"]) == 5
    first, second = json.loads(capsys.readouterr().out)["checks"]
    assert first == {"name": "disk:home", "status": "ok", "found": GOOD.found, "means": "", "fix": ""}
    assert second["status"] == "fail"


def test_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "build.log"
    path.write_text(LOG, encoding="utf-8")
    assert main(["doctor", "--log", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"known[library-tensorrt]: TensorRT's libnvinfer.so.8 was not found\n  --> {path}:2\n")
    assert "  why: " in out
    assert "  fix: " in out


def test_log_on_standard_input_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((LOG + "Killed: ENOSPC\n" * 2).encode())))
    assert main(["doctor", "--log", "-", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["findings"]
    assert (first["id"], first["line"], first["details"]) == ("disk-full", 3, {})
    assert first["count"] == 2
    assert (second["id"], second["see"]) == ("library-tensorrt", None)


def test_unknown_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "build.log"
    path.write_text("all went well\n", encoding="utf-8")
    assert main(["doctor", "--log", str(path)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "nothing in" in captured.err
    assert "report" in captured.err
    assert main(["doctor", "--log", str(path), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_no_such_log(tmp_path: Path) -> None:
    assert main(["doctor", "--log", str(tmp_path / "none")]) == 2
