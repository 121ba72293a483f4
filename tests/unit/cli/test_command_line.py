"""The command table and the error boundary."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import click
import pytest

from builder import __version__
from builder.cli import COMMANDS, cli, main
from builder.errors import EnginefarmError, Reason


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's store out of it."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    return tmp_path / "home"


def failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `enginefarm ls` fail."""

    @click.command("ls")
    @click.option("--json", "as_json", is_flag=True)
    def command(*, as_json: bool) -> None:
        raise error

    monkeypatch.setattr("builder.cli.ls.command", command)


def test_every_command_is_there_and_says_what_the_table_says() -> None:
    context = click.Context(cli)
    for name, summary in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert command.name == name
        assert (command.help or "").splitlines()[0] == summary


def test_help_lists_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and summary in out for name, summary in COMMANDS.items())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["bild"], ["build", "--targt", "ampere"], ["show"], ["build", "-j", "0"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: enginefarm" in captured.err


def test_build_without_target_lists_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build"]) == 2
    err = capsys.readouterr().err
    assert "--target" in err
    assert "ampere" in err
    assert "hopper" in err


def test_known_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(EnginefarmError(Reason.STORE_CORRUPT, "index unreadable", where="index.json"), monkeypatch)
    assert main(["ls"]) == 7
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[:2] == ["error[EF-501 store-corrupt]: index unreadable", "  --> index.json"]
    assert "Traceback" not in captured.err


def test_known_error_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(EnginefarmError(Reason.STORE_CORRUPT, "index unreadable"), monkeypatch)
    assert main(["ls", "--json"]) == 7
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "EF-501"
    assert captured.err.startswith("error[EF-501")


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(EnginefarmError(Reason.STORE_CORRUPT, "index unreadable"), monkeypatch)
    assert main(["--debug", "ls"]) == 7
    assert "Traceback" in capsys.readouterr().err


def test_bug_leaves_a_log_and_no_wall(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failing(RuntimeError("surprise\nsecond line"), monkeypatch)
    assert main(["ls", "--json"]) == 1
    captured = capsys.readouterr()
    (log,) = (home / "crash").iterdir()
    assert json.loads(captured.out)["error"]["log"] == str(log)
    assert str(log) in captured.err
    assert len(captured.err.splitlines()) == 3
    assert "RuntimeError: surprise" in log.read_text(encoding="utf-8")


def test_bug_on_a_read_only_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    failing(RuntimeError("surprise"), monkeypatch)
    assert main(["ls"]) == 1
    (log,) = tmp_path.glob("*.log")
    assert str(log) in capsys.readouterr().err


def test_full_disk_is_no_bug(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(OSError(errno.ENOSPC, "No space left on device", "standard output"), monkeypatch)
    assert main(["ls", "--json"]) == 5
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["code"] == "EF-305"
    assert "standard output was not written" in captured.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "{home}/locks/work.lock"), "EF-306"),
        (OSError(errno.EROFS, "Read-only file system", "{home}/keys/.lock"), "EF-306"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "{home}/keys"), "EF-502"),
        (PermissionError(errno.EACCES, "Permission denied", "/elsewhere"), None),
    ],
)
def test_home_of_somebody_else_is_no_bug(
    error: OSError, code: str | None, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `sudo enginefarm`: the home is root's from then on."""
    name = str(error.filename).format(home=home)
    failing(type(error)(error.errno, error.strerror, name), monkeypatch)
    main(["ls", "--json"])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"].get("code") == code
    assert name in captured.err


def test_started_without_standard_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["ls", "--json"]) == 0
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        assert stream.name == os.devnull
        stream.close()


def test_interruption(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(KeyboardInterrupt(), monkeypatch)
    assert main(["ls", "--json"]) == 130
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"]["exit_code"] == 130
    assert "interrupted" in captured.err


def test_exit_code_of_a_command_is_that_of_main(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.cli.ls.command", click.Command("ls", callback=lambda: 8))
    assert main(["ls"]) == 8


def test_arguments_come_from_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["enginefarm", "nonsense"])
    assert main() == 2
