"""Where two engine files differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.engine_bytes import ByteDifference, Stretch, compare_files

CHUNK = 1 << 20


def compare(tmp_path: Path, left: bytes, right: bytes) -> ByteDifference | None:
    (tmp_path / "left").write_bytes(left)
    (tmp_path / "right").write_bytes(right)
    return compare_files(tmp_path / "left", tmp_path / "right")


def changed(content: bytes, *offsets: int) -> bytes:
    copy = bytearray(content)
    for offset in offsets:
        copy[offset] ^= 0x80
    return bytes(copy)


@pytest.mark.parametrize("content", [b"", b"engine", bytes(CHUNK), bytes(2 * CHUNK + 1)])
def test_same_files(tmp_path: Path, content: bytes) -> None:
    assert compare(tmp_path, content, content) is None


def test_bytes_are_counted_and_near_ones_are_one_stretch(tmp_path: Path) -> None:
    content = bytes(1000)
    found = compare(tmp_path, content, changed(content, 10, 12, 20, 500))
    assert found == ByteDifference(
        sizes=(1000, 1000),
        count=4,
        stretches=2,
        first=(Stretch(offset=10, length=11), Stretch(offset=500, length=1)),
    )
    assert found.text() == "4 bytes differ in 2 stretches, the first at offset 10; both engines are 1000 bytes long"
    assert found.places() == "offset+length of what differs: 10+11, 500+1"


def test_a_stretch_goes_on_over_a_border_of_chunks(tmp_path: Path) -> None:
    content = bytes(2 * CHUNK)
    found = compare(tmp_path, content, changed(content, CHUNK - 1, CHUNK, CHUNK + 3))
    assert found is not None
    assert (found.count, found.stretches) == (3, 1)
    assert found.first == (Stretch(offset=CHUNK - 1, length=5),)


def test_only_the_first_stretches_are_listed(tmp_path: Path) -> None:
    content = bytes(10_000)
    found = compare(tmp_path, content, changed(content, *range(0, 10_000, 1000)))
    assert found is not None
    assert (found.stretches, len(found.first)) == (10, 5)
    assert found.places().endswith("4000+1 and 5 more")


def test_all_bytes(tmp_path: Path) -> None:
    found = compare(tmp_path, bytes(CHUNK + 7), b"\xff" * (CHUNK + 7))
    assert found is not None
    assert (found.count, found.first) == (CHUNK + 7, (Stretch(offset=0, length=CHUNK + 7),))
    assert "in one stretch" in found.text()


@pytest.mark.parametrize(("left", "right", "count"), [(b"abc", b"abcd", 0), (b"abcd", b"abX", 1), (b"", b"a", 0)])
def test_other_sizes(tmp_path: Path, left: bytes, right: bytes, count: int) -> None:
    found = compare(tmp_path, left, right)
    assert found is not None
    assert (found.sizes, found.count) == ((len(left), len(right)), count)
    assert f"the engines are {len(left)} and {len(right)} bytes long" in found.text()


def test_a_longer_file_that_begins_the_same(tmp_path: Path) -> None:
    content = bytes(3 * CHUNK)
    found = compare(tmp_path, content, content[:CHUNK])
    assert found is not None
    assert (found.count, found.first) == (0, ())
    assert found.text().startswith("no byte differs as far as both reach")
