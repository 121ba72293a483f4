"""`enginefarm schema`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from builder.cli import main
from builder.schemas import generated_files, recipe_page

ROOT = Path(__file__).parents[3]
PAGES = ["docs/errors.md", "docs/recipe.md"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a project of one stack whose generated files are yet to be written."""
    for name in (
        "images/bases.toml",
        "images/steps/Dockerfile.j2",
        "images/steps/check.py",
        "images/export/stack.toml",
        "images/export/requirements.lock",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENGINEFARM_PROJECT", raising=False)
    return tmp_path


def test_generated_files_are_pages_schemas_and_those_of_stacks(project: Path) -> None:
    assert sorted(generated_files(project)) == [
        "builder/resources/manifest.schema.json",
        "builder/resources/recipe.schema.json",
        *PAGES,
        "images/export/Dockerfile",
        "images/export/check.py",
    ]


def test_writes_what_is_missing_or_stale(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "docs").mkdir()
    (project / PAGES[0]).write_text("old\n", encoding="utf-8")
    assert main(["schema"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(generated_files(project))
    for path, text in generated_files(project).items():
        assert (project / path).read_text(encoding="utf-8") == text
    assert main(["schema"]) == 0
    assert capsys.readouterr().out == ""


def test_only_what_differs_is_written(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["schema"])
    capsys.readouterr()
    (project / "images" / "export" / "check.py").write_text("print()\n", encoding="utf-8")
    (project / PAGES[1]).unlink()
    assert main(["schema"]) == 0
    assert sorted(capsys.readouterr().out.splitlines()) == [PAGES[1], "images/export/check.py"]


def test_check_writes_nothing(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--check"]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    for path in generated_files(project):
        assert f"not up to date: {path}; run `enginefarm schema`" in captured.err
    assert not (project / "docs").exists()
    assert main(["schema"]) == 0
    assert main(["schema", "--check"]) == 0


def test_stack_that_cannot_be_read_is_an_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "images" / "bases.toml").unlink()
    assert main(["schema", "--check"]) == 3
    assert "bases.toml is missing" in capsys.readouterr().err


def test_the_page_of_recipes_says_what_numbers_may_be() -> None:
    page = recipe_page()
    assert "| `opset` | integer (13 to 23) | `17` |" in page
    assert "| `seed` | integer (from 0) | `0` |" in page
