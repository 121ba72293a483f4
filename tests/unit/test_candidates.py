"""What engines say of themselves: in their manifests and in image indexes, and what of it is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builder.candidates import candidate_of_annotations, candidate_of_manifest
from builder.errors import EnginefarmError, Reason
from tests.engines import manifest

INDEX: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "published-index.json").read_text(encoding="utf-8")
)


def test_a_manifest_says_where_its_engine_runs() -> None:
    document = json.loads(manifest().to_json())
    found = candidate_of_manifest(document, plugins=("Nms",))
    assert found.job == document["job"]
    assert found.rtx
    assert found.device is None
    assert found.sms == tuple(document["target"]["sms"])
    assert found.plugins == ("Nms",)
    assert found.engine_sha256 == document["engine"]["sha256"]


def test_a_tuned_engine_names_its_device_and_a_jetson_stack_its_l4t() -> None:
    document = json.loads(manifest().to_json())
    document["build"]["tuned_on"] = {"name": "Orin", "sm": "8.7", "driver": "540.4.0"}
    document["stack"] |= {"name": "l4t36.4-trt10.3", "tensorrt": "10.3.0", "platform": "linux/arm64"}
    found = candidate_of_manifest(document)
    assert (found.device, found.driver, found.l4t, found.rtx) == ("Orin", "540.4.0", "36.4", False)
    assert (found.os, found.architecture) == ("linux", "arm64")


@pytest.mark.parametrize(
    ("part", "value"),
    [("stack", {}), ("stack", None), ("target", {"sms": ["86"]}), ("target", {"sms": []}), ("key", 5), ("build", [])],
)
def test_a_manifest_that_does_not_say(part: str, value: object) -> None:
    document = {**json.loads(manifest().to_json()), part: value}
    with pytest.raises(EnginefarmError) as caught:
        candidate_of_manifest(document)
    assert caught.value.reason is Reason.MANIFEST_INVALID


def test_a_manifest_of_a_newer_schema() -> None:
    with pytest.raises(EnginefarmError) as caught:
        candidate_of_manifest({"schema_version": 2})
    assert caught.value.reason is Reason.ARTIFACT_TOO_NEW


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sms", "8.6,../x"),
        ("sms", ""),
        ("tensorrt", "newest"),
        ("cuda", "12.8\n"),
        ("engine", "b" * 63),
        ("engine-size", "many"),
        ("engine-size", "-1"),
        ("host-code", "perhaps"),
        ("hardware-compatibility", "all"),
        ("key", None),
        ("job", "tiny\x1b[2Jx"),
        ("device", "A" * 2000),
    ],
)
def test_annotations_that_cannot_be_read(name: str, value: str | None) -> None:
    descriptor = json.loads(json.dumps(INDEX["manifests"][0]))
    descriptor["annotations"][f"org.enginefarm.{name}"] = value
    with pytest.raises(EnginefarmError) as caught:
        candidate_of_annotations(descriptor)
    assert caught.value.reason is Reason.ARTIFACT_INVALID


@pytest.mark.parametrize("missing", ["annotations", "platform", "digest"])
def test_a_descriptor_without_what_it_needs(missing: str) -> None:
    descriptor = {name: value for name, value in INDEX["manifests"][0].items() if name != missing}
    with pytest.raises(EnginefarmError) as caught:
        candidate_of_annotations(descriptor)
    assert caught.value.reason is Reason.ARTIFACT_INVALID
