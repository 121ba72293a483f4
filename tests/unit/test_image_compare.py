"""Two builds of one image: equal, or different from a certain layer, file and field on."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import zstandard

from builder import oci
from builder.image_compare import Difference, first_difference
from builder.image_layout import ImageLayout

Pack = Callable[[bytes], bytes]
TIME = 1_767_225_600
PACKS: dict[str, Pack] = {
    "plain": bytes,
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "zstd": zstandard.ZstdCompressor().compress,
}
packed = pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS.keys())


def file(name: str, content: bytes = b"x", **changes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """Describe a member of a layer."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(content), TIME, 0o644
    for field, value in changes.items():
        setattr(info, field, value)
    return info, content


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Write a layer."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


BASE = layer(file("etc/os-release", b"NAME=x"))
PARTS = (file("opt/stack/a.py"), file("opt/stack/b.py", b"y" * 3000), file("opt/stack/c.py"))
HISTORY = [
    {"created_by": "base"},
    {"created_by": "ENV A=1", "empty_layer": True},
    {"created_by": "COPY /opt/stack"},
]


def image(folder: Path, layers: Sequence[bytes], pack: Pack = bytes, **changes: Any) -> ImageLayout:
    """Make an image of packed layers; `changes` replace parts of its configuration."""
    made = ImageLayout(folder)
    listed = [oci.descriptor("application/x", *made.add(pack(content))) for content in layers]
    config = {"created": "2026-01-01T00:00:00Z", "config": {"User": "65534"}, "history": HISTORY} | changes
    named = oci.descriptor("application/y", *made.add(json.dumps(config).encode()))
    made.finish(*made.add(json.dumps({"config": named, "layers": listed}).encode()))
    return made


def compare(
    folder: Path, left: Sequence[bytes], right: Sequence[bytes], pack: Pack = bytes, **changes: Any
) -> Difference | None:
    """Compare an image with another, which has the changes."""
    return first_difference(image(folder / "left", left, pack), image(folder / "right", right, pack, **changes))


