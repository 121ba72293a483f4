"""Reading recipes: every mistake with its line, its value and the way out. The exact texts are in tests/data."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from builder.errors import EnginefarmError, ErrorGroup, Reason
from builder.recipe import Recipe
from builder.recipe_file import load_recipe, load_recipes

DATA = Path(__file__).parents[1] / "data" / "recipes-bad"
ROOT = Path(__file__).parents[2]
GOOD = """\
name: model
description: a model
licence: MIT
source:
  kind: onnx
  path: model.onnx
  sha256: {sha}
profiles:
  - inputs:
      x: {{min: [1, 4], opt: [2, 4], max: [8, 4]}}
precisions:
  fp16:
    tolerance:
      default: {{max_abs: 1e-3}}
inputs:
  x:
    values: {{kind: normal}}
"""
# What is wrong, as (text in the good recipe, text instead).
MISTAKES = {
    "unknown-key": [("precisions:", "presisions:")],
    "unknown-nested-key": [("    tolerance:", "    tolerence:")],
    "unknown-kind": [("kind: onnx", "kind: onx")],
    "missing-kind": [("  kind: onnx\n", "")],
    "missing-key": [("  path: model.onnx\n", "")],
    "unknown-precision": [("fp16:", "fp61:")],
    "calibration-elsewhere": [("fp16:", "fp16:\n    calibration: {{batches: 8}}")],
    "calibration-method": [("fp16:", "int8:\n    calibration: {{method: percentile}}")],
    "calibration-without-batches": [("fp16:", "int8:\n    calibration: {{batches: 0}}")],
    "int8-auto-fp32": [("fp16:", "int8:\n    auto_fp32: true")],
    "keep-fp32-of-tf32": [("fp16:", "tf32:\n    keep_fp32: {{ops: [Softmax]}}")],
    "auto-fp32-of-fp32": [("fp16:", "fp32:\n    auto_fp32: true")],
    "ints-backwards": [("{{kind: normal}}", "{{kind: ints, low: 5, high: 3}}")],
    "ints-too-large": [("{{kind: normal}}", "{{kind: ints, high: 99999999999999999999}}")],
    "opt-over-max": [("opt: [2, 4]", "opt: [9, 4]")],
    "rank": [("opt: [2, 4]", "opt: [2, 4, 1]")],
    "zero-dimension": [("min: [1, 4]", "min: [0, 4]")],
    "one-digest-for-two-files": [
        ("kind: onnx", "kind: wheel\n  package: a==1\n  wheel_sha256: {sha}"),
    ],
    "short-digest": [("{sha}", "abc")],
    "absolute-path": [("path: model.onnx", "path: /etc/passwd")],
    "path-upwards": [("path: model.onnx", "path: ../other/model.onnx")],
    "text-for-number": [("max_abs: 1e-3", "max_abs: small")],
    "yes-for-number": [("max_abs: 1e-3", "max_abs: yes")],
    "no-for-text": [("licence: MIT", "licence: no")],
    "version-for-text": [("licence: MIT", "licence: 2.0")],
    "date-for-text": [("licence: MIT", "licence: 2024-01-01")],
    "no-such-day": [("description: a model", "description: 2024-02-30")],
    "no-number": [("licence: MIT", "licence: !!int MIT")],
    "number-for-key": [("precisions:", "8: 6\nprecisions:")],
    "control-character": [("licence: MIT", "licence: \x07MIT")],
    "two-documents": [("licence: MIT", "---\nlicence: MIT")],
    "ints-low-over-high": [("kind: normal", "kind: ints, low: 5, high: 5")],
    "uniform-low-over-high": [("kind: normal", "kind: uniform, low: 2.0")],
    "nan-tolerance": [("max_abs: 1e-3", "max_abs: .nan")],
    "empty-tolerance": [("default: {{max_abs: 1e-3}}", "default: {{}}")],
    "list-for-mapping": [("precisions:\n  fp16:", "precisions:\n  - fp16:")],
    "no-profile": [("  - inputs:\n      x: {{min: [1, 4], opt: [2, 4], max: [8, 4]}}\n", "  []\n")],
    "input-names-differ": [("      x: {{min", "      y: {{min")],
    "export-of-onnx": [("profiles:", "weights: {{kind: seeded}}\nprofiles:")],
    "folder-name": [("name: model", "name: modell")],
    "missing-file": [("path: model.onnx", "path: models.onnx")],
    "duplicate-key": [("licence: MIT", "licence: MIT\ndescription: again")],
    "tab": [("  path: model.onnx", "\tpath: model.onnx")],
    "not-yaml": [("opt: [2, 4]", "opt: [2, 4")],
    "several": [
        ("name: model", "name: other"),
        ("kind: onnx", "kind: onx"),
        ("opt: [2, 4]", "opt: [9, 4]"),
        ("licence", "license"),
    ],
}


def project(folder: Path, text: str) -> Path:
    recipe = folder / "recipes" / "model"
    recipe.mkdir(parents=True)
    (recipe / "model.onnx").write_bytes(b"onnx")
    path = recipe / "recipe.yaml"
    path.write_text(text.format(sha=hashlib.sha256(b"onnx").hexdigest()), encoding="utf-8")
    return path


def failure(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(path.parents[2])
    with pytest.raises(EnginefarmError) as caught:
        load_recipes(path.parents[1])
    return str(caught.value) + "\n"


def test_a_good_recipe_reads_with_its_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(project(tmp_path, GOOD))
    assert recipe.profiles[0].name == "default"
    assert recipe.precisions[next(iter(recipe.precisions))].tolerance.default.max_abs == 0.001
    assert recipe.weights_kind == "pretrained"


@pytest.mark.parametrize("mistake", sorted(MISTAKES))
def test_a_mistake_is_explained(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = GOOD
    for old, new in MISTAKES[mistake]:
        assert old in text
        text = text.replace(old, new, 1)
    said = failure(project(tmp_path, text), monkeypatch)
    expected = DATA / f"{mistake}.txt"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        DATA.mkdir(parents=True, exist_ok=True)
        expected.write_text(said, encoding="utf-8")
    assert said == expected.read_text(encoding="utf-8"), "UPDATE_SNAPSHOTS=1 make test writes the new text"
    assert "recipes/model/recipe.yaml:" in said


def test_no_expected_text_is_left_over() -> None:
    assert {path.stem for path in DATA.glob("*.txt")} == set(MISTAKES)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "the file is empty"),
        (b"- a\n- b\n", "not a mapping"),
        (b"name: \xff\xfe", "not UTF-8"),
        (b"#" * (2 << 20), "at most 1 MiB"),
        (b"a: &a [*a]\n", ""),
        (b"a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b]\nname: *c\n", "name"),
    ],
)
def test_files_that_are_no_recipes(content: bytes, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project(tmp_path, GOOD)
    path.write_bytes(content)
    said = failure(path, monkeypatch)
    assert what in said
    assert "EF-101" in said


def test_aliases_that_explode_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["a0: &a0 {x: 1}"] + [
        f"a{level}: &a{level} {{{', '.join(f'k{n}: *a{level - 1}' for n in range(9))}}}" for level in range(1, 12)
    ]
    path = project(tmp_path, GOOD)
    path.write_text("\n".join(lines), encoding="utf-8")
    assert "EF-101" in failure(path, monkeypatch)


def test_the_problems_of_all_files_come_together(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = tmp_path / "recipes" / name
        folder.mkdir(parents=True)
        (folder / "recipe.yaml").write_text(f"name: {name}\n", encoding="utf-8")
    with pytest.raises(ErrorGroup) as caught:
        load_recipes(tmp_path / "recipes")
    assert "2 recipe files have" in str(caught.value)
    assert {"one", "two"} <= {Path((error.where or "").rsplit(":", 2)[0]).parent.name for error in caught.value.errors}


def test_names_of_stacks_and_targets_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project(tmp_path, GOOD + "stacks: [trtx]\ntargets: [ampere, hoper]\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ErrorGroup) as caught:
        load_recipes(path.parents[1], stacks=["trtrtx"], targets=["ampere", "hopper"])
    said = str(caught.value)
    assert "there is no stack 'trtx'" in said
    assert "did you mean 'trtrtx'?" in said
    assert "there is no target 'hoper'" in said
    assert "recipe.yaml:19:" in said


def test_shipped_recipes_are_valid_and_point_editors_to_the_schema() -> None:
    recipes = load_recipes(ROOT / "recipes")
    assert {"ppocrv4-det", "ppocrv4-rec", "ppocrv4-cls", "vocos-decoder", "tiny-mlp"} <= set(recipes)
    for name in recipes:
        text = (ROOT / "recipes" / name / "recipe.yaml").read_text(encoding="utf-8")
        assert "# yaml-language-server: $schema=../../builder/resources/recipe.schema.json" in text


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnginefarmError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert caught.value.reason is Reason.FILE_MISSING


def test_every_field_is_described() -> None:
    schema = Recipe.model_json_schema()
    for name, model in [("Recipe", schema), *schema["$defs"].items()]:
        for field, details in model.get("properties", {}).items():
            assert details.get("description"), f"{name}.{field}"
