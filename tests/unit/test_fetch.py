"""Fetching by digest: whole or resumed, never another file, and nothing twice."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typing_extensions import Self

from builder.errors import Reason
from builder.fetch import Fetcher
from builder.project import Home
from builder.recipe import HuggingFaceSource, UrlSource
from tests.artifacts import refusal

URL = "https://files.example/model.onnx"
CONTENT = bytes(range(256)) * 16
SHA256 = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"another file"


@dataclass
class Response:
    """What a server sends. `breaks_at`: bytes after which the connection is gone; `ends`: how it goes."""

    content: bytes
    status: int | None = 200
    length: int | None = -1
    breaks_at: int | None = None
    ends: Exception | None = None

    def __post_init__(self) -> None:
        self.headers = {} if self.length is None else {"Content-Length": str(len(self.content))}
        self.stream = io.BytesIO(self.content[: self.breaks_at])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def read(self, count: int) -> bytes:
        """Read as a socket does: less than asked for, then nothing."""
        chunk = self.stream.read(min(count, 1000))
        if not chunk and self.breaks_at is not None and self.ends is not None:
            raise self.ends
        return chunk


@dataclass
class Server:
    """Stands in for urlopen: answers as told, in order, and remembers what was asked for."""

    answers: list[Response | Exception | Callable[[int], Response]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)

    def open(self, request: urllib.request.Request, timeout: float) -> Response:
        """Have the signature of urlopen."""
        assert timeout > 0
        self.asked.append(request.full_url)
        self.ranges.append(request.get_header("Range"))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Response):
            return answer
        return answer(int((self.ranges[-1] or "=0-").partition("=")[2].rstrip("-")))


class Cancel(threading.Event):
    """Notes how long it was waited for, and waits for nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        """Return at once."""
        self.pauses.append(timeout)
        return self.is_set()


def status(code: int) -> urllib.error.HTTPError:
    """Make what urlopen raises for an HTTP status."""
    return urllib.error.HTTPError(URL, code, f"status {code}", Message(), io.BytesIO())


def rest(have: int) -> Response:
    """Send what is missing."""
    return Response(CONTENT[have:], status=206)


