"""A container image in a folder: each blob under its digest, complete once it is named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from builder import oci
from builder.errors import Reason
from builder.image_layout import ImageLayout, write_single_layer
from tests.artifacts import document, refusal

LAYER = b"layer" * 1000
CREATED = "2026-01-01T00:00:00Z"


def single(folder: Path, content: bytes = LAYER) -> ImageLayout:
    """Make an image of one layer."""
    folder.mkdir(parents=True, exist_ok=True)
    layer = folder / "layer.tar"
    layer.write_bytes(content)
    return write_single_layer(folder, layer, "linux/arm64", CREATED, {"b": "2", "a": "1"}, ["PATH=/bin"])


def test_every_blob_lies_under_its_digest(tmp_path: Path) -> None:
    single(tmp_path)
    blobs = list((tmp_path / "blobs" / "sha256").iterdir())
    assert len(blobs) == 3
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in blobs)
    # the layer was moved, not copied
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "index.json", "oci-layout"]


def test_index_names_the_manifest(tmp_path: Path) -> None:
    layout = single(tmp_path)
    assert document(tmp_path / "oci-layout") == {"imageLayoutVersion": "1.0.0"}
    index = document(tmp_path / "index.json")
    assert (index["schemaVersion"], index["mediaType"]) == (2, oci.INDEX_TYPE)
    size = layout.blob(layout.digest).stat().st_size
    assert index["manifests"] == [{"mediaType": oci.MANIFEST_TYPE, "digest": layout.digest, "size": size}]


def test_manifest_describes_configuration_and_layer(tmp_path: Path) -> None:
    layout = single(tmp_path)
    manifest = layout.manifest()
    assert (manifest["schemaVersion"], manifest["mediaType"]) == (2, oci.MANIFEST_TYPE)
    for one in (manifest["config"], *manifest["layers"]):
        content = layout.blob(one["digest"]).read_bytes()
        assert (oci.digest_of(content), len(content)) == (one["digest"], one["size"])
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    digest = oci.digest_of(LAYER)
    layer_type = "application/vnd.oci.image.layer.v1.tar"
    assert list(layout.layers()) == [(digest, layer_type, len(LAYER), layout.blob(digest))]


def test_configuration_fits_the_layer(tmp_path: Path) -> None:
    config = single(tmp_path).config()
    assert (config["os"], config["architecture"], config["created"]) == ("linux", "arm64", CREATED)
    assert config["config"] == {"Env": ["PATH=/bin"], "Labels": {"a": "1", "b": "2"}}
    # an uncompressed layer is its own diff
    assert config["rootfs"] == {"type": "layers", "diff_ids": [oci.digest_of(LAYER)]}
    assert [step for step in config["history"] if not step.get("empty_layer")] == [
        {"created": CREATED, "created_by": "enginefarm"}
    ]


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    left, right, other = single(tmp_path / "a"), single(tmp_path / "b"), single(tmp_path / "c", b"other")
    assert left.digest == right.digest
    assert left.digest != other.digest
    assert (left.folder / "index.json").read_bytes() == (right.folder / "index.json").read_bytes()


def test_complete_only_after_finish(tmp_path: Path) -> None:
    layout = ImageLayout(tmp_path)
    assert not layout.complete
    digest, size = layout.add(b"{}")
    layer = tmp_path / "layer"
    layer.write_bytes(LAYER)
    layout.adopt(layer)
    assert not layout.complete
    layout.finish(digest, size, "application/vnd.docker.distribution.manifest.v2+json")
    assert ImageLayout(tmp_path).complete
    assert (layout.digest, layout.manifest()) == (digest, {})
    (named,) = document(tmp_path / "index.json")["manifests"]
    assert named["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"


def test_layers_come_lowest_first(tmp_path: Path) -> None:
    layout = ImageLayout(tmp_path)
    layers = [oci.descriptor("application/x", *layout.add(content)) for content in (b"low", b"high")]
    layout.finish(*layout.add(json.dumps({"layers": layers}).encode()))
    assert [path.read_bytes() for *_, path in layout.layers()] == [b"low", b"high"]


@pytest.mark.parametrize("content", [None, b"", b"{", b"{}", b"\xff"])
def test_broken_index_is_named(tmp_path: Path, content: bytes | None) -> None:
    layout = single(tmp_path)
    if content is None:
        (tmp_path / "index.json").unlink()
    else:
        (tmp_path / "index.json").write_bytes(content)
    error = refusal(lambda: layout.digest)
    assert error.reason is Reason.IMAGE_INVALID
    assert str(tmp_path) in error.what
    assert error.why


@pytest.mark.parametrize("number", [0, 2])
def test_folder_must_hold_one_image(tmp_path: Path, number: int) -> None:
    layout = single(tmp_path)
    index: dict[str, Any] = document(tmp_path / "index.json")
    index["manifests"] *= number
    (tmp_path / "index.json").write_text(json.dumps(index), encoding="utf-8")
    error = refusal(layout.manifest)
    assert (error.reason, error.what) == (Reason.IMAGE_INVALID, f"{tmp_path} holds {number} images, not one")