def replaced(number: int, *members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """Write the layer of parts with a member replaced."""
    return layer(*PARTS[:number], *members, *PARTS[number + 1 :])


@packed
def test_equal_images(tmp_path: Path, pack: Pack) -> None:
    assert compare(tmp_path, [BASE, layer(*PARTS)], [BASE, layer(*PARTS)], pack) is None


@packed
@pytest.mark.parametrize(
    ("member", "field", "first", "second"),
    [
        (file("opt/stack/b.py", b"y" * 3000, mtime=TIME - 1), "time", str(TIME), str(TIME - 1)),
        (file("opt/stack/b.py", b"y" * 3000, mode=0o755), "mode", "0o644", "0o755"),
        (file("opt/stack/b.py", b"y" * 3000, uid=1, gid=2), "owner", "0:0", "1:2"),
        (file("opt/stack/b.py", b"y" * 2999), "size", "3000", "2999"),
        (file("opt/stack/b.py", b"z" * 3000), "content", "", ""),
        (file("opt/stack/b.py", b"", type=tarfile.SYMTYPE, linkname="a.py"), "type", "0", "2"),
        (
            file("opt/stack/b.py", b"y" * 3000, pax_headers={"SCHILY.xattr.user.a": "1"}),
            "attributes",
            "[]",
            "[('SCHILY.xattr.user.a', '1')]",
        ),
    ],
    ids=["time", "mode", "owner", "size", "content", "type", "attributes"],
)
def test_first_field_that_differs_is_named(
    tmp_path: Path, pack: Pack, member: tuple[tarfile.TarInfo, bytes], field: str, first: str, second: str
) -> None:
    found = compare(tmp_path, [BASE, layer(*PARTS)], [BASE, replaced(1, member)], pack)
    assert found is not None
    assert (found.layer, found.made_by, found.path) == (2, "COPY /opt/stack", "opt/stack/b.py")
    assert found.field == field
    if field == "content":
        assert len(found.first) == len(found.second) == 64
        assert found.first != found.second
    else:
        assert (found.first, found.second) == (first, second)


def test_link_that_points_elsewhere(tmp_path: Path) -> None:
    links = [file("opt/python", b"", type=tarfile.SYMTYPE, linkname=name) for name in ("3.10", "3.11")]
    found = compare(tmp_path, [layer(links[0])], [layer(links[1])])
    assert found == Difference(layer=1, made_by="base", path="opt/python", field="link", first="3.10", second="3.11")


def test_lowest_layer_comes_first(tmp_path: Path) -> None:
    other = layer(file("etc/os-release", b"NAME=y"))
    found = compare(tmp_path, [BASE, layer(*PARTS)], [other, layer(*PARTS[:1])])
    assert found is not None
    assert (found.layer, found.made_by, found.path, found.field) == (1, "base", "etc/os-release", "content")


def test_first_file_of_a_layer_comes_first(tmp_path: Path) -> None:
    other = layer(PARTS[0], file("opt/stack/b.py", b"1"), file("opt/stack/c.py", b"2"))
    found = compare(tmp_path, [layer(*PARTS)], [other])
    assert found is not None
    assert found.path == "opt/stack/b.py"


@packed
@pytest.mark.parametrize(
    ("members", "first", "second"),
    [
        ((PARTS[0], PARTS[2]), "opt/stack/b.py", "opt/stack/c.py"),
        ((PARTS[1], PARTS[0], PARTS[2]), "opt/stack/a.py", "opt/stack/b.py"),
        ((*PARTS[:2], file("opt/stack/b2.py"), PARTS[2]), "opt/stack/c.py", "opt/stack/b2.py"),
        (PARTS[:2], "opt/stack/c.py", "nothing"),
        ((*PARTS, file("opt/stack/d.py")), "nothing", "opt/stack/d.py"),
    ],
    ids=["missing", "order", "extra", "missing at the end", "extra at the end"],
)
def test_other_files(
    tmp_path: Path, pack: Pack, members: tuple[tuple[tarfile.TarInfo, bytes], ...], first: str, second: str
) -> None:
    found = compare(tmp_path, [BASE, layer(*PARTS)], [BASE, layer(*members)], pack)
    assert found is not None
    assert (found.layer, found.made_by, found.first, found.second) == (2, "COPY /opt/stack", first, second)
    assert "order of files" in (found.field or "")


@pytest.mark.parametrize(("left", "right"), [(2, 1), (1, 2)])
def test_other_number_of_layers(tmp_path: Path, left: int, right: int) -> None:
    layers = [BASE, layer(*PARTS)]
    found = compare(tmp_path, layers[:left], layers[:right])
    assert found is not None
    assert (found.layer, found.path, found.field) == (2, None, "presence")
    assert (found.first, found.second) == (str(left == 2), str(right == 2))


def test_layer_beyond_the_history(tmp_path: Path) -> None:
    found = compare(tmp_path, [BASE, BASE], [BASE, BASE, BASE])
    assert found is not None
    assert (found.layer, found.made_by) == (3, "beyond the first image's last")


@pytest.mark.parametrize(("left", "right"), [("plain", "gzip"), ("gzip", "zstd"), ("zstd", "plain")])
def test_same_files_packed_otherwise(tmp_path: Path, left: str, right: str) -> None:
    one, other = image(tmp_path / "left", [BASE], PACKS[left]), image(tmp_path / "right", [BASE], PACKS[right])
    found = first_difference(one, other)
    assert found == Difference(
        layer=1,
        made_by="base",
        path=None,
        field="compression",
        first=oci.digest_of(PACKS[left](BASE)),
        second=oci.digest_of(PACKS[right](BASE)),
    )


def test_zstd_in_several_frames_is_read_to_its_end(tmp_path: Path) -> None:
    def frames(content: bytes) -> bytes:
        pack, half = zstandard.ZstdCompressor().compress, 1536
        return pack(content[:half]) + pack(content[half:])

    other = replaced(2, file("opt/stack/c.py", b"z"))
    found = compare(tmp_path, [layer(*PARTS)], [other], frames)
    assert found is not None
    assert (found.path, found.field) == ("opt/stack/c.py", "content")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("created", "2026-02-02T00:00:00Z"),
        ("config", {"User": "root"}),
        ("history", [*HISTORY, {"created_by": "USER", "empty_layer": True}]),
    ],
)
def test_other_configuration(tmp_path: Path, name: str, value: Any) -> None:
    found = compare(tmp_path, [BASE], [BASE], **{name: value})
    assert found is not None
    assert (found.layer, found.path, found.field) == (None, None, f"configuration, {name}")
    assert found.second == str(value)


def test_what_is_left_is_the_manifest(tmp_path: Path) -> None:
    left, right = image(tmp_path / "left", [BASE]), image(tmp_path / "right", [BASE], author="x")
    found = first_difference(left, right)
    assert found is not None
    assert (found.field, found.first, found.second) == ("manifest", left.digest, right.digest)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "layer 2 (RUN pip), opt/a.py: mode 0o644 and 0o755"),
        ({"path": None, "field": "compression"}, "layer 2 (RUN pip): compression 0o644 and 0o755"),
        ({"layer": None, "made_by": None, "path": None, "field": "manifest"}, "manifest: 0o644 and 0o755"),
    ],
)
def test_difference_is_one_sentence(changes: dict[str, Any], text: str) -> None:
    parts: dict[str, Any] = {
        "layer": 2,
        "made_by": "RUN pip",
        "path": "opt/a.py",
        "field": "mode",
        "first": "0o644",
        "second": "0o755",
    }
    assert Difference(**(parts | changes)).text() == text
