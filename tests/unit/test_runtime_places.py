"""Pulled engines by name, and the cache that keeps their folder within a size."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from builder.engine_cache import CachedEngine, cached_engines, engines_limit, trim_engines
from builder.errors import Reason
from builder.project import Home
from builder.runtime import load
from builder.runtime.places import engines_folder, locate
from tests.artifacts import refusal
from tests.runtime_fakes import Bench, X, make_bench, refused_by

bench = pytest.fixture(make_bench)
SIZE = 1000
HOUR = 3600.0


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    return Home(root=tmp_path / "home")


def place(home: Home, model: str, age_s: float, version: str = "v1") -> Path:
    """Lay a model out as pull does: a link to a version."""
    folder = home.root / "engines" / ".versions" / model / version
    folder.mkdir(parents=True)
    (folder / "model.plan").write_bytes(b"\0" * SIZE)
    used = time.time() - age_s
    os.utime(folder, (used, used))
    link = home.root / "engines" / model
    link.unlink(missing_ok=True)
    link.symlink_to(Path(".versions", model, version))
    return link


def names(engines: tuple[CachedEngine, ...] | list[CachedEngine]) -> list[str]:
    return [one.model for one in engines]


def trim(home: Home, limit: int) -> list[str]:
    return names(trim_engines(home, limit, threading.Event()))


def test_a_pulled_model_goes_by_its_name(home: Home, bench: Bench) -> None:
    link = place(home, "toy", HOUR)
    for path in bench.folder.iterdir():
        (link / path.name).write_bytes(path.read_bytes())
    before = link.stat().st_mtime
    with load("toy", trust="local") as engine:
        assert engine(X).tolist() == (X * 2).tolist()
    assert link.stat().st_mtime > before


def test_a_name_goes_before_a_folder_of_that_name_here(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("toy") == str((tmp_path / "toy").resolve())
    link = place(home, "toy", HOUR)
    assert locate("toy") == str(link.resolve())
    assert locate("./toy") == str((tmp_path / "toy").resolve())


def test_a_name_that_nobody_pulled(home: Home) -> None:
    place(home, "vocos-decoder", HOUR)
    refused = refused_by(lambda: load("vocos-decode"))
    assert (refused.reason, refused.why) == ("file-missing", "did you mean vocos-decoder?")
    assert refused_by(lambda: load("zzz")).why == "pulled are: vocos-decoder"


@pytest.mark.parametrize("name", ["", ".", "..", ".versions", "../home", "a/../b", "/nowhere/at/all"])
def test_names_do_not_lead_out_of_the_folder(home: Home, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place(home, "toy", HOUR)
    monkeypatch.chdir(home.root)
    if Path(name).exists() and name:
        # a path like any other, as a shell reads it
        assert locate(name) == str(Path(name).resolve())
        return
    assert refused_by(lambda: locate(name)).reason == "file-missing"


def test_a_pull_in_the_middle_of_loading_is_followed(home: Home, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    place(home, "toy", HOUR)
    real = os.utime

    def pull_now(path: str) -> None:
        real(path)
        monkeypatch.setattr(os, "utime", lambda _: None)
        link = place_again()
        for file in bench.folder.iterdir():
            (link / file.name).write_bytes(file.read_bytes())

    def place_again() -> Path:
        folder = home.root / "engines" / ".versions" / "toy" / "v2"
        folder.mkdir()
        link = home.root / "engines" / "toy"
        link.unlink()
        link.symlink_to(Path(".versions", "toy", "v2"))
        return link

    monkeypatch.setattr(os, "utime", pull_now)
    # the first version has no manifest: it is as good as gone
    load("toy", trust="local").close()


def test_the_folder_is_that_of_the_farm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path))
    assert engines_folder() == str(tmp_path / "engines")
    monkeypatch.delenv("ENGINEFARM_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert engines_folder() == str(tmp_path / "cache" / "enginefarm" / "engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert engines_folder() == str(tmp_path / ".cache" / "enginefarm" / "engines")


def test_what_was_used_least_recently_goes_first(home: Home) -> None:
    for model, age in (("old", 3 * HOUR), ("older", 4 * HOUR), ("young", HOUR)):
        place(home, model, age)
    assert names(cached_engines(home)) == ["older", "old", "young"]
    assert trim(home, 3 * SIZE) == []
    locate("older")
    assert trim(home, 2 * SIZE) == ["old"]
    assert sorted(path.name for path in (home.root / "engines" / ".versions").iterdir()) == ["older", "young"]
    assert sorted(path.name for path in (home.root / "engines").glob("[!.]*")) == ["older", "young"]


def test_what_is_being_used_stays_whatever_the_limit(home: Home) -> None:
    place(home, "now", 5.0)
    place(home, "old", HOUR)
    assert trim(home, 0) == ["old"]
    assert names(cached_engines(home)) == ["now"]


def test_all_versions_of_a_model_count_and_go(home: Home) -> None:
    place(home, "toy", 2 * HOUR)
    place(home, "toy", HOUR, "v2")
    assert [one.size for one in cached_engines(home)] == [2 * SIZE]
    assert trim(home, 2 * SIZE - 1) == ["toy"]
    assert list((home.root / "engines" / ".versions").iterdir()) == []


def test_what_others_put_there_stays(home: Home) -> None:
    own = home.root / "engines" / "own"
    own.mkdir(parents=True)
    (own / "model.plan").write_bytes(b"\0" * SIZE)
    assert trim(home, 0) == []
    assert own.is_dir()


def test_two_at_once_remove_each_model_once(home: Home) -> None:
    for index in range(12):
        place(home, f"model{index}", HOUR + index)
    gone: list[str] = []
    threads = [threading.Thread(target=lambda: gone.extend(trim(home, 4 * SIZE))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(gone) == len(set(gone))
    assert len(cached_engines(home)) == 4


def test_a_folder_without_engines(home: Home) -> None:
    assert cached_engines(home) == []
    assert trim(home, 0) == []


@pytest.mark.parametrize(("text", "limit"), [(None, 64 << 30), ("", 64 << 30), ("0.5", 1 << 29), ("8", 8 << 30)])
def test_the_limit_is_in_the_environment(text: str | None, limit: int) -> None:
    assert engines_limit({} if text is None else {"ENGINEFARM_ENGINES_GIB": text}) == limit


@pytest.mark.parametrize("text", ["many", "0", "-1", "nan", "inf"])
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    assert refusal(lambda: engines_limit({"ENGINEFARM_ENGINES_GIB": text})).reason is Reason.POLICY_INVALID
