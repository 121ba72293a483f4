"""Large files: streamed, hashed on the way, taken up where they broke off, never more than they say."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import requests

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.events import Event, StepAdvanced
from builder.registry import Registry
from tests.registry_fake import FakeRegistry, Said, fake

__all__ = ["fake"]

HOST, NAME = "localhost:5000", "engines/tiny"
# some parts and a bit
CONTENT = os.urandom((3 << 18) + 12345)
DIGEST, SIZE = oci.digest_of(CONTENT), len(CONTENT)
DESCRIBED = oci.descriptor("application/octet-stream", DIGEST, SIZE)
BLOB = f"GET .*/blobs/{DIGEST}"


@pytest.fixture
def heard() -> list[Event]:
    """Collect what was told."""
    return []


@pytest.fixture
def registry(fake: FakeRegistry, heard: list[Event]) -> Registry:
    """Talk to the fake."""
    return Registry(HOST, NAME, cancel=threading.Event(), listen=heard.append, subject="model")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Make a file to push."""
    path = tmp_path / "model.plan"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def target(tmp_path: Path, fake: FakeRegistry) -> Path:
    """Offer the blob, and a place for it."""
    fake.blobs[NAME, DIGEST] = CONTENT
    return tmp_path / "out" / "model.plan"


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()


def part(target: Path) -> Path:
    return target.with_name("model.plan.part")


def ranges(fake: FakeRegistry) -> list[str | None]:
    return [one.headers.get("Range") for one in fake.asked if DIGEST in one.path and one.method == "GET"]


def refused(registry: Registry, target: Path, described: oci.Document = DESCRIBED) -> EnginefarmError:
    with pytest.raises(EnginefarmError) as caught:
        registry.fetch(described, target)
    assert not target.exists()
    return caught.value


def test_a_blob_comes_whole(registry: Registry, target: Path, heard: list[Event]) -> None:
    registry.fetch(DESCRIBED, target)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["model.plan"]
    assert heard[-1] == StepAdvanced(subject="model", done=SIZE, total=SIZE)


