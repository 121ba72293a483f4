"""Copies for air gaps: the same bytes on the other side, the tag last, nothing lost there."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.events import Event
from builder.mirror import Mirrored, mirror
from builder.model_folder import ModelFolder
from builder.places import Talk, locate
from builder.project import Home
from tests.artifacts import overwrite, refusal
from tests.published import MODEL, attach, key_pair, parcel, publish, signer_of

BOTH = (oci.MANIFEST_TYPE, oci.INDEX_TYPE)


class Gap:
    """Two folders with an air gap between them."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(root=folder / "home")
        self.here = ModelFolder(folder / "here" / MODEL)
        self.there = ModelFolder(folder / "there" / MODEL)
        self.heard: list[Event] = []
        self.cancel = threading.Event()

    def __call__(self, source: str = "", destination: str = "", **options: Any) -> Mirrored:
        talk = Talk(cancel=self.cancel, listen=self.heard.append)
        ends = [locate(f"oci:{self.here.root}{source}", talk), locate(f"oci:{self.there.root}{destination}", talk)]
        return mirror(ends[0], ends[1], self.home, self.cancel, self.heard.append, **options)

    def refused(self, source: str = "", destination: str = "", **options: Any) -> EnginefarmError:
        """Copy what must be refused; the other side shows no new index."""
        before = self.shown(self.there)
        error = refusal(lambda: self(source, destination, **options))
        assert self.shown(self.there) == before
        return error

    def shown(self, place: ModelFolder) -> dict[str, bytes]:
        return {tag: (place.manifest(tag, BOTH) or (b"",))[0] for tag in place.tags()}


@pytest.fixture
def gap(tmp_path: Path) -> Gap:
    return Gap(tmp_path)


def blobs(place: ModelFolder) -> dict[str, bytes]:
    """Read all that a folder holds."""
    return {path.name: path.read_bytes() for path in (place.root / "blobs" / "sha256").iterdir()}


def test_the_same_bytes_arrive(gap: Gap, tmp_path: Path) -> None:
    signer = signer_of(key_pair(tmp_path / "keys"))
    published = publish(gap.here, [parcel(), parcel(precision="fp32")], serial=3, signer=signer, index_signer=signer)
    copied = gap()
    assert blobs(gap.there) == blobs(gap.here)
    assert gap.shown(gap.there) == gap.shown(gap.here)
    assert (copied.digest, copied.serial, copied.engines) == (published.index, 3, 2)
    # two engines and their signatures, and that of the index
    assert copied.documents == 5
    for digest in (published.index, *published.artifacts):
        assert gap.there.referrers(digest) == gap.here.referrers(digest)
        assert len(gap.there.referrers(digest)) == 1
    assert list(gap.home.pulls.iterdir()) == []


def test_a_second_time_copies_what_is_new(gap: Gap) -> None:
    publish(gap.here, [parcel()])
    first = gap()
    again = gap()
    assert first.size > 0
    assert (again.documents, again.blobs, again.size) == (0, 0, 0)
    publish(gap.here, [parcel(), parcel(variant=1, precision="fp32")], serial=2)
    assert (gap().documents, gap.shown(gap.there)) == (1, gap.shown(gap.here))


def test_a_signature_that_came_later_is_copied_alone(gap: Gap) -> None:
    published = publish(gap.here, [parcel()])
    gap()
    subject = oci.descriptor(oci.MANIFEST_TYPE, published.artifacts[0], 1)
    attach(gap.here, subject, b"a signature")
    assert gap().documents == 1
    assert len(gap.there.referrers(published.artifacts[0])) == 1


def test_another_tag_over_there(gap: Gap) -> None:
    published = publish(gap.here, [parcel()], tag="7")
    gap(":7", ":stable")
    gap(f"@{published.index}", ":pinned")
    assert gap.there.tags() == ["pinned", "stable"]


def test_a_newer_index_over_there_stays(gap: Gap) -> None:
    publish(gap.here, [parcel()], serial=4)
    publish(gap.there, [parcel(variant=1)], serial=5)
    assert gap.refused().reason is Reason.INDEX_ROLLED_BACK
    assert gap(accept_older=True).serial == 4
    assert gap.shown(gap.there) == gap.shown(gap.here)


