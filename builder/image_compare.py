"""Compares two builds of one image, down to the first file that differs."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO, cast

import zstandard

from builder.image_layout import ImageLayout

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where two images part. `layer` counts from 1; `path` and `field` are null where a layer's bytes alone differ."""

    layer: int | None
    made_by: str | None
    path: str | None
    field: str | None
    first: str
    second: str

    def text(self) -> str:
        """Say it in one sentence."""
        if self.layer is None:
            return f"{self.field}: {self.first} and {self.second}"
        where = f"layer {self.layer} ({self.made_by})"
        if self.path is None:
            return f"{where}: {self.field} {self.first} and {self.second}"
        return f"{where}, {self.path}: {self.field} {self.first} and {self.second}"


def first_difference(left: ImageLayout, right: ImageLayout) -> Difference | None:
    """Return the first difference of two images; null where their digests are equal."""
    if left.digest == right.digest:
        return None
    steps = [step.get("created_by", "") for step in left.config().get("history", ()) if not step.get("empty_layer")]
    pairs = zip_longest(left.layers(), right.layers())
    for number, (one, other) in enumerate(pairs, 1):
        made_by = steps[number - 1] if number <= len(steps) else "beyond the first image's last"
        if one is None or other is None:
            return _whole(number, made_by, "presence", one is not None, other is not None)
        if one[0] != other[0]:
            found = _in_layer(number, made_by, one[3], other[3])
            return found or _whole(number, made_by, "compression", one[0], other[0])
    for name in ("created", "config", "history"):
        ours, theirs = left.config().get(name), right.config().get(name)
        if ours != theirs:
            return _whole(None, None, f"configuration, {name}", ours, theirs)
    return _whole(None, None, "manifest", left.digest, right.digest)


def _whole(layer: int | None, made_by: str | None, field: str, first: object, second: object) -> Difference:
    return Difference(layer=layer, made_by=made_by, path=None, field=field, first=str(first), second=str(second))


def _in_layer(number: int, made_by: str, left: Path, right: Path) -> Difference | None:
    with _entries(left) as ours, _entries(right) as theirs:
        for one, other in zip_longest(ours, theirs):
            if one == other:
                continue
            if one is None or other is None or one["path"] != other["path"]:
                first, second = (entry["path"] if entry else "nothing" for entry in (one, other))
                return Difference(
                    layer=number, made_by=made_by, path=first, field="order of files,", first=first, second=second
                )
            field = next(name for name in one if one[name] != other[name])
            return Difference(
                layer=number, made_by=made_by, path=one["path"], field=field, first=one[field], second=other[field]
            )
    return None


@contextmanager
def _entries(layer: Path) -> Iterator[Iterator[dict[str, str]]]:
    with _plain(layer) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        yield _read(archive)


def _read(archive: tarfile.TarFile) -> Iterator[dict[str, str]]:
    for member in archive:
        content = hashlib.sha256()
        file = archive.extractfile(member) if member.isreg() else None
        while file is not None and (chunk := file.read(_CHUNK)):
            content.update(chunk)
        yield {
            "path": member.name,
            "type": member.type.decode(),
            "mode": oct(member.mode),
            "owner": f"{member.uid}:{member.gid}",
            "owner's name": f"{member.uname}:{member.gname}",
            "device": f"{member.devmajor}:{member.devminor}",
            "time": str(member.mtime),
            "size": str(member.size),
            "link": member.linkname,
            "content": content.hexdigest(),
            "attributes": str(sorted(member.pax_headers.items())),
        }


@contextmanager
def _plain(layer: Path) -> Iterator[IO[bytes]]:
    with layer.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic == b"\x28\xb5\x2f\xfd":
            with zstandard.ZstdDecompressor().stream_reader(file) as reader:
                yield cast("IO[bytes]", io.BufferedReader(cast("io.RawIOBase", reader), _CHUNK))
        elif magic[:2] == b"\x1f\x8b":
            with gzip.open(file) as stream:
                yield cast("IO[bytes]", stream)
        else:
            yield file
