"""A model's repository as a folder: the verbs of a registry, and nothing in it believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder import oci
from builder.errors import Reason
from builder.model_folder import ModelFolder
from tests.artifacts import document, overwrite, refusal

BLOB = b"engine" * 1000
DIGEST = oci.digest_of(BLOB)
BOTH = (oci.MANIFEST_TYPE, oci.INDEX_TYPE)


def described(content: bytes = BLOB, **changes: object) -> oci.Document:
    return oci.descriptor("application/octet-stream", oci.digest_of(content), len(content)) | changes


def path_of(folder: ModelFolder, digest: str) -> Path:
    return folder.root / "blobs" / "sha256" / digest.removeprefix("sha256:")


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return ModelFolder(tmp_path / "tiny")


def put(folder: ModelFolder, reference: str | None, **fields: object) -> oci.Document:
    content = json.dumps({"schemaVersion": 2, "mediaType": oci.MANIFEST_TYPE, **fields}).encode()
    return folder.put_manifest(reference or oci.digest_of(content), content, oci.MANIFEST_TYPE)


def test_nothing_is_made_by_reading(folder: ModelFolder) -> None:
    assert folder.manifest("latest", BOTH) is None
    assert (folder.tags(), folder.referrers(DIGEST)) == ([], [])
    assert not folder.root.exists()


def test_what_is_pushed_comes_back(folder: ModelFolder, tmp_path: Path) -> None:
    assert folder.push(BLOB, DIGEST, len(BLOB))
    assert not folder.push(BLOB, DIGEST, len(BLOB))
    folder.fetch(described(), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BLOB
    assert not (tmp_path / "back.part").exists()
    assert document(folder.root / "oci-layout") == oci.LAYOUT


def test_a_damaged_blob_is_pushed_anew(folder: ModelFolder, tmp_path: Path) -> None:
    folder.push(BLOB, DIGEST, len(BLOB))
    overwrite(path_of(folder, DIGEST), BLOB[:-1] + b"!")
    (tmp_path / "file").write_bytes(BLOB)
    assert folder.push(tmp_path / "file", DIGEST, len(BLOB))
    assert path_of(folder, DIGEST).read_bytes() == BLOB


def test_a_blob_that_is_pushed_under_a_wrong_digest_is_refused(folder: ModelFolder) -> None:
    error = refusal(lambda: folder.push(b"other", DIGEST, 5))
    assert error.reason is Reason.DOWNLOAD_CORRUPT
    assert list((folder.root / "blobs" / "sha256").iterdir()) == []


def test_a_tag_moves(folder: ModelFolder) -> None:
    first, second = put(folder, "latest", a=1), put(folder, "latest", a=2)
    put(folder, "1", a=1)
    assert folder.tags() == ["1", "latest"]
    assert folder.manifest("latest", BOTH) is not None
    assert [(folder.manifest(tag, BOTH) or (b"", {}))[1] for tag in folder.tags()] == [first, second]


def test_a_manifest_is_found_by_its_digest(folder: ModelFolder) -> None:
    known = put(folder, None)
    assert (folder.manifest(known["digest"], BOTH) or (b"", {}))[1] == known
    assert folder.tags() == []


def test_every_manifest_is_listed_once_for_other_tools(folder: ModelFolder) -> None:
    known = put(folder, None)
    put(folder, None)
    put(folder, "latest")
    put(folder, "latest")
    put(folder, None)
    put(folder, None, a=1)
    listed = document(folder.root / "index.json")["manifests"]
    assert [one.get("annotations") for one in listed] == [{oci.REF_NAME: "latest"}, None]
    assert listed[0]["digest"] == known["digest"]


def test_what_is_attached_is_found(folder: ModelFolder) -> None:
    subject = put(folder, None)
    signature = put(folder, None, subject=subject, artifactType="application/signature")
    put(folder, None, subject=subject, artifactType="application/sbom")
    put(folder, None, subject=signature, artifactType="application/signature")
    # again: it is listed once
    put(folder, None, subject=subject, artifactType="application/signature")
    assert folder.referrers(subject["digest"], "application/signature") == [
        signature | {"artifactType": "application/signature"}
    ]
    assert len(folder.referrers(subject["digest"])) == 2


def test_flipped_bits_are_noticed(folder: ModelFolder, tmp_path: Path) -> None:
    folder.push(BLOB, DIGEST, len(BLOB))
    known = put(folder, "latest")
    for digest in (DIGEST, known["digest"]):
        path = path_of(folder, digest)
        overwrite(path, bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert refusal(lambda: folder.fetch(described(), tmp_path / "back")).reason is Reason.DOWNLOAD_CORRUPT
    assert refusal(lambda: folder.manifest("latest", BOTH)).reason is Reason.DOWNLOAD_CORRUPT
    assert not list(tmp_path.glob("back*"))


def test_a_blob_that_is_larger_than_said_is_not_read(folder: ModelFolder, tmp_path: Path) -> None:
    folder.push(BLOB, DIGEST, len(BLOB))
    error = refusal(lambda: folder.fetch(described(size=10), tmp_path / "back"))
    assert error.reason is Reason.SIZE_REFUSED
    assert not list(tmp_path.glob("back*"))


def test_a_blob_that_is_shorter_than_said_is_noticed(folder: ModelFolder, tmp_path: Path) -> None:
    folder.push(BLOB, DIGEST, len(BLOB))
    overwrite(path_of(folder, DIGEST), BLOB[:-1])
    assert refusal(lambda: folder.fetch(described(), tmp_path / "back")).reason is Reason.DOWNLOAD_CORRUPT


def test_what_is_gone_is_named(folder: ModelFolder, tmp_path: Path) -> None:
    put(folder, "latest")
    path_of(folder, folder._tagged()["latest"]).unlink()
    assert refusal(lambda: folder.manifest("latest", BOTH)).reason is Reason.DOWNLOAD_CORRUPT
    assert refusal(lambda: folder.fetch(described(), tmp_path / "back")).reason is Reason.ARTIFACT_MISSING
    assert folder.manifest(DIGEST, BOTH) is None


def test_another_type_than_asked_for_is_refused(folder: ModelFolder) -> None:
    put(folder, "latest")
    assert refusal(lambda: folder.manifest("latest", (oci.INDEX_TYPE,))).reason is Reason.ARTIFACT_INVALID


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b'{"manifests": 1}',
        b'{"manifests": [1]}',
        b'{"manifests": [{"digest": "sha256:../../etc/passwd"}]}',
        b'{"manifests": [{"digest": 1}]}',
        b"[" * 100_000,
    ],
)
def test_an_index_that_is_none_is_refused(folder: ModelFolder, content: bytes) -> None:
    folder.root.mkdir()
    (folder.root / "index.json").write_bytes(content)
    assert refusal(folder.tags).reason is Reason.ARTIFACT_INVALID


def test_a_document_that_is_too_large_is_refused(folder: ModelFolder) -> None:
    folder.root.mkdir()
    (folder.root / "index.json").write_bytes(b" " * ((4 << 20) + 1))
    assert refusal(folder.tags).reason is Reason.SIZE_REFUSED


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert refusal(lambda: ModelFolder(tmp_path / "file").push(BLOB, DIGEST, 1)).reason is Reason.PATH_OCCUPIED