def test_an_empty_blob(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    digest = oci.digest_of(b"")
    fake.blobs[NAME, digest] = b""
    registry.fetch(oci.descriptor("", digest, 0), target)
    assert target.read_bytes() == b""


def test_a_broken_connection_is_taken_up(
    registry: Registry, fake: FakeRegistry, target: Path, heard: list[Event]
) -> None:
    fake.fail(BLOB, Said(status=200, body=CONTENT, cut=300_000), requests.ConnectionError("refused"))
    registry.fetch(DESCRIBED, target)
    assert target.read_bytes() == CONTENT
    assert ranges(fake) == [None, "bytes=300000-", "bytes=300000-"]
    assert heard[-1] == StepAdvanced(subject="model", done=SIZE, total=SIZE)


def test_whoever_gets_further_is_patient(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    first = Said(status=200, body=CONTENT, cut=70_000)
    later = [
        Said(
            status=206,
            body=CONTENT[start:],
            headers={"Content-Range": f"bytes {start}-{SIZE - 1}/{SIZE}"},
            cut=70_000,
        )
        for start in range(70_000, 700_000, 70_000)
    ]
    fake.fail(BLOB, first, *later)
    registry.fetch(DESCRIBED, target)
    assert len(ranges(fake)) == 11


def test_what_an_earlier_attempt_left_is_used(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    part(target).write_bytes(CONTENT[:500_000])
    registry.fetch(DESCRIBED, target)
    assert target.read_bytes() == CONTENT
    assert ranges(fake) == ["bytes=500000-"]


def test_what_an_earlier_attempt_left_whole_needs_no_request(
    registry: Registry, fake: FakeRegistry, target: Path
) -> None:
    part(target).write_bytes(CONTENT)
    registry.fetch(DESCRIBED, target)
    assert target.read_bytes() == CONTENT
    assert ranges(fake) == []


@pytest.mark.parametrize("left", [b"x" * 500_000, CONTENT + b"x"], ids=["other", "longer"])
def test_what_an_earlier_attempt_spoiled_is_fetched_anew(
    registry: Registry, target: Path, left: bytes, heard: list[Event]
) -> None:
    part(target).write_bytes(left)
    registry.fetch(DESCRIBED, target)
    assert target.read_bytes() == CONTENT
    assert isinstance(heard[-1], StepAdvanced)
    assert heard[-1].done == heard[-1].total == SIZE


def test_a_registry_without_ranges_sends_all(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    part(target).write_bytes(CONTENT[:500_000])
    fake.fail(BLOB, Said(status=200, body=CONTENT))
    registry.fetch(DESCRIBED, target)
    assert target.read_bytes() == CONTENT


def test_a_flipped_bit(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    changed = bytearray(CONTENT)
    changed[1000] ^= 1
    fake.blobs[NAME, DIGEST] = bytes(changed)
    error = refused(registry, target)
    assert error.reason is Reason.DOWNLOAD_CORRUPT
    assert error.why == f"expected {DIGEST}\nactual   {oci.digest_of(bytes(changed))}"
    assert not part(target).exists()


def test_more_than_the_manifest_says(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    fake.blobs[NAME, DIGEST] = CONTENT + b"x" * (1 << 20)
    error = refused(registry, target)
    assert error.reason is Reason.SIZE_REFUSED
    assert part(target).stat().st_size == 0


def test_more_than_the_manifest_says_without_a_length(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    fake.fail(BLOB, Said(status=200, body=CONTENT + b"x" * (1 << 20), headers={"Content-Length": "unknown"}))
    error = refused(registry, target)
    assert error.reason is Reason.SIZE_REFUSED
    assert part(target).stat().st_size <= SIZE


@pytest.mark.parametrize("length", ["²", "9" * 5000, "-5"])
def test_a_length_that_is_none(registry: Registry, fake: FakeRegistry, target: Path, length: str) -> None:
    fake.fail(BLOB, Said(status=200, body=CONTENT, headers={"Content-Length": length}))
    registry.fetch(DESCRIBED, target)
    assert target.read_bytes() == CONTENT


def test_less_than_the_manifest_says(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    fake.blobs[NAME, DIGEST] = CONTENT[:-1]
    assert refused(registry, target).reason is Reason.REGISTRY_UNREACHABLE


def test_a_blob_that_is_gone(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    fake.blobs.clear()
    assert refused(registry, target).reason is Reason.ARTIFACT_MISSING


def test_a_download_stops_when_asked(registry: Registry, fake: FakeRegistry, target: Path) -> None:
    fake.rules.append(lambda _: registry.cancel.set())
    assert refused(registry, target).reason is Reason.INTERRUPTED


def test_a_file_arrives_whole(registry: Registry, fake: FakeRegistry, file: Path, heard: list[Event]) -> None:
    assert registry.push(file, DIGEST, SIZE)
    assert fake.blobs[NAME, DIGEST] == CONTENT
    assert heard[-1] == StepAdvanced(subject="model", done=SIZE, total=SIZE)
    assert not registry.push(file, DIGEST, SIZE)


def test_an_empty_file(registry: Registry, fake: FakeRegistry, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert registry.push(tmp_path / "empty", oci.digest_of(b""), 0)
    assert fake.blobs[NAME, oci.digest_of(b"")] == b""


def test_an_upload_goes_on_where_it_broke_off(
    registry: Registry, fake: FakeRegistry, file: Path, heard: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks = [300_000, 200_000]
    monkeypatch.setattr(fake, "break_after", lambda: breaks.pop(0) if breaks else None)
    assert registry.push(file, DIGEST, SIZE)
    assert fake.blobs[NAME, DIGEST] == CONTENT
    sent = [(one.headers.get("Content-Range"), len(one.body)) for one in fake.asked if one.method == "PATCH"]
    # the fake cuts what it got at the break
    assert sent == [
        (None, 300_000),
        (f"300000-{SIZE - 1}", 200_000),
        (f"500000-{SIZE - 1}", SIZE - 500_000),
    ]
    assert heard[-1] == StepAdvanced(subject="model", done=SIZE, total=SIZE)


@pytest.mark.parametrize("status", [404, 416])
def test_an_upload_that_is_forgotten_begins_anew(
    registry: Registry, fake: FakeRegistry, file: Path, status: int
) -> None:
    fake.fail("PATCH", Said(status=status))
    fake.fail("GET .*/blobs/uploads/", Said(status=404))
    assert registry.push(file, DIGEST, SIZE)
    assert fake.blobs[NAME, DIGEST] == CONTENT
    assert len(fake.paths("POST")) == 2


def test_an_answer_that_is_lost_costs_no_second_upload(registry: Registry, fake: FakeRegistry, file: Path) -> None:
    def lose(asked: object) -> Exception | None:
        if str(asked).startswith("PUT") and (NAME, DIGEST) not in fake.blobs:
            fake.blobs[NAME, DIGEST] = CONTENT
            return requests.ReadTimeout("no answer")
        return None

    fake.rules.append(lose)
    assert registry.push(file, DIGEST, SIZE)
    assert len(fake.paths("PATCH")) == 1


def test_a_small_upload_begins_anew_as_a_whole(registry: Registry, fake: FakeRegistry) -> None:
    fake.fail("PUT", Said(status=503))
    assert registry.push(b"small", oci.digest_of(b"small"), 5)
    assert fake.blobs[NAME, oci.digest_of(b"small")] == b"small"


def test_a_file_that_is_gone_is_no_broken_connection(registry: Registry, fake: FakeRegistry, file: Path) -> None:
    file.unlink()
    with pytest.raises(EnginefarmError) as caught:
        registry.push(file, DIGEST, SIZE)
    assert caught.value.reason is Reason.STORE_CORRUPT
    assert fake.blobs == {}


@pytest.mark.parametrize(
    "content", [CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]), CONTENT + b"x", CONTENT[:-1]], ids=["other", "more", "less"]
)
def test_a_file_that_is_not_what_it_claims(registry: Registry, fake: FakeRegistry, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(EnginefarmError) as caught:
        registry.push(file, DIGEST, SIZE)
    assert caught.value.reason is Reason.STORE_CORRUPT
    assert fake.blobs == {}


def test_an_upload_stops_when_asked(registry: Registry, fake: FakeRegistry, file: Path) -> None:
    fake.rules.append(lambda asked: registry.cancel.set() if asked.method == "POST" else None)
    with pytest.raises(EnginefarmError) as caught:
        registry.push(file, DIGEST, SIZE)
    assert caught.value.reason is Reason.INTERRUPTED
    assert fake.blobs == {}


def test_a_registry_that_stays_away(registry: Registry, fake: FakeRegistry, file: Path) -> None:
    fake.fail("PATCH|HEAD|PUT", *[requests.ConnectionError("refused")] * 99)
    with pytest.raises(EnginefarmError) as caught:
        registry.push(file, DIGEST, SIZE)
    assert caught.value.reason is Reason.REGISTRY_UNREACHABLE


def test_an_interrupted_cell_of_a_notebook_stops_what_runs(registry: Registry) -> None:
    """Nobody handles Ctrl-C there: it comes as an exception while transfers are waited for."""
    stopped, main = threading.Event(), threading.get_ident()

    def work() -> None:
        try:
            signal.pthread_kill(main, signal.SIGINT)
            for _ in range(10000):
                registry.push(b"x", oci.digest_of(b"x"), 1)
        except EnginefarmError:
            stopped.set()
            raise

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            registry.together([work])
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.wait(5)
    assert registry.together([lambda: 1]) == [1]