def test_what_cannot_be_copied(gap: Gap) -> None:
    assert gap.refused().reason is Reason.ARTIFACT_MISSING
    publish(gap.here, [parcel("other")], model="other")
    assert gap.refused().reason is Reason.IDENTITY_MISMATCH
    publish(gap.here, [parcel()], schema=2)
    assert gap.refused().reason is Reason.ARTIFACT_TOO_NEW
    gap.here.put_manifest("latest", json.dumps({"mediaType": oci.INDEX_TYPE}).encode(), oci.INDEX_TYPE)
    assert gap.refused().reason is Reason.ARTIFACT_INVALID


def test_a_flipped_bit_stops_it_before_the_tag_moves(gap: Gap) -> None:
    one = parcel()
    publish(gap.here, [one])
    path = gap.here.root / "blobs" / "sha256" / oci.digest_of(one.files["model.plan"]).removeprefix("sha256:")
    overwrite(path, one.files["model.plan"][:-1] + b"!")
    assert gap.refused().reason is Reason.DOWNLOAD_CORRUPT
    overwrite(path, one.files["model.plan"])
    gap()
    assert blobs(gap.there) == blobs(gap.here)


def test_what_is_listed_and_gone(gap: Gap) -> None:
    published = publish(gap.here, [parcel()])
    (gap.here.root / "blobs" / "sha256" / published.artifacts[0].removeprefix("sha256:")).unlink()
    assert gap.refused().reason is Reason.ARTIFACT_MISSING


def test_documents_that_refer_to_each_other_without_end(gap: Gap) -> None:
    published = publish(gap.here, [parcel()])
    subject = oci.descriptor(oci.MANIFEST_TYPE, published.artifacts[0], 1)
    for number in range(6):
        subject = attach(gap.here, subject, f"{number}".encode())
    assert gap.refused().reason is Reason.ARTIFACT_INVALID


def test_it_can_be_stopped(gap: Gap) -> None:
    publish(gap.here, [parcel()])
    gap.cancel.set()
    assert gap.refused().reason is Reason.INTERRUPTED


@pytest.mark.parametrize("attached", [False, True])
def test_a_bomb_is_not_copied(gap: Gap, monkeypatch: pytest.MonkeyPatch, attached: bool) -> None:
    one = parcel()
    published = publish(gap.here, [one])
    engine = sum(len(content) for content in one.files.values())
    limit = engine - 1
    if attached:
        limit = engine + 100
        read = gap.here.manifest(published.artifacts[0], BOTH)
        assert read is not None
        attach(gap.here, read[1], bytes(limit))
    assert gap.refused(max_bytes=limit).reason is Reason.SIZE_REFUSED
    monkeypatch.setattr("builder.host.free_disk_bytes", lambda _: 100)
    assert gap.refused().reason is Reason.DISK_FULL
    monkeypatch.undo()
    gap(max_bytes=limit + 100)
    assert blobs(gap.there) == blobs(gap.here)


def test_a_tag_of_something_else_is_told_from_one_that_is_not_there(gap: Gap, monkeypatch: pytest.MonkeyPatch) -> None:
    made = publish(gap.here, [parcel()])
    content, _ = gap.here.manifest(made.artifacts[0], BOTH) or (b"", {})
    gap.here.put_manifest("engine", content, oci.MANIFEST_TYPE)
    read = ModelFolder.manifest

    def as_registries_do(
        self: ModelFolder, reference: str, accept: tuple[str, ...]
    ) -> tuple[bytes, oci.Document] | None:
        found = read(self, reference, BOTH)
        return found if found is not None and found[1]["mediaType"] in accept else None

    monkeypatch.setattr(ModelFolder, "manifest", as_registries_do)
    assert gap.refused(":engine").reason is Reason.ARTIFACT_INVALID
    assert gap.refused(":none").reason is Reason.ARTIFACT_MISSING
