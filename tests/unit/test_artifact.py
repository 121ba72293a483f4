"""Documents of artifacts and indexes: made the same each time, and refused where they are not what they must be."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from builder import artifact, oci
from builder import manifest as m
from builder.errors import EnginefarmError, Reason
from tests.engines import manifest

WHERE = "registry/engines/tiny:1"
PLAN = b"plan" * 100


def engine(**changes: Any) -> tuple[m.Manifest, bytes, bytes]:
    """Make an engine's manifest, its bytes and its OCI manifest."""
    described = manifest(**changes)
    content = described.to_json().encode()
    files = {
        artifact.LAYERS: artifact.layer_report(described),
        "key.json": b"{}",
        "proof.json": b"{}",
    }
    layers = [artifact.layer(title, oci.digest_of(one), len(one)) for title, one in files.items()]
    plan = f"sha256:{described.engine.sha256}"
    layers.append(artifact.layer("model.plan", plan, described.engine.size))
    return described, content, artifact.make_artifact(content, layers)


Document = dict[str, Any]


def changed(change: Callable[[Document], object]) -> bytes:
    document: Document = json.loads(engine()[2])
    change(document)
    return json.dumps(document).encode()


def refusal(content: bytes, max_bytes: int = artifact.MAX_BYTES) -> EnginefarmError:
    with pytest.raises(EnginefarmError) as caught:
        artifact.parse_artifact(content, WHERE, max_bytes)
    assert caught.value.where == WHERE
    return caught.value


def titled(title: str) -> Callable[[Document], object]:
    def change(document: Document) -> None:
        document["layers"][1]["annotations"][oci.TITLE] = title

    return change


def test_an_artifact_there_and_back() -> None:
    described, content, raw = engine()
    parsed = artifact.parse_artifact(raw, WHERE)
    assert list(parsed.files) == ["manifest.json", "model.plan", "key.json", "proof.json", "layers.json"]
    assert parsed.config["digest"] == oci.digest_of(content)
    assert parsed.descriptor == {
        "mediaType": oci.MANIFEST_TYPE,
        "digest": oci.digest_of(raw),
        "size": len(raw),
        "artifactType": "application/vnd.enginefarm.engine.v1",
    }
    assert parsed.size == sum(one["size"] for one in parsed.files.values())
    artifact.check_files(parsed, described, WHERE)


def test_equal_files_give_equal_bytes() -> None:
    _, content, raw = engine()
    layers = json.loads(raw)["layers"]
    assert artifact.make_artifact(content, layers[::-1]) == raw


def test_media_types_are_those_of_the_documentation() -> None:
    assert artifact.TYPES == {
        "model.plan": "application/vnd.enginefarm.engine.v1",
        "key.json": "application/vnd.enginefarm.key.v1+json",
        "proof.json": "application/vnd.enginefarm.key.v1+json",
        "timing.cache": "application/vnd.enginefarm.timing-cache.v1",
        "weights.onnx": "application/vnd.enginefarm.weights.v1+onnx",
        "lowered.onnx.data": "application/vnd.enginefarm.weights-data.v1",
        "calibration.cache": "application/vnd.enginefarm.calibration-cache.v1",
        "layers.json": "application/vnd.enginefarm.layers.v1+json",
        "benchmark.json": "application/vnd.enginefarm.benchmark.v1+json",
    }
    assert artifact.CONFIG_TYPE == "application/vnd.enginefarm.manifest.v1+json"
    assert artifact.MODEL_TYPE == "application/vnd.enginefarm.model.v1"


@pytest.mark.parametrize(
    "title",
    [
        "../model.plan",
        "/etc/passwd",
        "a/b",
        "..",
        ".",
        "",
        "model.plan\0",
        "C:\\x",
        "..\\x",
        "a\nb",
        "C:x",
        "\u202exyz",
    ],
)
def test_names_that_lead_elsewhere(title: str) -> None:
    error = refusal(changed(titled(title)))
    assert error.reason is Reason.NAME_UNSAFE


@pytest.mark.parametrize("title", ["model.PLAN", "weights.bin", "manifest.json", "trust.json", "model.plan "])
def test_names_that_nobody_knows(title: str) -> None:
    assert refusal(changed(titled(title))).reason is Reason.ARTIFACT_INVALID


DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["layers"].append(d["layers"][0]),
        lambda d: d["layers"].pop(0),
        lambda d: d.pop("layers"),
        lambda d: d.update(layers="none"),
        lambda d: d.update(layers=["model.plan"]),
        lambda d: d.pop("config"),
        lambda d: d["config"].update(mediaType=oci.EMPTY_TYPE),
        lambda d: d.update(artifactType="application/vnd.oci.image.config.v1+json"),
        lambda d: d.pop("artifactType"),
        lambda d: d.update(mediaType=oci.INDEX_TYPE),
        lambda d: d.update(schemaVersion=1),
        lambda d: d["layers"][0].update(size="12"),
        lambda d: d["layers"][0].update(size=-1),
        lambda d: d["layers"][0].update(size=1.5),
        lambda d: d["layers"][0].update(size=True),
        lambda d: d["layers"][0].pop("size"),
        lambda d: d["layers"][0].update(digest="sha256:../../x"),
        lambda d: d["layers"][0].update(digest="sha512:" + "0" * 128),
        lambda d: d["layers"][0].update(digest=DIGEST.upper()),
        lambda d: d["layers"][0].update(digest=DIGEST + "\n"),
        lambda d: d["layers"][0].update(mediaType="application/octet-stream"),
        lambda d: d["layers"][0].update(mediaType=1),
        lambda d: d["layers"][0].update(annotations=[]),
        lambda d: d["layers"][0].update(annotations={oci.TITLE: 1}),
        lambda d: d["layers"][0].update(urls=["https://elsewhere.example/x"]),
        lambda d: d["layers"][0].update(data="eA=="),
    ],
)
def test_what_is_no_artifact(change: Callable[[Document], object]) -> None:
    assert refusal(changed(change)).reason is Reason.ARTIFACT_INVALID


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'"x"', b"{}", b"[" * 100_000])
def test_what_is_no_document(content: bytes) -> None:
    assert refusal(content).reason is Reason.ARTIFACT_INVALID


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(artifactType="application/vnd.enginefarm.engine.v2"),
        lambda d: d["config"].update(mediaType="application/vnd.enginefarm.manifest.v12+json"),
        lambda d: d["layers"][0].update(mediaType="application/vnd.enginefarm.engine.v2"),
    ],
)
def test_what_is_too_new(change: Callable[[Document], object]) -> None:
    assert refusal(changed(change)).reason is Reason.ARTIFACT_TOO_NEW


def test_a_bomb() -> None:
    def change(document: Document) -> None:
        document["layers"][0]["size"] = 10 << 30

    assert refusal(changed(change)).reason is Reason.SIZE_REFUSED


@pytest.mark.parametrize("title", ["key.json", "layers.json"])
def test_documents_are_small(title: str) -> None:
    def change(document: Document) -> None:
        for one in document["layers"]:
            if one["annotations"][oci.TITLE] == title:
                one["size"] = (4 << 20) + 1

    assert refusal(changed(change)).reason is Reason.SIZE_REFUSED


def test_all_files_together_have_a_limit() -> None:
    described, _, raw = engine()
    size = artifact.parse_artifact(raw, WHERE).size
    assert artifact.parse_artifact(raw, WHERE, size).size == size
    assert size > described.engine.size
    assert refusal(raw, size - 1).reason is Reason.SIZE_REFUSED


def test_a_document_too_large_is_not_read() -> None:
    assert refusal(b" " * ((4 << 20) + 1)).reason is Reason.SIZE_REFUSED


def test_a_manifest_of_a_later_version() -> None:
    document = json.loads(engine()[1])
    assert artifact.parse_manifest(json.dumps(document).encode(), WHERE).job == document["job"]
    document["schema_version"] = 2
    with pytest.raises(EnginefarmError) as caught:
        artifact.parse_manifest(json.dumps(document).encode(), WHERE)
    assert caught.value.reason is Reason.ARTIFACT_TOO_NEW


@pytest.mark.parametrize("content", [b"{}", b"[]", b"nothing", b'{"schema_version": "2"}', b'{"schema_version": true}'])
def test_what_is_no_manifest(content: bytes) -> None:
    with pytest.raises(EnginefarmError) as caught:
        artifact.parse_manifest(content, WHERE)
    assert caught.value.reason is Reason.MANIFEST_INVALID


@pytest.mark.parametrize(
    ("title", "field"), [("model.plan", "digest"), ("model.plan", "size"), ("layers.json", "digest")]
)
def test_files_of_another_engine(title: str, field: str) -> None:
    def change(document: Document) -> None:
        for one in document["layers"]:
            if one["annotations"][oci.TITLE] == title:
                one[field] = DIGEST if field == "digest" else one[field] + 1

    parsed = artifact.parse_artifact(changed(change), WHERE)
    with pytest.raises(EnginefarmError) as caught:
        artifact.check_files(parsed, manifest(), WHERE)
    assert caught.value.reason is Reason.IDENTITY_MISMATCH


def test_a_benchmark_that_the_manifest_does_not_know() -> None:
    described, content, raw = engine()
    layers = [*json.loads(raw)["layers"], artifact.layer(artifact.BENCHMARK, DIGEST, 3)]
    parsed = artifact.parse_artifact(artifact.make_artifact(content, layers), WHERE)
    with pytest.raises(EnginefarmError) as caught:
        artifact.check_files(parsed, described, WHERE)
    assert caught.value.reason is Reason.IDENTITY_MISMATCH


def test_the_layer_report_has_layers_and_flags() -> None:
    report = json.loads(artifact.layer_report(manifest()))
    assert report["layers"] == {"layers": 12}
    assert report["flags"] == ["STRONGLY_TYPED"]
    assert artifact.benchmark(manifest()) is None


def entry(**changes: Any) -> oci.Document:
    described, _, raw = engine(**changes)
    return artifact.engine_entry(described, artifact.parse_artifact(raw, WHERE).descriptor)


