"""What the bytes that differ between two engines mean."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from benchmarks.byte_causes import Build, elf_images, explain, section_at

NOW = 1_790_000_000.0
HEAP = (0x5555_0000_0000, 0x5555_1000_0000, "[heap]")
STACK = (0x7FFD_0000_0000, 0x7FFD_1000_0000, "[stack]")
LOW_HEAP = (0x0E00_0000, 0x0F00_0000, "[heap]")
LIBRARY = (0x7F12_0000_0000, 0x7F12_1000_0000, "/opt/lib/libnvinfer.so.8")


def build(content: bytes, **changes: Any) -> Build:
    known: dict[str, Any] = {
        "maps": [HEAP, STACK, LOW_HEAP, LIBRARY],
        "pids": [4000, 70000],
        "started": NOW,
        "ended": NOW + 10,
        "perturb": None,
    }
    return Build(content, **{**known, **changes})


def causes(left: bytes, right: bytes, **changes: Any) -> dict[str, int]:
    found = explain(build(b"begin " + left + b" end"), build(b"begin " + right + b" end", **changes))
    return {name: entry["places"] for name, entry in found["causes"].items()}


@pytest.mark.parametrize(
    ("left", "right", "cause"),
    [
        (b"'%d'.1" % 0x5555_0000_1000, b"'%d'.1" % 0x5555_0500_2000, "address as decimal text, [heap]"),
        (b"prog_%d_cu" % 0x7FFD_0000_1234, b"prog_%d_cu" % 0x7FFD_0100_1234, "address as decimal text, [stack]"),
        (b"'%d'.1" % 0x0E00_1000, b"'%d'.1" % 0x0E70_1000, "address as decimal text, [heap]"),
        (b"0x%x" % 0x7F12_0000_0010, b"0x%x" % 0x7F12_0100_0010, "address as hexadecimal text, libnvinfer.so.8"),
        (struct.pack("<Q", 0x5555_0000_0010), struct.pack("<Q", 0x5555_0000_0230), "address as 8 bytes, [heap]"),
        # given back meanwhile: not mapped, but nothing else looks like it
        (b"0x7f5500000010", b"0x7f9900000230", "address as hexadecimal text, no common mapping"),
        (struct.pack("<I", int(NOW)), struct.pack("<I", int(NOW) + 7), "time as 4 bytes"),
        (struct.pack("<Q", int(NOW * 1e6)), struct.pack("<Q", int(NOW * 1e6) + 7_000_000), "time as 8 bytes"),
        (b"at %d s" % NOW, b"at %d s" % (NOW + 7), "time as decimal text"),
        (struct.pack("<I", 4000), struct.pack("<I", 70000), "process or thread id as 4 bytes"),
    ],
)  # fmt: skip
def test_what_explains_a_difference(left: bytes, right: bytes, cause: str) -> None:
    assert causes(left, right) == {cause: 1}
    assert explain(build(left), build(right))["explained"] is True


@pytest.mark.parametrize(
    ("left", "right", "cause"),
    [
        (b"id 123456789 x", b"id 987654321 x", "number as decimal text"),
        (b"_cu_6d1458dd_", b"_cu_0fa458dd_", "number as hexadecimal text"),
        (b"\x80\x81\x82", b"\x90\x91\x92", "unknown"),
    ],
)
def test_what_explains_nothing(left: bytes, right: bytes, cause: str) -> None:
    assert causes(left, right) == {cause: 1}
    assert explain(build(left), build(right))["explained"] is False


def test_memory_that_nobody_wrote_to() -> None:
    left, right = bytes([0x55 ^ 0xFF] * 5), bytes([0x2A ^ 0xFF] * 5)
    found = explain(build(left, perturb=0x55), build(right, perturb=0x2A))
    assert found["causes"] == {"memory that was never written": {"places": 1, "bytes": 5}}
    assert explain(build(left), build(right))["causes"] == {"unknown": {"places": 1, "bytes": 5}}


def test_every_differing_byte_is_counted_once() -> None:
    left = b"".join(b"'%d'.1 and text " % (0x5555_0000_0000 + 16 * number) for number in range(50))
    right = b"".join(b"'%d'.1 and text " % (0x5555_0300_0000 + 16 * number) for number in range(50))
    found = explain(build(left), build(right))
    assert found["places"] == 50
    assert found["bytes"] == sum(one != two for one, two in zip(left, right, strict=True))
    assert len(found["samples"]) == 4
    assert found["samples"][0]["values"] == ["0x555500000000", "0x555503000000"]


def test_a_place_is_shown_with_what_is_around_it() -> None:
    found = explain(build(b"layer norm \0'93824992236000'.1"), build(b"layer norm \0'93824992299999'.1"))
    (sample,) = found["samples"]
    assert (sample["offset"], sample["length"]) == (13, 14)
    assert sample["text_before"] == ["layer norm "]
    assert sample["ascii"][0] == "layer norm .'93824992236000'.1"
    assert bytes.fromhex(sample["hex"][1]).startswith(b"layer norm")


def test_same_and_other_sizes() -> None:
    same = explain(build(b"one string here"), build(b"one string here"))
    assert (same["same"], same["sizes"], "causes" in same) == (True, [15, 15], False)
    other = explain(build(b"one string here\0only left"), build(b"one string here"))
    assert (other["same"], "causes" in other) == (False, False)
    assert other["strings"] == {"common": 1, "alone": [1, 0], "first": [["only left"], []]}


def elf(text: bytes) -> bytes:
    """Make a 64-bit ELF file with a section .text and its names."""
    names = b"\0.text\0.shstrtab\0"
    data = 64
    table = data + len(text) + len(names)
    header = (
        b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 1, 190, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 2)
    )
    sections = [
        bytes(64),
        struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, data, len(text), 0, 0, 0, 0),
        struct.pack("<IIQQQQIIQQ", 7, 3, 0, 0, data + len(text), len(names), 0, 0, 0, 0),
    ]
    return header + text + names + b"".join(sections)


def test_gpu_code_is_found_and_its_sections_named() -> None:
    one, two = elf(b"first code......"), elf(b"second code.....")
    content = b"head" + one + b"between" + two + b"\x7fELF cut off"
    images = elf_images(content)
    assert images == [(4, 4 + len(one)), (4 + len(one) + 7, 4 + len(one) + 7 + len(two))]
    assert section_at(content, images[0], 4 + 64) == ".text"
    assert section_at(content, images[1], images[1][0] + 64 + 20) == ".shstrtab"
    assert section_at(content, images[0], 4) == ""


def test_a_difference_inside_gpu_code() -> None:
    one = b"head" + elf(b"'93824992236000'") + elf(b"same")
    two = b"head" + elf(b"'93824992299999'") + elf(b"same")
    found = explain(build(one), build(two))
    assert found["gpu_code"] == {"images": [2, 2], "identical": 1}
    (sample,) = found["samples"]
    assert (sample["elf"][0], sample["section"]) == (4, ".text")
