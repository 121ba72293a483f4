"""Unpacking an image: what is written, what is refused, and that nothing half done looks whole."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from builder import image_unpack
from builder.errors import EnginefarmError, Reason
from builder.events import Event, StepAdvanced, StepFinished, StepStarted
from builder.image_record import ImageRecord
from builder.image_unpack import Mark, extract, read_mark, read_record, save_record, unpack_image
from tests.artifacts import refusal
from tests.unit.test_environments import make_stack

RECORD = ImageRecord(
    stack="export",
    variant=None,
    tag="enginefarm/export:1",
    inputs="1" * 64,
    digest=f"sha256:{'2' * 64}",
    config_digest=f"sha256:{'3' * 64}",
    platform="linux/amd64",
    base=f"sha256:{'4' * 64}",
    standin=False,
    python="3.11",
    layers=[],
    wheels={},
    checked={},
)
Entry = tuple[str, bytes | str | None, int]


def archive(*entries: tuple[tarfile.TarInfo, bytes]) -> io.BytesIO:
    """Make an archive."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for info, content in entries:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    stream.seek(0)
    return stream


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644) -> tarfile.TarInfo:
    """Describe a member of an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.mtime = 1_700_000_000
    return info


def system() -> io.BytesIO:
    """Make an image of few files, of every kind."""
    return archive(
        (entry("usr", tarfile.DIRTYPE, mode=0o755), b""),
        (entry("usr/bin", tarfile.DIRTYPE, mode=0o555), b""),
        (entry("usr/bin/tool", mode=0o4755), b"tool"),
        (entry("usr/bin/same", tarfile.LNKTYPE, "usr/bin/tool", 0o4755), b""),
        (entry("bin", tarfile.SYMTYPE, "usr/bin"), b""),
        (entry("etc/away", tarfile.SYMTYPE, "/proc/self/mounts"), b""),
        (entry("tmp", tarfile.DIRTYPE, mode=0o1777), b""),
        (entry("dev/null", tarfile.CHRTYPE), b""),
        (entry("dev/disk", tarfile.BLKTYPE), b""),
        (entry("run/pipe", tarfile.FIFOTYPE), b""),
        (entry("./odd/name"), b"odd"),
    )


def test_files_of_every_kind(tmp_path: Path) -> None:
    extract(system(), tmp_path)
    tool = tmp_path / "usr" / "bin" / "tool"
    assert (tool.read_bytes(), stat.S_IMODE(tool.stat().st_mode)) == (b"tool", 0o4755)
    assert (tool.parent / "same").samefile(tool)
    assert (tmp_path / "bin").readlink() == Path("usr/bin")
    # a link may lead anywhere: inside the image it leads elsewhere
    assert (tmp_path / "etc" / "away").readlink() == Path("/proc/self/mounts")
    assert stat.S_IMODE((tmp_path / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE((tmp_path / "usr" / "bin").stat().st_mode) == 0o555
    assert [path for path in tmp_path.rglob("*") if path.name in {"null", "disk", "pipe"}] == []
    assert tool.stat().st_mtime == 1_700_000_000
    (tmp_path / "usr" / "bin").chmod(0o755)


@pytest.mark.parametrize(
    "members",
    [
        [(entry("../outside"), b"x")],
        [(entry("in/../../outside"), b"x")],
        [(entry("in/../victim"), b"x")],
        [(entry("link", tarfile.SYMTYPE, "../.."), b""), (entry("link/outside"), b"x")],
        [(entry("link", tarfile.SYMTYPE, "/etc"), b""), (entry("link/deep/outside"), b"x")],
        [(entry("same", tarfile.LNKTYPE, "../victim"), b"")],
        [(entry("link", tarfile.SYMTYPE, ".."), b""), (entry("same", tarfile.LNKTYPE, "link/victim"), b"")],
    ],
)
def test_nothing_is_written_outside(tmp_path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    (tmp_path / "victim").write_text("kept", encoding="utf-8")
    top = tmp_path / "root"
    top.mkdir()
    error = refusal(lambda: extract(archive(*members), top))
    assert (error.reason, "outside" in error.what) == (Reason.IMAGE_INVALID, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root", "victim"]


def test_an_absolute_name_is_outside(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    top = tmp_path / "root"
    top.mkdir()
    assert refusal(lambda: extract(archive((entry(str(victim)), b"x")), top)).reason is Reason.IMAGE_INVALID
    assert not victim.exists()


@pytest.mark.parametrize("cut", [100, 700, 1300])
def test_an_archive_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    whole = archive((entry("a"), b"a" * 600), (entry("b"), b"b" * 600)).getvalue()
    assert refusal(lambda: extract(io.BytesIO(whole[:cut]), tmp_path)).reason is Reason.IMAGE_INVALID


class FakeEngine:
    """An engine with one image, which is handed out in pieces. `pieces`: how many before the connection breaks."""

    def __init__(self, content: bytes, pieces: int | None = None) -> None:
        self.content = content
        self.pieces = pieces
        self.removed: list[str] = []
        self.addresses: list[str] = []
        api = SimpleNamespace(base_url="http+docker://localhost", api_version="1.45", get=self.get)
        containers = SimpleNamespace(create=lambda tag, command: SimpleNamespace(id=f"container-of-{tag}"))
        self.client = SimpleNamespace(api=api, containers=containers)

    def image(self, tag: str) -> Any:
        env = ["PATH=/bin", "LD_LIBRARY_PATH=/a:/b=c", "EMPTY="]
        return SimpleNamespace(attrs={"Config": {"Env": env}}) if tag == RECORD.tag else None

    def remove(self, container: Any) -> None:
        self.removed.append(container.id)

    @contextmanager
    def get(self, address: str, *, stream: bool) -> Iterator[Any]:
        assert stream
        self.addresses.append(address)
        yield SimpleNamespace(raise_for_status=lambda: None, iter_content=self.chunks)

    def chunks(self, size: int) -> Iterator[bytes]:
        for number, start in enumerate(range(0, len(self.content), 1000)):
            if number == self.pieces:
                raise requests.ConnectionError("the engine went away")
            yield self.content[start : start + 1000]


@pytest.fixture
def events() -> list[Event]:
    """What was told."""
    return []


def unpack(engine: Any, tmp_path: Path, events: list[Event], cancel: threading.Event | None = None) -> Path:
    """Unpack the image of a stack with the name export."""
    stack = make_stack(tmp_path / "images" / "export")
    return unpack_image(engine, stack, RECORD, tmp_path / "roots", cancel or threading.Event(), events.append)


def test_a_root_and_its_record(tmp_path: Path, events: list[Event]) -> None:
    engine = FakeEngine(system().getvalue())
    root = unpack(engine, tmp_path, events)
    roots = tmp_path / "roots"
    assert sorted(path.name for path in roots.iterdir()) == ["export", "export.json"]
    assert read_record(roots, "export") == RECORD
    env = {"PATH": "/bin", "LD_LIBRARY_PATH": "/a:/b=c", "EMPTY": ""}
    assert read_mark(roots, "export") == Mark(digest=RECORD.digest, env=env)
    assert (root / "usr" / "bin" / "tool").read_bytes() == b"tool"
    for name in ("proc", "sys", "dev", "work", "opt/enginefarm/src/builder/worker", "usr/local/nvidia"):
        assert (root / name).is_dir()
    assert engine.addresses == ["http+docker://localhost/v1.45/containers/container-of-enginefarm/export:1/export"]
    assert engine.removed == ["container-of-enginefarm/export:1"]
    assert [type(event) for event in events[:2]] == [StepStarted, StepAdvanced]
    assert isinstance(events[-1], StepFinished)
    assert events[-1].ok
    (root / "usr" / "bin").chmod(0o755)


def test_an_empty_folder_is_filled_and_leftovers_are_cleared(tmp_path: Path, events: list[Event]) -> None:
    (tmp_path / "roots" / "export").mkdir(parents=True)
    (tmp_path / "roots" / ".export.partial" / "old").mkdir(parents=True)
    root = unpack(FakeEngine(archive((entry("new"), b"")).getvalue()), tmp_path, events)
    assert (root / "new").exists()
    assert not (root / "old").exists()


@pytest.mark.parametrize("kind", ["full", "file", "link"])
def test_what_is_there_stays(tmp_path: Path, events: list[Event], kind: str) -> None:
    root = tmp_path / "roots" / "export"
    root.parent.mkdir()
    if kind == "full":
        (root / "kept").mkdir(parents=True)
    elif kind == "file":
        root.touch()
    else:
        root.symlink_to(tmp_path)
    error = refusal(lambda: unpack(FakeEngine(system().getvalue()), tmp_path, events))
    assert error.reason is Reason.PATH_OCCUPIED
    assert events == []


def test_a_lost_engine_leaves_nothing(tmp_path: Path, events: list[Event]) -> None:
    engine = FakeEngine(system().getvalue(), pieces=2)
    assert refusal(lambda: unpack(engine, tmp_path, events)).reason is Reason.DOCKER_UNAVAILABLE
    assert list((tmp_path / "roots").iterdir()) == []
    assert len(engine.removed) == 1
    assert isinstance(events[-1], StepFinished)
    assert not events[-1].ok


def test_stopping_leaves_nothing(tmp_path: Path, events: list[Event]) -> None:
    cancel = threading.Event()
    cancel.set()
    error = refusal(lambda: unpack(FakeEngine(system().getvalue()), tmp_path, events, cancel))
    assert error.reason is Reason.INTERRUPTED
    assert list((tmp_path / "roots").iterdir()) == []


def test_a_full_disk_is_called_so(tmp_path: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(stream: object, target: Path) -> None:
        (target / "part").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_unpack, "extract", full)
    assert refusal(lambda: unpack(FakeEngine(b""), tmp_path, events)).reason is Reason.DISK_FULL
    assert list((tmp_path / "roots").iterdir()) == []


def test_a_disk_that_is_too_small_is_not_begun(
    tmp_path: Path, events: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.host.free_disk_bytes", lambda folder: 1)
    assert refusal(lambda: unpack(FakeEngine(b""), tmp_path, events)).reason is Reason.DISK_FULL
    assert events == []


def test_an_image_that_is_gone(tmp_path: Path, events: list[Event]) -> None:
    engine = SimpleNamespace(image=lambda tag: None)
    assert refusal(lambda: unpack(engine, tmp_path, events)).reason is Reason.IMAGE_MISSING


def test_a_record_alone(tmp_path: Path) -> None:
    assert save_record(RECORD, tmp_path / "new") == tmp_path / "new" / "export.json"
    assert read_record(tmp_path / "new", "export") == RECORD
    assert read_mark(tmp_path / "new", "export") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"digest": "x"}', '{"digest": "x", "env": []}', "\ud800"])
def test_marks_and_records_that_say_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "export").mkdir()
    for path in (tmp_path / "export" / ".enginefarm.json", tmp_path / "export.json"):
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    assert read_mark(tmp_path, "export") is None
    assert read_record(tmp_path, "export") is None


def test_the_mark_is_plain_json(tmp_path: Path, events: list[Event]) -> None:
    root = unpack(FakeEngine(archive((entry("a"), b"")).getvalue()), tmp_path, events)
    assert json.loads((root / ".enginefarm.json").read_bytes())["digest"] == RECORD.digest


def test_errors_of_reading_are_not_swallowed(tmp_path: Path) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            raise EnginefarmError(Reason.INTERRUPTED, "stopped")

    assert refusal(lambda: extract(io.BufferedReader(Broken()), tmp_path)).reason is Reason.INTERRUPTED
