"""Where two engine files differ: how many bytes, in how many stretches, and where the first of them are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_CHUNK = 1 << 20
_STRETCH = re.compile(rb"[^\x00]+")
# fewer equal bytes in between than this do not part a stretch: an address differs in some of its digits only
_GAP = 8
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Bytes that differ, from `offset` on; a few equal ones in between count as differing."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteDifference:
    """How two files differ. `count`: bytes that differ, as far as both files reach; `first`: the first stretches."""

    sizes: tuple[int, int]
    count: int
    stretches: int
    first: tuple[Stretch, ...]

    def text(self) -> str:
        """Say it in one line."""
        if self.sizes[0] != self.sizes[1]:
            sizes = f"the engines are {self.sizes[0]} and {self.sizes[1]} bytes long"
        else:
            sizes = f"both engines are {self.sizes[0]} bytes long"
        if not self.first:
            return f"no byte differs as far as both reach; {sizes}"
        start = self.first[0].offset
        return f"{self.count} bytes differ in {_plural(self.stretches)}, the first at offset {start}; {sizes}"

    def places(self) -> str:
        """Name the first stretches by offset and length."""
        listed = ", ".join(f"{one.offset}+{one.length}" for one in self.first)
        more = self.stretches - len(self.first)
        return f"offset+length of what differs: {listed}{f' and {more} more' if more else ''}"


def compare_files(left: Path, right: Path) -> ByteDifference | None:
    """Compare two files byte for byte; null where they are the same."""
    sizes = (left.stat().st_size, right.stat().st_size)
    count = stretches = 0
    first: list[Stretch] = []
    last: Stretch | None = None
    offset = 0
    with left.open("rb") as one, right.open("rb") as two:
        while (a := one.read(_CHUNK)) and (b := two.read(_CHUNK)):
            if a != b:
                length = min(len(a), len(b))
                apart = int.from_bytes(a[:length], "big") ^ int.from_bytes(b[:length], "big")
                for match in _STRETCH.finditer(apart.to_bytes(length, "big")):
                    start, end = offset + match.start(), offset + match.end()
                    count += end - start
                    if last is not None and start - (last.offset + last.length) < _GAP:
                        last = Stretch(offset=last.offset, length=end - last.offset)
                    else:
                        first += [last] if last is not None and len(first) < _SHOWN else []
                        last = Stretch(offset=start, length=end - start)
                        stretches += 1
            offset += _CHUNK
    first += [last] if last is not None and len(first) < _SHOWN else []
    same = not stretches and sizes[0] == sizes[1]
    return None if same else ByteDifference(sizes=sizes, count=count, stretches=stretches, first=tuple(first))


def _plural(stretches: int) -> str:
    return "one stretch" if stretches == 1 else f"{stretches} stretches"
