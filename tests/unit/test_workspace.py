"""The folder of one run: private, swept when its run is dead, never while it lives."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from filelock import FileLock

from builder.project import Home
from builder.workspace import Workspace, sweep_dead_runs

JOB = "tiny-fp16-trtrtx1.7-cuda13-sm80-sm86"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that does not exist yet."""
    return Home(root=tmp_path / "home")


def test_leaves_nothing_behind(home: Home) -> None:
    with Workspace(home, keep=False) as workspace:
        folder = workspace.stage(JOB, "build")
        folder.mkdir(parents=True)
        (folder / "model.plan").write_bytes(b"engine")
    assert list(home.work.iterdir()) == []


def test_leaves_nothing_behind_after_an_error(home: Home) -> None:
    with pytest.raises(ZeroDivisionError), Workspace(home, keep=False):
        raise ZeroDivisionError
    assert list(home.work.iterdir()) == []


def test_sweeps_what_a_dead_run_left(home: Home) -> None:
    dead = home.work / "run-dead" / JOB / "build" / "out"
    dead.mkdir(parents=True)
    (dead / "model.plan").write_bytes(b"half an engine")
    (home.work / "run-dead" / ".lock").touch()
    (home.work / "run-bare").mkdir()
    with Workspace(home, keep=False) as workspace:
        assert list(home.work.iterdir()) == [workspace.folder]


def test_sweeps_without_a_run_of_its_own(home: Home) -> None:
    sweep_dead_runs(home)
    assert not home.root.exists()
    with Workspace(home, keep=False) as living:
        (home.work / "run-dead").mkdir()
        sweep_dead_runs(home)
        assert list(home.work.iterdir()) == [living.folder]
        (home.work / "run-dead").mkdir()
        with FileLock(home.locks / "work.lock"):
            # a run that is beginning does it itself
            sweep_dead_runs(home)
        assert len(list(home.work.iterdir())) == 2


def test_never_sweeps_a_living_run(home: Home) -> None:
    with Workspace(home, keep=False) as first:
        folder = first.stage(JOB, "build")
        folder.mkdir(parents=True)
        with Workspace(home, keep=False) as second:
            assert folder.is_dir()
            assert second.folder != first.folder
        assert folder.is_dir()


def test_a_kept_folder_outlives_the_next_run(home: Home) -> None:
    with Workspace(home, keep=True) as kept:
        folder = kept.stage(JOB, "build")
        folder.mkdir(parents=True)
        kept.done_with(JOB)
    with Workspace(home, keep=False):
        pass
    assert folder.is_dir()


def test_a_finished_job_frees_its_disk_at_once(home: Home) -> None:
    with Workspace(home, keep=False) as workspace:
        done, other = workspace.stage(JOB, "build"), workspace.stage("other", "build")
        done.mkdir(parents=True)
        other.mkdir(parents=True)
        workspace.done_with(JOB)
        assert not done.exists()
        assert other.is_dir()


def test_folder_names_hold_no_blank(home: Home) -> None:
    with Workspace(home, keep=False) as workspace:
        assert workspace.stage("export vocos", "export") == workspace.folder / "export_vocos" / "export"


def test_the_newest_log_outlives_the_run(home: Home) -> None:
    with Workspace(home, keep=False) as workspace:
        log = workspace.folder / "log.txt"
        log.write_text("first", encoding="utf-8")
        workspace.keep_log("export vocos", "export", log)
        log.write_text("second", encoding="utf-8")
        kept = workspace.keep_log("export vocos", "export", log)
    assert kept == home.logs / "export_vocos.export.log"
    assert kept.read_text(encoding="utf-8") == "second"
    assert [path.name for path in home.logs.iterdir()] == [kept.name]


def test_no_log_no_kept_log(home: Home) -> None:
    with Workspace(home, keep=False) as workspace:
        log = workspace.folder / "log.txt"
        assert workspace.keep_log(JOB, "build", log) is None
        log.write_text("older", encoding="utf-8")
        workspace.keep_log(JOB, "build", log)
        log.write_text("", encoding="utf-8")
        assert workspace.keep_log(JOB, "build", log) is None
        assert list(home.logs.iterdir()) == []


def test_log_without_room_hides_no_error(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Path, target: Path) -> None:
        target.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with Workspace(home, keep=False) as workspace:
        log = workspace.folder / "log.txt"
        log.write_text("said", encoding="utf-8")
        assert workspace.keep_log(JOB, "build", log) is None
    assert list(home.logs.iterdir()) == []


def test_a_closed_workspace_has_no_folder(home: Home) -> None:
    with pytest.raises(RuntimeError, match="not open"):
        _ = Workspace(home, keep=False).folder
