"""Where the project and the farm's home are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import EnginefarmError, Reason
from builder.project import find_home, find_project


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENGINEFARM_PROJECT", "ENGINEFARM_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def make_project(root: Path) -> Path:
    """Make what a checkout is known by."""
    (root / "recipes").mkdir(parents=True)
    (root / "images").mkdir()
    return root


def test_found_from_a_folder_inside(tmp_path: Path) -> None:
    root = make_project(tmp_path / "checkout")
    inside = root / "recipes" / "tiny"
    inside.mkdir()
    project = find_project(inside)
    assert (project.root, project.recipes, project.images) == (root, root / "recipes", root / "images")


def test_the_nearest_one_counts(tmp_path: Path) -> None:
    make_project(tmp_path)
    inner = make_project(tmp_path / "inner")
    assert find_project(inner).root == inner


def test_the_explicit_folder_goes_before_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named, other = make_project(tmp_path / "named"), make_project(tmp_path / "other")
    monkeypatch.setenv("ENGINEFARM_PROJECT", str(other))
    assert find_project(tmp_path, named).root == named
    assert find_project(tmp_path).root == other


def test_an_explicit_folder_is_not_searched_upwards(tmp_path: Path) -> None:
    make_project(tmp_path)
    inside = tmp_path / "recipes"
    with pytest.raises(EnginefarmError, match=str(inside)) as caught:
        find_project(tmp_path, inside)
    assert caught.value.reason is Reason.PROJECT_MISSING


def test_recipes_alone_are_no_project(tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    with pytest.raises(EnginefarmError) as caught:
        find_project(tmp_path)
    assert caught.value.reason is Reason.PROJECT_MISSING


def test_home_from_its_variable_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ENGINEFARM_HOME", "farm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    home = find_home()
    assert home.root == tmp_path / "farm"
    assert not home.root.exists()


def test_home_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert find_home().root == Path("/home/somebody/.cache/enginefarm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert find_home().root == Path("/cache/enginefarm")


def test_everything_lies_below_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", "/farm")
    home = find_home()
    parts = [home.store, home.fetch, home.envs, home.work, home.logs, home.locks, home.journal]
    assert [path.name for path in parts] == ["store", "fetch", "envs", "work", "logs", "locks", "journal.jsonl"]
    assert {path.parent for path in parts} == {home.root}
