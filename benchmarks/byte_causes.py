"""Says why two engine files of one model differ: for each place what the bytes mean, and in which part they lie.

Standard library only, Python 3.9: it runs inside the images of stacks.
"""

from __future__ import annotations

import hashlib
import re
import struct
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ELF = b"\x7fELF"
DIGITS, HEX = b"0123456789", b"0123456789abcdefABCDEF"
TEXT = re.compile(rb"[\x20-\x7e]{6,}")
# Where Linux on x86-64 puts programs, heaps, libraries and stacks.
LOWEST, HIGHEST = 0x0010_0000_0000, 0x8000_0000_0000
AROUND = 32
DAY_S = 86400
SAMPLES = 4
MOST = 100_000
UNKNOWN = "unknown"
# Causes that need no further question; a number or a hash may follow from one of them, or from something else.
EXPLAINING = ("address", "time", "process", "memory")
# The upper bytes of addresses: programs and heaps, below the worker's line, libraries and stacks.
UPPER = (0x55, 0x56, 0x6A, 0x6B, 0x7E, 0x7F)
# Seconds, milliseconds, microseconds and nanoseconds since 1970.
UNITS = (1, 10**3, 10**6, 10**9)


class Build(NamedTuple):
    """An engine and what is known of the process that built it.

    `maps`: start, end and name of its mappings; `perturb`: what malloc filled memory with, None for nothing.
    """

    content: bytes
    maps: list[tuple[int, int, str]]
    pids: list[int]
    started: float
    ended: float
    perturb: int | None


class Token(NamedTuple):
    """Bytes from `start` to `end` that belong together and differ, and what they are."""

    start: int
    end: int
    cause: str
    meaning: tuple[str, str]


def explain(left: Build, right: Build) -> dict[str, Any]:
    """Compare two engines and say what each difference is. Places are told only for files of equal size."""
    one, two = left.content, right.content
    found: dict[str, Any] = {
        "same": one == two,
        "sizes": [len(one), len(two)],
        "strings": _strings(one, two),
        "gpu_code": _images_in_common(one, two),
    }
    if one == two or len(one) != len(two):
        return found
    tokens = list(islice(_tokens(left, right), MOST))
    causes: dict[str, dict[str, int]] = {}
    for token in tokens:
        entry = causes.setdefault(token.cause, {"places": 0, "bytes": 0})
        entry["places"] += 1
        entry["bytes"] += sum(one[at] != two[at] for at in range(token.start, token.end))
    images = elf_images(one)
    shown: list[dict[str, Any]] = []
    for token in tokens:
        if sum(sample["cause"] == token.cause for sample in shown) < SAMPLES:
            shown.append(_sample(left, right, token, images))
    return {
        **found,
        "bytes": sum(entry["bytes"] for entry in causes.values()),
        "places": len(tokens),
        "causes": causes,
        "explained": len(tokens) < MOST and all(cause.startswith(EXPLAINING) for cause in causes),
        "samples": shown,
    }


def elf_images(content: bytes) -> list[tuple[int, int]]:
    """List the 64-bit ELF files inside some bytes, as start and end."""
    found = []
    at = content.find(ELF)
    while at >= 0:
        end = _elf_end(content, at)
        if end is not None:
            found.append((at, end))
        at = content.find(ELF, end if end is not None else at + 1)
    return found


def section_at(content: bytes, image: tuple[int, int], at: int) -> str:
    """Name the section of an ELF image that holds a place; empty where it is none."""
    start = image[0]
    headers, size, count, names = _section_table(content, start)
    table = [struct.unpack_from("<IIQQQQ", content, start + headers + index * size) for index in range(count)]
    for name, kind, _, _, offset, length in table:
        if kind != 8 and start + offset <= at < start + offset + length and length:
            begin = start + table[names][4] + name
            return content[begin : content.index(b"\0", begin)].decode("latin-1")
    return ""


def _elf_end(content: bytes, start: int) -> int | None:
    if len(content) < start + 64 or content[start + 4] != 2:
        return None
    headers, size, count, names = _section_table(content, start)
    end = headers + size * count
    if size != 64 or not count or names >= count or start + end > len(content):
        return None
    for index in range(count):
        _, kind, _, _, offset, length = struct.unpack_from("<IIQQQQ", content, start + headers + index * size)
        if kind != 8:  # SHT_NOBITS takes no room
            end = max(end, offset + length)
    return start + end if start + end <= len(content) else None


def _section_table(content: bytes, start: int) -> tuple[int, int, int, int]:
    headers = struct.unpack_from("<Q", content, start + 40)[0]
    size, count, names = struct.unpack_from("<HHH", content, start + 58)
    return headers, size, count, names


def _tokens(left: Build, right: Build) -> Iterator[Token]:
    at, one, two = 0, left.content, right.content
    while at < len(one):
        at = _next_difference(one, two, at)
        if at < 0:
            return
        token = _token(left, right, at)
        yield token
        at = token.end


def _next_difference(one: bytes, two: bytes, at: int) -> int:
    step = 1 << 16
    while at < len(one):
        if one[at : at + step] != two[at : at + step]:
            return next(place for place in range(at, len(one)) if one[place] != two[place])
        at += step
    return -1