def facts(one: oci.Document) -> dict[str, str]:
    return {name.removeprefix(artifact.PREFIX): value for name, value in one["annotations"].items()}


def test_what_an_entry_says() -> None:
    described = manifest()
    assert facts(entry()) == {
        "key": described.key,
        "job": "tiny-fp16-trtrtx1.7-cuda13-sm80-sm86",
        "stack": "trtrtx1.7-cuda13",
        "tensorrt": "1.7.1.116",
        "cuda": "13.0",
        "precision": "fp16",
        "sms": "8.0,8.6",
        "hardware-compatibility": "none",
        "version-compatible": "false",
        "host-code": "false",
        "weights": "seeded",
        "engine-verified": "false",
        "engine": described.engine.sha256,
        "engine-size": str(described.engine.size),
    }
    assert entry()["platform"] == {"os": "linux", "architecture": "amd64"}


def test_what_an_entry_says_of_a_tuned_engine() -> None:
    tuned = m.TunedPart(
        name="NVIDIA H200",
        sm="9.0",
        driver="570.1",
        workspace_bytes=1,
        retried_with_less_memory=False,
        precision_constraints=0,
        build_seconds=1.0,
        timing_cache={},
        watched=None,
    )
    options = {
        "hardware_compatibility": "ampere_plus",
        "version_compatible": True,
        "strip_weights": True,
        "refit": True,
    }
    build = manifest().build.model_copy(update={"tuned_on": tuned, "options": options})
    host_code = manifest().engine.model_copy(update={"needs_host_code": True})
    told = facts(entry(build=build, engine=host_code))
    wanted = ("device", "driver", "hardware-compatibility", "version-compatible", "host-code", "stripped", "refit")
    assert [told[name] for name in wanted] == ["NVIDIA H200", "570.1", "ampere_plus", "true", "true", "true", "true"]


def index(**changes: Any) -> bytes:
    document = json.loads(artifact.make_index("tiny", [entry(), entry(precision="fp32")], 3))
    return json.dumps(document | changes).encode()


def test_an_index_there_and_back() -> None:
    one, two = entry(), entry(precision="fp32")
    content = artifact.make_index("tiny", [two, one], 3)
    assert content == artifact.make_index("tiny", [one, two], 3)
    parsed = artifact.parse_index(content, WHERE, "tiny")
    assert (parsed.model, parsed.serial, parsed.digest) == ("tiny", 3, oci.digest_of(content))
    assert list(parsed.entries) == [one, two]


def index_refusal(content: bytes, model: str | None = None) -> Reason:
    with pytest.raises(EnginefarmError) as caught:
        artifact.parse_index(content, WHERE, model)
    return caught.value.reason


ANNOTATIONS = {"org.enginefarm.model": "tiny", "org.enginefarm.schema": "1", "org.enginefarm.serial": "3"}


@pytest.mark.parametrize(
    "changes",
    [
        {"artifactType": "application/vnd.example"},
        {"mediaType": oci.MANIFEST_TYPE},
        {"manifests": None},
        {"manifests": [{}]},
        {"annotations": {}},
        {"annotations": []},
        {"annotations": ANNOTATIONS | {"org.enginefarm.serial": "-1"}},
        {"annotations": ANNOTATIONS | {"org.enginefarm.serial": "9" * 19}},
        {"annotations": ANNOTATIONS | {"org.enginefarm.schema": "x"}},
        {"annotations": ANNOTATIONS | {"org.enginefarm.schema": "²"}},
        {"annotations": ANNOTATIONS | {"org.enginefarm.schema": "9" * 5000}},
        {"artifactType": f"application/vnd.enginefarm.model.v{'9' * 5000}"},
        {"annotations": ANNOTATIONS | {"org.enginefarm.model": ""}},
        {"manifests": [entry(), entry()]},
        {"manifests": [{**entry(), "artifactType": "application/vnd.example"}]},
        {"manifests": [{**entry(), "platform": None}]},
        {"manifests": [{**entry(), "platform": {"os": "linux"}}]},
        {"manifests": [{**entry(), "annotations": {}}]},
        {"manifests": [{**entry(), "mediaType": oci.INDEX_TYPE}]},
    ],
)
def test_what_is_no_index(changes: Document) -> None:
    assert index_refusal(index(**copy.deepcopy(changes))) is Reason.ARTIFACT_INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": ANNOTATIONS | {"org.enginefarm.schema": "2"}},
        {"artifactType": "application/vnd.enginefarm.model.v2"},
        {"manifests": [{**entry(), "artifactType": "application/vnd.enginefarm.engine.v2"}]},
    ],
)
def test_an_index_that_is_too_new(changes: Document) -> None:
    assert index_refusal(index(**changes)) is Reason.ARTIFACT_TOO_NEW


def test_an_index_of_another_model() -> None:
    assert index_refusal(index(), "vocos") is Reason.IDENTITY_MISMATCH


def test_an_index_without_engines() -> None:
    assert artifact.parse_index(artifact.make_index("tiny", [], 1), WHERE).entries == ()
