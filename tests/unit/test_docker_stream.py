"""A container's output: whole in the log, however the connection cuts it; its input ends with the connection."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from docker.models.containers import Container
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.docker_engine import DockerEngine
from builder.docker_stream import Stream

STDOUT, STDERR = 1, 2


class FakeEngine:
    """Gives one end of a pair of sockets for a container; keeps the other."""

    def __init__(self, *, wrapped: bool = False) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.wrapped = wrapped
        self.asked: list[tuple[str, dict[str, int]]] = []
        self.client = SimpleNamespace(api=SimpleNamespace(attach_socket=self.attach_socket))

    def attach_socket(self, container: str, params: dict[str, int]) -> Any:
        """Have the signature of the SDK's."""
        self.asked.append((container, params))
        # over TCP and a Unix socket, the SDK gives a file around the socket
        return socket.SocketIO(self.theirs, "rwb") if self.wrapped else self.theirs

    def stream(self, log: Path) -> Stream:
        """Attach to a container."""
        return Stream(cast("DockerEngine", self), cast("Container", SimpleNamespace(id="c1")), log)


def frame(content: bytes, source: int = STDOUT) -> bytes:
    """Pack output as Docker does."""
    return struct.pack(">BxxxL", source, len(content)) + content


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    """An engine with one container."""
    fake = FakeEngine()
    yield fake
    fake.ours.close()
    fake.theirs.close()


def test_both_outputs_go_to_the_log_in_order(engine: FakeEngine, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    with engine.stream(log) as stream:
        engine.ours.sendall(frame(b"out\n") + frame(b"err\n", STDERR) + frame(b"") + frame(b"\x00\xff\n"))
        assert not stream.ended(5.0)
        # at once, for whoever reads along
        assert log.read_bytes() == b"before\nout\nerr\n\x00\xff\n"
        engine.ours.close()
        assert stream.ended(5.0)
    assert log.read_bytes() == b"before\nout\nerr\n\x00\xff\n"


def test_all_streams_are_attached(engine: FakeEngine, tmp_path: Path) -> None:
    with engine.stream(tmp_path / "log"):
        assert engine.asked == [("c1", {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})]


def test_silence_is_no_end(engine: FakeEngine, tmp_path: Path) -> None:
    with engine.stream(tmp_path / "log") as stream:
        assert not stream.ended(0.0)
        engine.ours.sendall(frame(b"late"))
        assert not stream.ended(5.0)
    assert (tmp_path / "log").read_bytes() == b"late"


def test_half_a_frame_waits_for_the_rest(engine: FakeEngine, tmp_path: Path) -> None:
    log, whole = tmp_path / "log", frame(b"content")
    with engine.stream(log) as stream:
        for cut in (whole[:3], whole[3:8], whole[8:12]):
            engine.ours.sendall(cut)
            assert not stream.ended(5.0)
            assert log.read_bytes() == b""
        engine.ours.sendall(whole[12:])
        assert not stream.ended(5.0)
        assert log.read_bytes() == b"content"


def test_frame_larger_than_one_reading(engine: FakeEngine, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    with engine.stream(tmp_path / "log") as stream:
        engine.ours.sendall(frame(content))
        engine.ours.close()
        while not stream.ended(5.0):
            pass
    assert (tmp_path / "log").read_bytes() == content


@pytest.mark.parametrize("wrapped", [False, True])
def test_containers_input_ends_with_the_connection(tmp_path: Path, *, wrapped: bool) -> None:
    fake = FakeEngine(wrapped=wrapped)
    with fake.stream(tmp_path / "log") as stream:
        fake.ours.sendall(frame(b"x"))
        assert not stream.ended(5.0)
        fake.ours.setblocking(False)
        with pytest.raises(BlockingIOError):
            fake.ours.recv(1)
    if wrapped:
        # the file lets go of its socket; what holds it otherwise is this test
        fake.theirs.close()
    assert fake.ours.recv(1) == b""
    fake.ours.close()


def test_engine_that_goes_away_is_told(engine: FakeEngine, tmp_path: Path) -> None:
    with engine.stream(tmp_path / "log") as stream:
        # what was sent and not read turns the end into a reset
        engine.theirs.sendall(b"unread")
        engine.ours.close()
        with pytest.raises(ConnectionError):
            stream.ended(5.0)


@settings(deadline=None)
@given(
    frames=st.lists(st.tuples(st.sampled_from([STDOUT, STDERR]), st.binary(max_size=40)), max_size=6),
    cuts=st.sets(st.integers(0, 300), max_size=12),
)
def test_frames_cut_anywhere_come_out_whole(
    tmp_path_factory: pytest.TempPathFactory, frames: list[tuple[int, bytes]], cuts: set[int]
) -> None:
    sent = b"".join(frame(content, source) for source, content in frames)
    places = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    log = tmp_path_factory.getbasetemp() / "cut.log"
    log.unlink(missing_ok=True)
    engine = FakeEngine()
    with engine.stream(log) as stream:
        for start, end in pairwise(places):
            engine.ours.sendall(sent[start:end])
            assert not stream.ended(5.0)
        engine.ours.close()
        assert stream.ended(5.0)
    assert log.read_bytes() == b"".join(content for _, content in frames)


def test_every_single_cut(tmp_path: Path) -> None:
    sent = frame(b"one") + frame(b"", STDERR) + frame(b"three", STDERR)
    for cut in range(1, len(sent)):
        engine, log = FakeEngine(), tmp_path / f"{cut}.log"
        with engine.stream(log) as stream:
            for part in (sent[:cut], sent[cut:]):
                engine.ours.sendall(part)
                assert not stream.ended(5.0)
        engine.ours.close()
        assert log.read_bytes() == b"onethree"