def _token(left: Build, right: Build, at: int) -> Token:
    tokens = [attempt(left, right, at) for attempt in (_perturbed, _decimal, _hexadecimal, _binary)]
    found = [token for token in tokens if token is not None]
    if found:
        return next((token for token in found if token.cause.startswith(EXPLAINING)), found[0])
    end = at
    while end < len(left.content) and left.content[end] != right.content[end]:
        end += 1
    return Token(at, end, UNKNOWN, ("", ""))


def _perturbed(left: Build, right: Build, at: int) -> Token | None:
    """See memory that nobody wrote to: it holds what malloc was told to fill it with."""
    fills = [{one.perturb, one.perturb ^ 0xFF} if one.perturb is not None else set() for one in (left, right)]
    end = at
    while end < len(left.content) and left.content[end] in fills[0] and right.content[end] in fills[1]:
        end += 1
    return Token(at, end, "memory that was never written", ("filling", "filling")) if end > at else None


def _decimal(left: Build, right: Build, at: int) -> Token | None:
    bounds = _run(left.content, right.content, at, DIGITS)
    if bounds is None or bounds[1] - bounds[0] < 4:
        return None
    values = [int(one.content[bounds[0] : bounds[1]]) for one in (left, right)]
    return Token(*bounds, *_meaning(left, right, values, "decimal text"))


def _hexadecimal(left: Build, right: Build, at: int) -> Token | None:
    bounds = _run(left.content, right.content, at, HEX)
    if bounds is None or bounds[1] - bounds[0] < 6:
        return None
    values = [int(one.content[bounds[0] : bounds[1]], 16) for one in (left, right)]
    return Token(*bounds, *_meaning(left, right, values, "hexadecimal text"))


def _run(one: bytes, two: bytes, at: int, alphabet: bytes) -> tuple[int, int] | None:
    if one[at] not in alphabet or two[at] not in alphabet:
        return None
    start = end = at
    while start > 0 and one[start - 1] in alphabet and two[start - 1] in alphabet:
        start -= 1
    while end < len(one) and one[end] in alphabet and two[end] in alphabet:
        end += 1
    return start, end


def _binary(left: Build, right: Build, at: int) -> Token | None:
    for size, code in ((8, "<Q"), (4, "<I")):
        # aligned first
        for start in sorted(range(max(0, at - size + 1), at + 1), key=lambda place: place % size):
            if start + size > len(left.content):
                continue
            values = [struct.unpack_from(code, one.content, start)[0] for one in (left, right)]
            cause, meaning = _meaning(left, right, values, f"{size} bytes")
            if not cause.startswith("number"):
                return Token(start, start + size, cause, meaning)
    return None


def _meaning(left: Build, right: Build, values: list[int], form: str) -> tuple[str, tuple[str, str]]:
    """Say what two values are, if both are the same kind of thing."""
    told = f"{values[0]}", f"{values[1]}"
    both = (left, values[0]), (right, values[1])
    places = [_mapping(build, value) for build, value in both] if form != "4 bytes" else ["", ""]
    # what was given back before the end is in no mapping any more
    if all(places) or all(LOWEST <= value < HIGHEST and value >> 40 in UPPER for value in values):
        kind = places[0] if places[0] and places[0] == places[1] else "no common mapping"
        return f"address as {form}, {kind}", (f"{values[0]:#x}", f"{values[1]:#x}")
    if all(_is_time(build, value) for build, value in both):
        return f"time as {form}", told
    if all(value in build.pids for build, value in both):
        return f"process or thread id as {form}", told
    return f"number as {form}", told


def _mapping(build: Build, value: int) -> str:
    for start, end, name in build.maps:
        if start <= value < end:
            return name.rpartition("/")[2] or "anonymous memory"
    return ""


def _is_time(build: Build, value: int) -> bool:
    first, last = build.started - DAY_S, build.ended + DAY_S
    return any(first <= value / unit <= last for unit in UNITS)


def _sample(left: Build, right: Build, token: Token, images: list[tuple[int, int]]) -> dict[str, Any]:
    inside = next((image for image in images if image[0] <= token.start < image[1]), None)
    before = [match.group().decode() for match in TEXT.finditer(left.content[max(0, token.start - 300) : token.start])]
    start, end = max(0, token.start - AROUND), token.end + AROUND
    return {
        "offset": token.start,
        "length": token.end - token.start,
        "cause": token.cause,
        "values": list(token.meaning),
        "elf": None if inside is None else [inside[0], inside[1] - inside[0]],
        "section": "" if inside is None else section_at(left.content, inside, token.start),
        "text_before": before[-3:],
        "hex": [one.content[start:end].hex() for one in (left, right)],
        "ascii": [_printable(one.content[start:end]) for one in (left, right)],
    }


def _printable(content: bytes) -> str:
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in content)


def _strings(one: bytes, two: bytes) -> dict[str, Any]:
    sets = [{match.group() for match in TEXT.finditer(content)} for content in (one, two)]
    alone = [sorted(mine - other) for mine, other in (sets, sets[::-1])]
    shown = [[text[:120].decode() for text in texts[:20]] for texts in alone]
    return {"common": len(sets[0] & sets[1]), "alone": [len(texts) for texts in alone], "first": shown}


def _images_in_common(one: bytes, two: bytes) -> dict[str, Any]:
    digests = [[hashlib.sha256(content[a:b]).hexdigest() for a, b in elf_images(content)] for content in (one, two)]
    return {"images": [len(items) for items in digests], "identical": len(set(digests[0]) & set(digests[1]))}