def gone(at: int, status: int = 200, content: bytes = CONTENT) -> Response:
    """Send a part of the content."""
    return Response(content, status=status, breaks_at=at, ends=ConnectionResetError("gone"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """No connection is really made."""
    fake = Server()
    monkeypatch.setattr(urllib.request, "urlopen", fake.open)
    return fake


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home that does not exist yet."""
    return Home(root=tmp_path / "home")


@pytest.fixture
def cancel() -> Cancel:
    """An event that nobody has set."""
    return Cancel()


@pytest.fixture
def fetcher(home: Home, cancel: Cancel) -> Fetcher:
    """A fetcher with an empty cache."""
    return Fetcher(home, cancel)


def files(home: Home) -> dict[str, bytes]:
    """Map the files of the cache to their content."""
    return {path.name: path.read_bytes() for path in (home.fetch / "sha256").iterdir()}


def test_whole_transfer(fetcher: Fetcher, home: Home, server: Server, cancel: Cancel) -> None:
    server.answers = [Response(CONTENT)]
    heard: list[tuple[int, int | None]] = []
    path = fetcher.url(URL, SHA256, lambda done, total: heard.append((done, total)))
    assert path == home.fetch / "sha256" / SHA256
    assert files(home) == {SHA256: CONTENT}
    assert (server.asked, server.ranges, cancel.pauses) == ([URL], [None], [])
    assert heard == [(done, 4096) for done in (1000, 2000, 3000, 4000, 4096)]


def test_server_that_does_not_say_how_much_comes(fetcher: Fetcher, home: Home, server: Server) -> None:
    server.answers = [Response(CONTENT, length=None)]
    heard: list[int | None] = []
    fetcher.url(URL, SHA256, lambda _, total: heard.append(total))
    assert files(home) == {SHA256: CONTENT}
    assert set(heard) == {None}


def test_cached_file_needs_no_server(fetcher: Fetcher, home: Home, server: Server) -> None:
    assert fetcher.cached(SHA256) is None
    server.answers = [Response(CONTENT)]
    path = fetcher.url(URL, SHA256)
    os.utime(path, (1, 1))
    assert fetcher.url("https://elsewhere/", SHA256) == path
    assert server.asked == [URL]
    # its use is noted
    assert path.stat().st_mtime > 1000
    os.utime(path, (1, 1))
    assert fetcher.cached(SHA256) == path
    assert path.stat().st_mtime > 1000


@pytest.mark.parametrize("at", [1, 1000, 1500, 4095])
def test_goes_on_where_it_broke_off(fetcher: Fetcher, home: Home, server: Server, at: int) -> None:
    server.answers = [gone(at), rest]
    heard: list[tuple[int, int | None]] = []
    fetcher.url(URL, SHA256, lambda done, total: heard.append((done, total)))
    assert files(home) == {SHA256: CONTENT}
    assert server.ranges == [None, f"bytes={at}-"]
    assert heard == sorted(heard)
    assert heard[-1] == (4096, 4096)


@pytest.mark.parametrize(
    "trouble", [ssl.SSLEOFError(8, "EOF"), OSError(errno.EHOSTUNREACH, "no route"), OSError(errno.EACCES, "refused")]
)
def test_trouble_of_any_number_while_reading(fetcher: Fetcher, home: Home, server: Server, trouble: Exception) -> None:
    server.answers = [Response(CONTENT, breaks_at=1500, ends=trouble), rest]
    assert fetcher.url(URL, SHA256).read_bytes() == CONTENT


def test_connection_that_ends_early_without_a_word(fetcher: Fetcher, home: Home, server: Server) -> None:
    server.answers = [Response(CONTENT, breaks_at=2000), rest]
    fetcher.url(URL, SHA256)
    assert files(home) == {SHA256: CONTENT}
    assert server.ranges == [None, "bytes=2000-"]


def test_server_without_ranges_starts_again(fetcher: Fetcher, home: Home, server: Server) -> None:
    server.answers = [gone(1500), Response(CONTENT, status=200)]
    heard: list[int] = []
    fetcher.url(URL, SHA256, lambda done, _: heard.append(done))
    assert files(home) == {SHA256: CONTENT}
    assert server.ranges == [None, "bytes=1500-"]
    assert heard == [1000, 1500, 1000, 2000, 3000, 4000, 4096]


def test_file_address_has_no_status(fetcher: Fetcher, home: Home, server: Server) -> None:
    server.answers = [gone(10), Response(CONTENT, status=None)]
    fetcher.url("file:///model.onnx", SHA256)
    assert files(home) == {SHA256: CONTENT}


def part(home: Home, content: bytes) -> Path:
    """Leave what an earlier run would have left."""
    path = home.fetch / "sha256" / f"{SHA256}.part"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_part_of_an_earlier_run_is_taken_up(fetcher: Fetcher, home: Home, server: Server) -> None:
    part(home, CONTENT[:3000])
    server.answers = [rest]
    fetcher.url(URL, SHA256)
    assert (files(home), server.ranges) == ({SHA256: CONTENT}, ["bytes=3000-"])


def test_part_that_is_all(fetcher: Fetcher, home: Home, server: Server) -> None:
    part(home, CONTENT)
    server.answers = [status(416)]
    fetcher.url(URL, SHA256)
    assert (files(home), server.ranges) == ({SHA256: CONTENT}, ["bytes=4096-"])


def test_part_that_is_more_than_all(fetcher: Fetcher, home: Home, server: Server) -> None:
    part(home, CONTENT + b"more")
    server.answers = [status(416), Response(CONTENT)]
    assert refusal(lambda: fetcher.url(URL, SHA256)).reason is Reason.DIGEST_MISMATCH
    # the next attempt is free of it
    fetcher.url(URL, SHA256)
    assert files(home) == {SHA256: CONTENT}


def test_another_file_never_gets_in(fetcher: Fetcher, home: Home, server: Server) -> None:
    server.answers = [Response(OTHER)]
    error = refusal(lambda: fetcher.url(URL, SHA256))
    assert error.reason is Reason.DIGEST_MISMATCH
    assert URL in error.what
    actual = hashlib.sha256(OTHER).hexdigest()
    assert (error.why or "").splitlines() == [f"expected {SHA256}", f"actual   {actual}"]
    assert files(home) == {}
    assert len(server.asked) == 1


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410])
def test_refusal_is_final(fetcher: Fetcher, server: Server, cancel: Cancel, code: int) -> None:
    server.answers = [status(code)]
    error = refusal(lambda: fetcher.url(URL, SHA256))
    assert error.reason is Reason.FETCH_FAILED
    assert URL in error.what
    assert f"status {code}" in (error.why or "")
    assert (len(server.asked), cancel.pauses) == (1, [])


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_busy_server_is_asked_again(fetcher: Fetcher, home: Home, server: Server, cancel: Cancel, code: int) -> None:
    server.answers = [status(code), status(code), Response(CONTENT)]
    fetcher.url(URL, SHA256)
    assert files(home) == {SHA256: CONTENT}
    assert cancel.pauses == [0.5, 1.0]


@pytest.mark.parametrize(
    "broken",
    [urllib.error.URLError("no route"), TimeoutError("slow"), ConnectionResetError("gone"), status(503)],
    ids=["url", "timeout", "reset", "busy"],
)
def test_server_that_is_never_there(fetcher: Fetcher, home: Home, server: Server, broken: Exception) -> None:
    server.answers = [broken] * 4
    error = refusal(lambda: fetcher.url(URL, SHA256))
    assert error.reason is Reason.FETCH_FAILED
    assert error.why
    assert len(server.asked) == 4
    assert files(home) == {}


def test_what_came_is_kept_for_the_next_attempt(fetcher: Fetcher, home: Home, server: Server, cancel: Cancel) -> None:
    parts: list[Any] = [gone(1000), *(gone(10, 206, CONTENT[at:]) for at in (1000, 1010, 1020))]
    server.answers = parts
    error = refusal(lambda: fetcher.url(URL, SHA256))
    assert (error.reason, error.why) == (Reason.FETCH_FAILED, "gone")
    assert cancel.pauses == [0.5, 1.0, 2.0]
    assert files(home) == {f"{SHA256}.part": CONTENT[:1030]}
    server.answers = [rest]
    fetcher.url(URL, SHA256)
    assert server.ranges[-1] == "bytes=1030-"
    assert files(home) == {SHA256: CONTENT}


def test_stopping_ends_a_transfer(fetcher: Fetcher, home: Home, server: Server, cancel: Cancel) -> None:
    server.answers = [Response(CONTENT)]
    error = refusal(lambda: fetcher.url(URL, SHA256, lambda done, _: cancel.set() if done >= 2000 else None))
    assert error.reason is Reason.INTERRUPTED
    # what came is no loss
    assert files(home) == {f"{SHA256}.part": CONTENT[:2000]}


def test_stopping_ends_the_attempts(fetcher: Fetcher, server: Server, cancel: Cancel) -> None:
    cancel.set()
    server.answers = [urllib.error.URLError("no route")]
    assert refusal(lambda: fetcher.url(URL, SHA256)).reason is Reason.INTERRUPTED
    assert len(server.asked) == 1


def test_full_disk(fetcher: Fetcher, home: Home, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server.answers = [Response(CONTENT)]
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        error = refusal(lambda: fetcher.url(URL, SHA256))
    assert error.reason is Reason.DISK_FULL
    assert URL in error.what
    # the disk does not get emptier by asking again
    assert len(server.asked) == 1
    assert SHA256 not in files(home)


def test_sources_of_models_are_addresses(fetcher: Fetcher, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    server.answers = [Response(CONTENT)]
    revision = "0123456789abcdef0123456789abcdef01234567"
    hub = HuggingFaceSource.model_validate(
        {"kind": "huggingface", "repo": "o/m", "revision": revision, "path": "a/b.onnx", "sha256": SHA256}
    )
    path = fetcher.model(hub)
    assert server.asked == [f"https://huggingface.co/o/m/resolve/{revision}/a/b.onnx"]
    assert fetcher.model(UrlSource.model_validate({"kind": "url", "url": URL, "sha256": SHA256})) == path


def test_fetchers_share_one_transfer(home: Home, server: Server) -> None:
    """Two threads want the same file: the second waits and finds it."""
    server.answers = [Response(CONTENT)]
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(Fetcher(home, threading.Event()).url(URL, SHA256)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [home.fetch / "sha256" / SHA256] * 4
    assert server.asked == [URL]
