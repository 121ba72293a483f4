"""An image's tag: another one for each input that counts, the same one for all that does not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import image_inputs as module
from builder.bases import Bases
from builder.image_inputs import ImageInputs, context_files, image_inputs
from builder.stacks import Stack
from tests.unit.test_key import export_stack

FILES = {
    "Dockerfile": "FROM x\n",
    "check.py": "print()\n",
    "prune.txt": "*/tests\n",
    "stack.toml": 'name = "export"\n',
    "requirements.lock": "a==1\n",
    "requirements.in": "a\n",
    "README.md": "Notes.\n",
}
BASES = Bases(source_date_epoch=1, bases={}, drop=())
DIGEST = f"sha256:{'0' * 64}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make a stack's folder."""
    folder = tmp_path / "images" / "export"
    folder.mkdir(parents=True)
    (folder.parent / "steps").mkdir(exist_ok=True)
    (folder.parent / "steps" / "pip.lock").write_text("pip==1 --hash=sha256:00\n", encoding="utf-8")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def stack(folder: Path, variant: str | None = None, **changes: Any) -> Stack:
    """Make the stack of a folder."""
    spec = export_stack().spec.model_copy(update=changes)
    return Stack(folder=folder, spec=spec, lock="a==1\n", variant=variant)


def inputs(folder: Path, base: str = DIGEST, epoch: int = 1, **changes: Any) -> ImageInputs:
    """Hash the inputs of the folder's stack."""
    return image_inputs(stack(folder, **changes), replace(BASES, source_date_epoch=epoch), base)


def test_tag_names_the_stack_and_the_digest(folder: Path) -> None:
    found = inputs(folder)
    assert found.tag == f"enginefarm/export:{found.sha256[:16]}"
    assert (len(found.sha256), found.base_digest, found.epoch) == (64, DIGEST, 1)


def test_tag_names_the_lock_where_it_is_not_the_usual_one(folder: Path) -> None:
    lock = {"file": "b.lock", "base": "b", "tensorrt": "1", "python": ["3.11"], "confirmed": True, "budget_mib": 1}
    image = {"base": "b", "budget_mib": 1, "locks": {"8.6.0": lock | {"import_name": "tensorrt"}}}
    spec = type(export_stack().spec).model_validate(export_stack().spec.model_dump() | {"image": image})
    other = image_inputs(Stack(folder=folder, spec=spec, lock="", variant="8.6.0"), BASES, DIGEST)
    assert other.tag == f"enginefarm/export:8.6.0-{other.sha256[:16]}"
    # the folder is the same: the name of the lock alone makes another image
    assert other.sha256 != inputs(folder).sha256


@pytest.mark.parametrize("name", ["Dockerfile", "check.py", "prune.txt", "stack.toml", "requirements.lock"])
@pytest.mark.parametrize("change", [lambda path: path.write_text("other\n"), Path.unlink], ids=["changed", "removed"])
def test_file_counts(folder: Path, name: str, change: Callable[[Path], object]) -> None:
    before = inputs(folder)
    change(folder / name)
    after = inputs(folder)
    assert after.sha256 != before.sha256
    assert after.tag != before.tag


def test_new_file_counts(folder: Path) -> None:
    before = inputs(folder).sha256
    (folder / "patch.diff").write_text("", encoding="utf-8")
    assert inputs(folder).sha256 != before


def test_files_that_change_places_count(folder: Path) -> None:
    before = inputs(folder).sha256
    (folder / "check.py").rename(folder / "aside")
    (folder / "prune.txt").rename(folder / "check.py")
    (folder / "aside").rename(folder / "prune.txt")
    assert inputs(folder).sha256 != before


@pytest.mark.parametrize(
    "changes",
    [{"base": f"sha256:{'1' * 64}"}, {"epoch": 2}, {"platform": "linux/arm64"}],
    ids=lambda one: next(iter(one)),
)
def test_setting_counts(folder: Path, changes: dict[str, Any]) -> None:
    assert inputs(folder, **changes).sha256 != inputs(folder).sha256


def test_export_settings_count(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inputs(folder).sha256
    monkeypatch.setattr(module, "EXPORT", module.EXPORT.replace("compression-level=3", "compression-level=4"))
    assert inputs(folder).sha256 != before


def test_what_is_left_out_counts(folder: Path) -> None:
    made = [image_inputs(stack(folder), BASES, DIGEST, omit) for omit in ((), ("*sm75*",), ("*sm75*", "*sm80*"))]
    assert len({one.sha256 for one in made}) == 3
    assert [one.omit for one in made] == [(), ("*sm75*",), ("*sm75*", "*sm80*")]


@pytest.mark.parametrize("name", ["README.md", "requirements.in"])
def test_notes_do_not_count(folder: Path, name: str) -> None:
    before = inputs(folder).sha256
    (folder / name).write_text("other\n", encoding="utf-8")
    assert inputs(folder).sha256 == before
    (folder / name).unlink()
    assert inputs(folder).sha256 == before


def test_place_and_times_do_not_count(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder.parent, tmp_path / "other checkout", copy_function=shutil.copyfile)
    assert inputs(tmp_path / "other checkout" / folder.name).sha256 == inputs(folder).sha256


def test_pip_that_installs_counts(folder: Path) -> None:
    before = inputs(folder).sha256
    (folder.parent / "steps" / "pip.lock").write_text("pip==2 --hash=sha256:00\n", encoding="utf-8")
    assert inputs(folder).sha256 != before


def test_build_sees_files_in_order(folder: Path) -> None:
    (folder / "__pycache__").mkdir()
    names = [path.name for path in context_files(folder)]
    assert names == ["Dockerfile", "check.py", "prune.txt", "requirements.lock", "stack.toml"]
