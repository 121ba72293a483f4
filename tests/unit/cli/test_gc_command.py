"""`enginefarm gc`."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.cli import main
from builder.cli.sizes import Bytes
from builder.project import Home
from builder.workspace import STARTED, Workspace
from tests.unit.test_disk import DAY, DIGESTS, HOUR, age, engine, environment, fetched, write


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Make a home with two fetched files and an environment; there is no Docker."""
    home = Home(root=tmp_path / "home")
    monkeypatch.setenv("ENGINEFARM_HOME", str(home.root))
    monkeypatch.setattr("builder.cli.gc.docker_answers", lambda: False)
    fetched(home, DIGESTS[0], 4096, seconds=3 * DAY)
    fetched(home, DIGESTS[1], 8192, seconds=2 * DAY)
    environment(home, seconds=1 * DAY)
    return home


def there(home: Home) -> list[str]:
    """Name the fetched files that are there."""
    return sorted(path.name for path in (home.fetch / "sha256").iterdir())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("512", 512),
        ("512b", 512),
        ("1k", 1000),
        ("1K", 1000),
        ("1kB", 1000),
        ("1KiB", 1024),
        ("1ki", 1024),
        ("512 MiB", 512 * 2**20),
        ("20GB", 20 * 10**9),
        ("  20 gb ", 20 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("0.5T", 5 * 10**11),
        ("2TiB", 2**41),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert Bytes().convert(text, None, None) == count


@pytest.mark.parametrize(
    "text", ["", " ", "GB", "-1", "1e9", "1,5GB", ".5G", "5 parsecs", "1 P", "1Gb/s", "0x10", "nan"]
)
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is no size such as 20GB"):
        Bytes().convert(text, None, None)


@settings(deadline=None)
@given(st.integers(0, 2**40))
def test_bytes_are_exact(count: int) -> None:
    assert Bytes().convert(str(count), None, None) == count


@pytest.mark.parametrize("options", [["--keep-bytes", "much"], ["--keep-days", "-1"], ["--keep-days", "week"]])
def test_wrong_limit_removes_nothing(home: Home, options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", *options]) == 2
    assert options[0] in capsys.readouterr().err
    assert there(home) == DIGESTS[:2]


def test_without_a_limit_leftovers_go(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    part = write(home.fetch / "sha256" / f"{DIGESTS[2]}.part", 4096, seconds=2 * HOUR)
    assert main(["gc"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"   4.0 KiB  broken transfer {part.name}"]
    assert "removed 1 broken transfer: 4.0 KiB" in captured.err
    assert "leftovers only; --keep-bytes or --keep-days removes more" in captured.err
    assert there(home) == DIGESTS[:2]


def test_nothing_to_remove(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--keep-days", "30"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "removed nothing: 0 B" in captured.err
    assert "leftovers only" not in captured.err


def test_oldest_go(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--keep-days", "1.5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        f"   4.0 KiB  fetched file {DIGESTS[0]}",
        f"   8.0 KiB  fetched file {DIGESTS[1]}",
    ]
    assert "removed 2 fetched files: 12.0 KiB" in captured.err
    assert "stay" in captured.err
    assert there(home) == []


def test_size_limits_what_stays(home: Home) -> None:
    assert main(["gc", "--keep-bytes", "1TB"]) == 0
    assert there(home) == DIGESTS[:2]
    assert main(["gc", "--keep-bytes", "0"]) == 0
    assert there(home) == []
    assert list(home.envs.iterdir()) == []


def test_dry_run_says_what_would_go(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gc", "--keep-days", "2.5", "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"   4.0 KiB  fetched file {DIGESTS[0]}"]
    assert "would remove 1 fetched file: 4.0 KiB" in captured.err
    assert there(home) == DIGESTS[:2]


@pytest.mark.parametrize("dry", [True, False])
def test_json(home: Home, capsys: pytest.CaptureFixture[str], *, dry: bool) -> None:
    assert main(["gc", "--keep-days", "2.5", "--json", *(["--dry-run"] if dry else [])]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert captured.err == ""
    used = document["removed"][0].pop("used")
    assert used > 1
    assert document.pop("kept_bytes") > 8192
    assert document == {
        "dry_run": dry,
        "freed_bytes": 4096,
        "in_use": 0,
        "removed": [{"kind": "fetched file", "name": DIGESTS[0], "size": 4096}],
    }
    assert there(home) == (DIGESTS[:2] if dry else DIGESTS[1:2])


def test_run_at_work_is_told_of(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    with Workspace(home, keep=False) as workspace:
        age(workspace.folder / STARTED, 2.5 * DAY)
        assert main(["gc", "--keep-bytes", "0"]) == 0
        captured = capsys.readouterr()
        assert captured.out.splitlines() == [f"   4.0 KiB  fetched file {DIGESTS[0]}"]
        assert "2 things beyond the limit stay because a run uses them" in captured.err
    assert there(home) == DIGESTS[1:2]


def test_what_nothing_names_is_told_of(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    engine(home)
    (home.store / "blobs" / "sha256" / DIGESTS[0]).write_bytes(b"x" * 2048)
    assert main(["gc"]) == 0
    assert "removed files that nothing names any more: " in capsys.readouterr().err


def test_empty_home_stays_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "none"))
    monkeypatch.setattr("builder.cli.gc.docker_answers", lambda: False)
    assert main(["gc", "--keep-bytes", "0"]) == 0
    assert not (tmp_path / "none").exists()


def test_damaged_store_is_an_error(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    engine(home)
    (home.store / "index.json").write_text("{", encoding="utf-8")
    assert main(["gc", "--keep-bytes", "0"]) != 0
    assert "store" in capsys.readouterr().err
    assert there(home) == DIGESTS[:2]
