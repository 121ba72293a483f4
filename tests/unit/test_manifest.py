"""The manifest: comes back as it was, refuses what it does not know, names the field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from builder import manifest as module
from builder.errors import EnginefarmError, Reason
from builder.manifest import LoweredPart, Manifest, Reproducibility, load_manifest, manifest_schema
from tests.engines import manifest

MODELS = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, module.Part)]


def document(**changes: Any) -> dict[str, Any]:
    """Return a manifest as plain data."""
    written: dict[str, Any] = json.loads(manifest().to_json())
    return {**written, **changes}


def refusal(content: bytes) -> EnginefarmError:
    """Load a manifest that must be refused."""
    with pytest.raises(EnginefarmError) as caught:
        load_manifest(content, "here/manifest.json")
    assert (caught.value.reason, caught.value.where) == (Reason.MANIFEST_INVALID, "here/manifest.json")
    return caught.value


def places(value: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the place of each table whose fields are fixed."""
    if path and path[-1] in {
        "weights_detail",
        "source",
        "layers",
        "export",
        "detail",
        "options",
        "tolerance",
        "worst",
        "host",
    }:
        return
    if isinstance(value, dict):
        if path != ("stages",):
            yield path
        for name, inner in value.items():
            yield from places(inner, *path, name)


FIXED = sorted(places(json.loads(manifest().to_json())))


def test_comes_back_as_it_was() -> None:
    before = manifest()
    assert load_manifest(before.to_json().encode(), "x") == before
    assert before.to_json().endswith("}\n")
    assert list(document()) == list(Manifest.model_fields)


def test_is_json_for_every_reader_whatever_was_measured() -> None:
    lowered = LoweredPart(sha256="3" * 64, size=1, detail={"worst": float("nan"), "limit": float("inf")})
    text = manifest(lowered=lowered).to_json()
    assert json.loads(text, parse_constant=pytest.fail)["lowered"]["detail"] == {"worst": None, "limit": None}


def test_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        manifest().engine.size = 1


@pytest.mark.parametrize("place", FIXED, ids=lambda place: ".".join(place) or "file")
def test_unknown_field_is_refused_wherever_it_is(place: tuple[str, ...]) -> None:
    written = document()
    table = written
    for name in place:
        table = table[name]
    table["surprise"] = 1
    assert f"{'.'.join([*place, 'surprise'])}: Extra inputs are not permitted" in (
        refusal(json.dumps(written).encode()).why or ""
    )


@pytest.mark.parametrize("field", Manifest.model_fields)
def test_missing_field_is_named(field: str) -> None:
    written = document()
    del written[field]
    assert refusal(json.dumps(written).encode()).why == f"{field}: Field required"


def test_all_problems_are_named_at_once() -> None:
    written = document(schema_version=2, key="abc")
    written["engine"]["size"] = "large"
    why = refusal(json.dumps(written).encode()).why
    assert why is not None
    assert [line.split(":")[0] for line in why.splitlines()] == ["schema_version", "key", "engine.size"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"null", b"[]", b'"text"'])
def test_what_is_no_manifest(content: bytes) -> None:
    why = refusal(content).why
    assert why is not None
    assert why.startswith("file: ")


@pytest.mark.parametrize("level", ["unmeasured", "bitwise", "outputs", "tolerance", "drifted"])
def test_levels_of_reproducibility(level: Any) -> None:
    measured = Reproducibility(level=level, rebuilds=1, measured_at=None, detail=None)
    again = load_manifest(manifest(reproducibility=measured).to_json().encode(), "x")
    assert again.reproducibility.level == level


def test_level_that_does_not_exist() -> None:
    written = document()
    written["reproducibility"]["level"] = "certain"
    assert "reproducibility.level: " in (refusal(json.dumps(written).encode()).why or "")


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []
    assert model.model_config["extra"] == "forbid"


def test_schema_says_the_same_as_the_model() -> None:
    schema = json.loads(manifest_schema())
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    tables = [schema, *schema["$defs"].values()]
    assert {table["additionalProperties"] for table in tables} == {False}
    assert set(schema["required"]) == set(Manifest.model_fields)
