"""What is known of a recipe's model before any work."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from builder.errors import Reason
from builder.models import MODEL, Models
from builder.project import Home, Project
from builder.recipe_file import load_recipe
from builder.store import Store
from tests.artifacts import refusal

TINY = Path(__file__).parents[2] / "recipes" / "tiny-mlp"
NOT_ASKED: Any = None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy a recipe, and let its input come from a file."""
    folder = tmp_path / "recipes" / "tiny-mlp"
    shutil.copytree(TINY, folder)
    (folder / "sample.npy").write_bytes(b"sample")
    recipe = folder / "recipe.yaml"
    values = f"{{kind: file, path: sample.npy, sha256: {hashlib.sha256(b'sample').hexdigest()}}}"
    text = recipe.read_text(encoding="utf-8").replace("{kind: normal, seed: 0, mean: 0.0, std: 1.0}", values)
    recipe.write_text(text, encoding="utf-8")
    return folder


def models(folder: Path) -> Models:
    root = folder.parents[1]
    return Models(
        project=Project(root=root),
        home=Home(root=root / "home"),
        store=Store(root / "home" / "store"),
        executor=NOT_ASKED,
        stacks={},
    )


def test_the_digest_of_a_recipe_names_its_model(folder: Path) -> None:
    content = (folder / "model.onnx").read_bytes()
    identity = models(folder).identity(load_recipe(folder / "recipe.yaml"))
    assert identity == {MODEL: hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("name", ["model.onnx", "sample.npy"])
def test_a_file_that_was_exchanged_is_not_looked_up_by_its_older_digest(folder: Path, name: str) -> None:
    """Who exports a model anew and forgets the digest would get the engine of the older one without a word."""
    recipe = load_recipe(folder / "recipe.yaml")
    (folder / name).write_bytes(b"newer")
    error = refusal(lambda: models(folder).identity(recipe))
    assert error.reason is Reason.DIGEST_MISMATCH
    assert name in error.what
    (folder / name).unlink()
    assert refusal(lambda: models(folder).identity(recipe)).reason is Reason.FILE_MISSING
