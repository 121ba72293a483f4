"""Names in registries; manifests, blobs, referrers and tags, and what is tried again."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.events import Event, StepAdvanced
from builder.registry import Registry, is_tag, parse_reference
from tests.registry_fake import FakeRegistry, Said, fake

__all__ = ["fake"]

HOST, NAME = "localhost:5000", "engines/tiny"
DIGEST = f"sha256:{'a' * 64}"
ACCEPT = (oci.MANIFEST_TYPE, oci.INDEX_TYPE)


@pytest.fixture
def heard() -> list[Event]:
    """Collect what was told."""
    return []


@pytest.fixture
def registry(fake: FakeRegistry, heard: list[Event]) -> Registry:
    """Talk to the fake."""
    return Registry(HOST, NAME, cancel=threading.Event(), listen=heard.append)


def put_blob(fake: FakeRegistry, content: bytes) -> oci.Document:
    described = oci.descriptor("application/octet-stream", oci.digest_of(content), len(content))
    fake.blobs[NAME, described["digest"]] = content
    return described


def put_index(fake: FakeRegistry, tag: str, **more: Any) -> oci.Document:
    content = json.dumps({"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": [], **more}).encode()
    fake.manifests[NAME, tag] = fake.manifests[NAME, oci.digest_of(content)] = (oci.INDEX_TYPE, content)
    return oci.descriptor(oci.INDEX_TYPE, oci.digest_of(content), len(content))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("localhost:5000/engines/vocos:1", ("localhost:5000", "engines/vocos", "1", None)),
        ("ghcr.io/a/b", ("ghcr.io", "a/b", None, None)),
        (f"127.0.0.1:5000/a@{DIGEST}", ("127.0.0.1:5000", "a", None, DIGEST)),
        (f"[::1]:5000/a__b.c-d:v1.2_x@{DIGEST}", ("[::1]:5000", "a__b.c-d", "v1.2_x", DIGEST)),
        ("registry:5000/a", ("registry:5000", "a", None, None)),
        ("localhost/a", ("localhost", "a", None, None)),
    ],
)
def test_references(text: str, parts: tuple[Any, ...]) -> None:
    reference = parse_reference(text)
    assert (reference.registry, reference.repository, reference.tag, reference.digest) == parts
    assert str(reference) == text
    assert reference.version == (parts[3] or parts[2])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("vocos", "host"),
        ("vocos/decoder:1", "host"),
        ("https://ghcr.io/a", "scheme"),
        ("ghcr.io/", "repository"),
        ("ghcr.io/A", "repository"),
        ("ghcr.io/a//b", "repository"),
        ("ghcr.io/../b", "repository"),
        ("ghcr.io/a/-b", "repository"),
        ("ghcr.io/" + "a" * 256, "repository"),
        ("ghcr.io/a:", "tag"),
        ("ghcr.io/a:-x", "tag"),
        ("ghcr.io/a:" + "x" * 129, "tag"),
        ("ghcr.io/a@", "digest"),
        ("ghcr.io/a@sha256:abc", "digest"),
        (f"ghcr.io/a@{DIGEST.upper()}", "digest"),
        ("user@ghcr.io/a", "host"),
        ("gh cr.io/a", "host"),
    ],
)
def test_what_names_nothing(text: str, why: str) -> None:
    with pytest.raises(EnginefarmError) as caught:
        parse_reference(text)
    assert caught.value.reason is Reason.REFERENCE_INVALID
    assert why in str(caught.value.why)


def test_tags_by_their_look() -> None:
    assert is_tag("v1.0_a-b")
    assert not is_tag("v1/0")


def test_a_manifest_that_is_not_there(registry: Registry) -> None:
    assert registry.manifest("latest", ACCEPT) is None
    assert registry.resolve("latest", ACCEPT) is None
    assert registry.tags() == []


def test_a_manifest_with_its_descriptor(registry: Registry, fake: FakeRegistry) -> None:
    described = put_index(fake, "latest")
    found = registry.manifest("latest", ACCEPT)
    assert found is not None
    assert found[1] == described
    assert oci.digest_of(found[0]) == described["digest"] == registry.resolve("latest", ACCEPT)
    assert registry.tags() == ["latest"]


def test_the_digest_is_fetched_where_no_header_tells_it(registry: Registry, fake: FakeRegistry) -> None:
    described = put_index(fake, "latest")
    fake.fail("HEAD .*/manifests/latest", Said(status=200))
    assert registry.resolve("latest", ACCEPT) == described["digest"]


@pytest.mark.parametrize("by_digest", [True, False])
def test_another_manifest_than_was_asked_for(registry: Registry, fake: FakeRegistry, by_digest: bool) -> None:
    digest = put_index(fake, "latest")["digest"]
    reference = digest if by_digest else "latest"
    fake.fail(f"GET .*/manifests/{reference}", Said(status=200, body=b"{}", headers={"Docker-Content-Digest": digest}))
    with pytest.raises(EnginefarmError) as caught:
        registry.manifest(reference, ACCEPT)
    assert caught.value.reason is Reason.DOWNLOAD_CORRUPT
    assert str(caught.value.why).startswith(f"expected {digest}\nactual   sha256:44136fa")


def test_a_manifest_too_large(registry: Registry, fake: FakeRegistry) -> None:
    fake.fail("GET .*/manifests/latest", Said(status=200, body=b" " * ((4 << 20) + 1)))
    with pytest.raises(EnginefarmError) as caught:
        registry.manifest("latest", ACCEPT)
    assert caught.value.reason is Reason.SIZE_REFUSED


def test_a_registry_that_changes_what_is_written(registry: Registry, fake: FakeRegistry) -> None:
    fake.fail("PUT", Said(status=201, headers={"Docker-Content-Digest": DIGEST}))
    with pytest.raises(EnginefarmError) as caught:
        registry.put_manifest("latest", b"{}", oci.INDEX_TYPE)
    assert caught.value.reason is Reason.REGISTRY_REFUSED


def test_small_blobs(registry: Registry, fake: FakeRegistry, heard: list[Event]) -> None:
    content = b"something small"
    digest = oci.digest_of(content)
    assert registry.push(content, digest, len(content))
    assert fake.blobs[NAME, digest] == content
    assert not registry.push(content, digest, len(content))
    assert registry.read(oci.descriptor("", digest, len(content))) == content
    assert heard[-1] == StepAdvanced(subject=f"{HOST}/{NAME}", done=len(content), total=len(content))


def test_content_with_another_digest_is_not_pushed(registry: Registry, fake: FakeRegistry) -> None:
    with pytest.raises(EnginefarmError) as caught:
        registry.push(b"content", DIGEST, 7)
    assert caught.value.reason is Reason.STORE_CORRUPT
    assert fake.asked == []


def test_reading_a_blob_with_another_digest(registry: Registry, fake: FakeRegistry) -> None:
    fake.blobs[NAME, DIGEST] = b"something else"
    with pytest.raises(EnginefarmError) as caught:
        registry.read(oci.descriptor("", DIGEST, 14))
    assert caught.value.reason is Reason.DOWNLOAD_CORRUPT


@pytest.mark.parametrize(("digest", "reason"), [(DIGEST, Reason.ARTIFACT_MISSING), ("../x", Reason.ARTIFACT_INVALID)])
def test_reading_what_is_not_there(registry: Registry, digest: str, reason: Reason) -> None:
    with pytest.raises(EnginefarmError) as caught:
        registry.read(oci.descriptor("", digest, 1))
    assert caught.value.reason is reason


def test_a_blob_is_mounted_from_another_repository(registry: Registry, fake: FakeRegistry, tmp_path: Path) -> None:
    content = b"shared"
    digest = oci.digest_of(content)
    fake.blobs["engines/other", digest] = content
    assert not registry.push(tmp_path / "never read", digest, len(content), mount_from="engines/other")
    assert fake.blobs[NAME, digest] == content


def test_a_blob_that_cannot_be_mounted_is_sent(registry: Registry, fake: FakeRegistry, tmp_path: Path) -> None:
    content = b"not shared"
    digest = oci.digest_of(content)
    (tmp_path / "file").write_bytes(content)
    assert registry.push(tmp_path / "file", digest, len(content), mount_from="engines/other")
    assert fake.blobs[NAME, digest] == content
    assert fake.uploads == {}


@pytest.mark.parametrize("lists", [True, False])
def test_referrers(registry: Registry, fake: FakeRegistry, lists: bool) -> None:
    fake.lists_referrers = lists
    subject = put_index(fake, "latest")
    assert registry.referrers(subject["digest"]) == []
    one = registry.attach(subject, "application/vnd.a", "a.json", b"[1]")
    two = registry.attach(subject, "application/vnd.b", "b.json", b"[2]")
    tag = subject["digest"].replace(":", "-")
    assert ((NAME, tag) in fake.manifests) is not lists
    assert [found["digest"] for found in registry.referrers(subject["digest"])] == [one["digest"], two["digest"]]
    assert [found["digest"] for found in registry.referrers(subject["digest"], "application/vnd.b")] == [two["digest"]]
    assert registry.attached(two) == b"[2]"
    assert json.loads(fake.manifests[NAME, one["digest"]][1])["subject"] == subject
    puts = len(fake.paths("PUT"))
    assert registry.attach(subject, "application/vnd.a", "a.json", b"[1]") == one
    assert len(fake.paths("PUT")) == puts


def test_annotations_of_a_referrer_are_listed(registry: Registry, fake: FakeRegistry) -> None:
    subject = put_index(fake, "latest")
    registry.attach(subject, "application/vnd.a", "a.json", b"[1]", {"org.example.by": "me"})
    assert registry.referrers(subject["digest"])[0]["annotations"] == {"org.example.by": "me"}


def test_a_referrer_that_somebody_overwrites_is_listed_again(registry: Registry, fake: FakeRegistry) -> None:
    subject = put_index(fake, "latest")
    tag = subject["digest"].replace(":", "-")
    spoiled: list[int] = []

    def spoil(asked: Any) -> None:
        if str(asked).endswith(f"manifests/{tag}") and asked.method == "GET" and (NAME, tag) in fake.manifests:
            if not spoiled:
                put_index(fake, tag)
            spoiled.append(1)

    fake.rules.append(spoil)
    one = registry.attach(subject, "application/vnd.a", "a.json", b"[1]")
    assert len(spoiled) > 1
    assert [found["digest"] for found in registry.referrers(subject["digest"])] == [one["digest"]]


def test_a_list_that_never_stays_is_contested(registry: Registry, fake: FakeRegistry) -> None:
    subject = put_index(fake, "latest")
    tag = subject["digest"].replace(":", "-")

    def spoil(asked: Any) -> None:
        if str(asked).endswith(f"manifests/{tag}") and asked.method == "GET":
            fake.manifests.pop((NAME, tag), None)

    fake.rules.append(spoil)
    with pytest.raises(EnginefarmError) as caught:
        registry.attach(subject, "application/vnd.a", "a.json", b"[1]")
    assert caught.value.reason is Reason.INDEX_CONTESTED


@pytest.mark.parametrize(
    "content", [b"nothing", b"[]", b'{"layers": []}', b'{"layers": [{"digest": 1}]}', b'{"layers": 1}']
)
def test_a_referrer_that_holds_no_document(registry: Registry, fake: FakeRegistry, content: bytes) -> None:
    digest = oci.digest_of(content)
    fake.manifests[NAME, digest] = (oci.MANIFEST_TYPE, content)
    with pytest.raises(EnginefarmError) as caught:
        registry.attached({"digest": digest})
    assert caught.value.reason is Reason.ARTIFACT_INVALID


def test_a_referrer_that_is_not_there(registry: Registry) -> None:
    for entry in ({"digest": DIGEST}, {"digest": "x"}, {}):
        with pytest.raises(EnginefarmError) as caught:
            registry.attached(entry)
        assert caught.value.reason is Reason.ARTIFACT_MISSING


def test_pages_of_tags(registry: Registry, fake: FakeRegistry) -> None:
    link = {"Link": f'</v2/{NAME}/tags/list?n=1000&last=b>; rel="next"'}
    pages = [Said(status=200, body=b'{"tags": ["a", "b"]}', headers=link), Said(status=200, body=b'{"tags": null}')]
    fake.fail("GET .*/tags/list", *pages)
    assert registry.tags() == ["a", "b"]


@pytest.mark.parametrize("body", [b"[]", b"<html>", b'{"tags": "a"}'])
def test_tags_that_are_no_list(registry: Registry, fake: FakeRegistry, body: bytes) -> None:
    fake.fail("GET .*/tags/list", Said(status=200, body=body))
    with pytest.raises(EnginefarmError) as caught:
        registry.tags()
    assert caught.value.reason is Reason.REGISTRY_REFUSED


def test_what_runs_together_comes_back_in_order(registry: Registry) -> None:
    assert registry.together([lambda number=number: number for number in range(9)]) == list(range(9))  # type: ignore[misc]


def test_the_first_failure_stops_the_others(registry: Registry, fake: FakeRegistry) -> None:
    begun = threading.Event()

    def fail() -> None:
        begun.wait(5)
        raise EnginefarmError(Reason.STORE_CORRUPT, "broken")

    def work() -> None:
        begun.set()
        for _ in range(10000):
            registry.push(b"x", oci.digest_of(b"x"), 1)

    with pytest.raises(EnginefarmError) as caught:
        registry.together([work, fail])
    assert caught.value.reason is Reason.STORE_CORRUPT
    assert registry.together([lambda: 1]) == [1]


def test_what_is_cancelled_sends_nothing(fake: FakeRegistry) -> None:
    cancel = threading.Event()
    cancel.set()
    registry = Registry(HOST, NAME, cancel=cancel, listen=lambda _: None)
    with pytest.raises(EnginefarmError) as caught:
        registry.push(b"x", oci.digest_of(b"x"), 1)
    assert caught.value.reason is Reason.INTERRUPTED
    assert fake.asked == []


BUSY = Said(status=503, body=b"later")


@pytest.mark.parametrize(
    "trouble",
    [
        BUSY,
        Said(status=500),
        Said(status=502),
        Said(status=504),
        Said(status=408),
        Said(status=429, headers={"Retry-After": "1"}),
        Said(status=429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Said(status=429, headers={"Retry-After": "soon"}),
        requests.ConnectionError("refused"),
        requests.ReadTimeout("too slow"),
        requests.exceptions.ChunkedEncodingError("cut"),
        ConnectionResetError("reset"),
        Said(status=200, body=b"{}", cut=1),
    ],
    ids=str,
)
def test_what_passes_is_tried_again(registry: Registry, fake: FakeRegistry, trouble: Said | Exception) -> None:
    described = put_index(fake, "latest")
    fake.fail("GET .*/manifests/latest", trouble, trouble)
    found = registry.manifest("latest", ACCEPT)
    assert found is not None
    assert found[1] == described


@pytest.mark.parametrize("trouble", [BUSY, requests.ConnectionError("refused")], ids=str)
def test_patience_ends(registry: Registry, fake: FakeRegistry, trouble: Said | Exception) -> None:
    fake.fail("GET .*/manifests/latest", *([trouble] * 9))
    with pytest.raises(EnginefarmError) as caught:
        registry.manifest("latest", ACCEPT)
    assert caught.value.reason is Reason.REGISTRY_UNREACHABLE
    assert len(fake.paths("GET")) == 1 + 5


def test_who_is_told_to_wait_long_does_not(registry: Registry, fake: FakeRegistry) -> None:
    fake.fail("GET .*/manifests/latest", Said(status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(EnginefarmError) as caught:
        registry.manifest("latest", ACCEPT)
    assert caught.value.reason is Reason.REGISTRY_UNREACHABLE
    assert "429" in str(caught.value.why)


@pytest.mark.parametrize("status", [400, 403, 405, 409, 501])
def test_what_does_not_pass_is_refused_at_once(registry: Registry, fake: FakeRegistry, status: int) -> None:
    fake.fail("GET .*/manifests/latest", Said(status=status, body=b"DENIED: not yours"))
    with pytest.raises(EnginefarmError) as caught:
        registry.manifest("latest", ACCEPT)
    assert caught.value.reason is Reason.REGISTRY_REFUSED
    assert "DENIED: not yours" in str(caught.value.why)
    assert len(fake.paths("GET")) == 2


@pytest.mark.parametrize(
    "error",
    [
        requests.exceptions.SSLError("certificate verify failed"),
        requests.exceptions.InvalidURL("no"),
        OSError("Could not find a suitable TLS CA certificate bundle, invalid path: nowhere"),
    ],
    ids=str,
)
def test_names_and_certificates_do_not_pass(registry: Registry, fake: FakeRegistry, error: Exception) -> None:
    fake.fail("GET .*/manifests/latest", error)
    with pytest.raises(EnginefarmError) as caught:
        registry.manifest("latest", ACCEPT)
    assert caught.value.reason is Reason.REGISTRY_UNREACHABLE
    assert str(error) in str(caught.value.why)
    assert len(fake.paths("GET")) == 2


def test_what_storage_takes_for_a_password_is_not_shown(registry: Registry, fake: FakeRegistry) -> None:
    there = "http://localhost:9/blob?X-Signature=secret"
    fake.fail("GET .*/manifests/latest", Said(status=307, headers={"Location": there}))
    fake.fail("GET /blob", Said(status=403))
    with pytest.raises(EnginefarmError) as caught:
        registry.manifest("latest", ACCEPT)
    assert "secret" not in str(caught.value)
