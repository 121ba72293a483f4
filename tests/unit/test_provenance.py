"""What is said of how an engine was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builder.provenance import digest_set, head_commit, provenance, purl
from tests.engines import job_id, manifest

FILES = {"model.plan": "a" * 64, "manifest.json": "b" * 64}
COMMIT = "c" * 40


def document(**changes: Any) -> dict[str, Any]:
    """Return a manifest as it is read from JSON."""
    found: dict[str, Any] = json.loads(manifest().to_json())
    for path, value in changes.items():
        part, _, name = path.partition("__")
        found[part][name] = value
    return found


def materials(commit: str | None = None, **changes: Any) -> dict[str, dict[str, Any]]:
    """Return what an engine was made of, by name."""
    statement = provenance(document(**changes), FILES, commit=commit)
    found = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    return {one["name"]: one for one in found}


def test_statement_has_the_form_of_its_kind() -> None:
    """In-toto around, SLSA inside, every file a subject."""
    statement = provenance(document(), FILES)
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    assert statement["subject"] == [
        {"name": "manifest.json", "digest": {"sha256": "b" * 64}},
        {"name": "model.plan", "digest": {"sha256": "a" * 64}},
    ]
    definition, run = statement["predicate"]["buildDefinition"], statement["predicate"]["runDetails"]
    assert definition["externalParameters"]["job"] == job_id()
    assert definition["internalParameters"]["gpu"] is None
    assert run["builder"]["version"] == {"enginefarm": "0.1.0"}
    assert run["metadata"] == {"invocationId": document()["key"], "finishedOn": "2026-01-02T03:04:05Z"}
    assert json.loads(json.dumps(statement)) == statement


def test_same_engine_has_the_same_statement() -> None:
    """No clock and no chance."""
    assert provenance(document(), FILES) == provenance(document(), dict(reversed(FILES.items())))


def test_image_and_its_base_are_materials() -> None:
    """By digest; a stand-in does not pass for the base it stands for."""
    image = f"sha256:{'d' * 64}"
    found = materials(stack__image=image, stack__image_base=f"stand-in sha256:{'e' * 64}")
    assert found["image"]["digest"] == {"sha256": "d" * 64}
    assert found["image"]["uri"].startswith("pkg:oci/trtrtx1.7-cuda13@sha256%3A")
    assert found["stand-in base image"]["digest"] == {"sha256": "e" * 64}
    assert "image" not in materials()
    assert materials(stack__image=image, stack__image_base=image)["base image"]["digest"] == {"sha256": "d" * 64}


def test_lock_packages_and_model_are_materials() -> None:
    """With their digests where there are any."""
    found = materials(stack__packages=["numpy==2.0.0", "libs @ https://x.example/libs.whl"])
    assert found["images/trtrtx1.7-cuda13/requirements.lock"]["digest"] == {"sha256": "1" * 64}
    assert found["numpy==2.0.0"]["uri"] == "pkg:pypi/numpy@2.0.0"
    assert found["libs"]["uri"] == "https://x.example/libs.whl"
    assert found["model.onnx"]["digest"] == {"sha256": "2" * 64}
    assert "model.onnx.data" not in found
    assert materials(onnx__external_sha256="9" * 64)["model.onnx.data"]["digest"] == {"sha256": "9" * 64}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"kind": "python", "entry": "model.py:build"}, {"uri": "recipes/tiny/model.py"}),
        (
            {"kind": "onnx", "path": "m.onnx", "sha256": "5" * 64},
            {"uri": "recipes/tiny/m.onnx", "digest": {"sha256": "5" * 64}},
        ),
        (
            {"kind": "wheel", "package": "models==1.0", "path": "a/m.onnx", "sha256": "5" * 64},
            {"uri": "pkg:pypi/models@1.0#a/m.onnx", "digest": {"sha256": "5" * 64}},
        ),
        (
            {"kind": "url", "url": "https://x.example/m.onnx", "sha256": "5" * 64},
            {"uri": "https://x.example/m.onnx", "digest": {"sha256": "5" * 64}},
        ),
        (
            {"kind": "huggingface", "repo": "Owner/Name", "revision": COMMIT, "path": "m.onnx", "sha256": "5" * 64},
            {
                "uri": f"pkg:huggingface/Owner/Name@{COMMIT}#m.onnx",
                "digest": {"gitCommit": COMMIT, "sha256": "5" * 64},
            },
        ),
    ],
    ids=lambda value: value.get("kind", ""),
)
def test_source_is_a_material(source: dict[str, Any], expected: dict[str, Any]) -> None:
    """Of every kind, with the commit where it comes from a repository."""
    assert materials(recipe__source=source)["source"] == {"name": "source", **expected}


def test_weights_are_a_material() -> None:
    """Published ones; random ones come out of nothing."""
    file = {"url": None, "repo": "o/n", "revision": COMMIT, "path": "w.bin", "sha256": None}
    found = materials(recipe__weights_detail={"kind": "pretrained", "file": file})
    assert found["weights"]["digest"] == {"gitCommit": COMMIT}
    assert "weights" not in materials()
    assert "weights" not in materials(recipe__weights_detail=None)


def test_tuned_engine_names_its_gpu_and_timings() -> None:
    """What an engine was tuned on and with which timings."""
    tuned = {"name": "H200", "sm": "9.0", "driver": "570", "timing_cache": {"read": ["7" * 64], "sealed": True}}
    statement = provenance(document(build__tuned_on=tuned), FILES)
    definition = statement["predicate"]["buildDefinition"]
    assert definition["internalParameters"]["gpu"] == {"name": "H200", "sm": "9.0", "driver": "570"}
    assert {"name": "timing.cache", "digest": {"sha256": "7" * 64}} in definition["resolvedDependencies"]


def test_commit_of_the_project_is_a_material_where_known() -> None:
    """Of the folder that holds the recipe."""
    assert materials(COMMIT)["recipes/tiny"] == {"name": "recipes/tiny", "digest": {"gitCommit": COMMIT}}
    assert "recipes/tiny" not in materials()


def test_head_is_read_from_every_kind_of_checkout(tmp_path: Path) -> None:
    """On a branch, packed or not, detached, and none at all."""
    assert head_commit(tmp_path) is None
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text(f"{COMMIT}\n", encoding="utf-8")
    assert head_commit(tmp_path) == COMMIT
    (git / "HEAD").write_text("ref: refs/heads/main\n", encoding="utf-8")
    assert head_commit(tmp_path) is None
    (git / "packed-refs").write_text(
        f"# pack\n{'d' * 40} refs/heads/main2\n{COMMIT} refs/heads/main\n", encoding="utf-8"
    )
    assert head_commit(tmp_path) == COMMIT
    (git / "refs" / "heads" / "main").write_text(f"{'e' * 40}\n", encoding="utf-8")
    assert head_commit(tmp_path) == "e" * 40


def test_package_urls_are_quoted() -> None:
    """What stands between the signs of the form is written as codes."""
    assert purl("pypi", "Name", "1+cu13", {"b": "x y", "a": "k/l"}) == "pkg:pypi/name@1%2Bcu13?a=k/l&b=x%20y"
    assert digest_set("sha512:ff") == {"sha512": "ff"}
