"""Moves large files to and from a registry: streamed, hashed on the way, taken up again where it broke off."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import requests

from builder import durable
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, StepAdvanced
from builder.hang_up import watched
from builder.registry_retry import PassingError, Patience, number
from builder.registry_session import SLOW_S, Answer, Reader, Session, follow, line_of

# how often the system is told to begin writing to disk: a flush at the end of a large file then finds little left
_BEHIND = 32 << 20
# fits the processor's cache: larger ones are slower
_CHUNK = 256 << 10
_OCTETS = {"Content-Type": "application/octet-stream"}
# answers to whether a blob is there that do not say yes
UNSURE = (HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR)
# the registry knows nothing of an upload, or of less of it than we thought
_FORGOTTEN = (404, 405, 416)


class Meter:
    """Adds up the bytes of all transfers of a step and tells of them. Safe for several threads."""

    def __init__(self, subject: str, listen: Listener) -> None:
        self._subject = subject
        self._listen = listen
        self._lock = threading.Lock()
        self._done = self._total = 0

    def expect(self, count: int) -> None:
        """Take note of bytes to come; negative where they are not needed after all."""
        with self._lock:
            self._total += count

    def advance(self, count: int) -> None:
        """Take note of bytes that came or went; negative where they have to come again."""
        with self._lock:
            self._done += count
            event = StepAdvanced(subject=self._subject, done=self._done, total=self._total)
        self._listen(event)


def download(
    session: Session, path: str, digest: str, size: int, destination: Path, meter: Meter, stopped: Callable[[], None]
) -> None:
    """Stream a blob to `destination`, which appears whole and with its digest or not at all.

    What an earlier attempt left in `destination`.part is taken up. Not flushed to the disk. `stopped` raises where it
    is time to stop.

    Raises:
        EnginefarmError: DOWNLOAD_CORRUPT, SIZE_REFUSED, ARTIFACT_MISSING, DISK_FULL, and as `Session.ask`.

    """
    part = destination.with_name(f"{destination.name}.part")
    resumed = part.exists()
    actual = _Download(session, path, size, part, meter, stopped).run()
    if actual != digest and resumed:
        # it may be the earlier attempt's fault
        meter.advance(-size)
        part.unlink()
        actual = _Download(session, path, size, part, meter, stopped).run()
    if actual != digest:
        part.unlink()
        why = f"expected {digest}\nactual   {actual}"
        raise EnginefarmError(Reason.DOWNLOAD_CORRUPT, f"{destination.name} came with another digest", why=why)
    part.replace(destination)


class _Download:
    def __init__(
        self, session: Session, path: str, size: int, part: Path, meter: Meter, stopped: Callable[[], None]
    ) -> None:
        self._session = session
        self._path = path
        self._size = size
        self._part = part
        self._meter = meter
        self._stopped = stopped
        self._have = self._begun = 0
        self._digest = hashlib.sha256()

    def run(self) -> str:
        """Fetch what is missing; return the digest of it all."""
        patience = Patience(self._session.cancel)
        with durable.writing(str(self._part), self._size), self._part.open("a+b", buffering=0) as out:
            self._take_up(out)
            while self._have < self._size:
                before = self._have
                try:
                    self._attempt(out)
                except PassingError as error:
                    patience.progress(self._have - before)
                    patience.pause(error, self._path)
        return f"sha256:{self._digest.hexdigest()}"

    def _take_up(self, out: IO[bytes]) -> None:
        out.seek(0)
        while chunk := out.read(_CHUNK):
            self._count(chunk)
        if self._have > self._size:
            self._start_over(out)

    def _start_over(self, out: IO[bytes]) -> None:
        out.truncate(0)
        self._meter.advance(-self._have)
        self._have, self._begun, self._digest = 0, 0, hashlib.sha256()

    def _count(self, chunk: bytes | memoryview) -> None:
        self._digest.update(chunk)
        self._have += len(chunk)
        self._meter.advance(len(chunk))

    def _attempt(self, out: IO[bytes]) -> None:
        asked = {"Range": f"bytes={self._have}-"} if self._have else {}
        expected = (HTTPStatus.NOT_FOUND, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        with self._session.open("GET", self._path, asked, allowed=expected) as response:
            if response.status_code == HTTPStatus.NOT_FOUND:
                what = f"{self._session.host} lacks a part of the artifact"
                raise EnginefarmError(Reason.ARTIFACT_MISSING, what, why=self._path)
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                what = f"{self._session.host} has only the beginning of a part of the artifact"
                why = f"nothing comes after {self._have} of {self._size} bytes"
                raise EnginefarmError(Reason.DOWNLOAD_CORRUPT, what, why=why)
            range_ = response.headers.get("Content-Range", "")
            if self._have and not range_.startswith(f"bytes {self._have}-"):
                # it knows no ranges and sends all
                self._start_over(out)
            length = number(response.headers.get("Content-Length"))
            if length is not None and length > self._size - self._have:
                raise self._too_large(f"{length} more bytes would come after {self._have}")
            with watched(line_of(response), lambda: self._have, SLOW_S):
                self._receive(out, Reader(response), memoryview(bytearray(_CHUNK)))

    def _receive(self, out: IO[bytes], reader: Reader, buffer: memoryview) -> None:
        while self._have < self._size:
            self._stopped()
            count = reader.readinto(buffer[: self._size - self._have])
            if not count:
                raise PassingError(f"{self._have} of {self._size} bytes came")
            _write(out, buffer[:count])
            self._count(buffer[:count])
            if self._have - self._begun >= _BEHIND:
                os.posix_fadvise(out.fileno(), self._begun, self._have - self._begun, os.POSIX_FADV_DONTNEED)
                self._begun = self._have
        if reader.readinto(buffer[:1]):
            raise self._too_large(f"more than {self._size} bytes came")

    def _too_large(self, why: str) -> EnginefarmError:
        what = f"{self._session.host} sends more than the {self._size} bytes it spoke of"
        return EnginefarmError(Reason.SIZE_REFUSED, what, why=why, fix="do not use this artifact")


def _write(out: IO[bytes], view: memoryview) -> None:
    while view:
        view = view[out.write(view) :]


def upload(
    session: Session, repository: str, file: Path, digest: str, size: int, meter: Meter, stopped: Callable[[], None]
) -> None:
    """Stream a file to a repository, hashing it on the way: a file with another content never gets there.

    Raises:
        EnginefarmError: STORE_CORRUPT where the file has another digest, and as `Session.ask`.

    """
    _Upload(session, repository, digest, size, _Body(file, digest, size, meter, stopped)).run()


def upload_bytes(session: Session, repository: str, content: bytes, digest: str) -> None:
    """Send something small."""

    def send() -> None:
        place = _place(session.ask("POST", f"{repository}/blobs/uploads/"))
        _finish(session, place, digest, content)

    session.insist(repository, send)


class _Upload:
    """`_reached`: how many bytes the registry has."""

    def __init__(self, session: Session, repository: str, digest: str, size: int, body: _Body) -> None:
        self._session = session
        self._repository = repository
        self._digest = digest
        self._size = size
        self._body = body
        self._begin()

    def run(self) -> None:
        patience = Patience(self._session.cancel)
        while True:
            try:
                self._attempt()
            except PassingError as error:
                patience.pause(error, self._place)
                before = self._reached
                if self._look():
                    return
                patience.progress(self._reached - before)
            else:
                return

    def _begin(self) -> None:
        self._place = _place(self._session.ask("POST", f"{self._repository}/blobs/uploads/"))
        self._reached = 0

    def _attempt(self) -> None:
        if self._reached < self._size:
            self._body.start = self._reached
            resumed = {"Content-Range": f"{self._reached}-{self._size - 1}"} if self._reached else {}
            with self._session.open("PATCH", self._place, _OCTETS | resumed, self._body, _FORGOTTEN) as response:
                _refuse_forgotten(response)
                self._place = follow(response.url, response.headers.get("Location", self._place))
        _finish(self._session, self._place, self._digest)

    def _look(self) -> bool:
        """Ask how far the registry got. True: it has the whole."""
        path = f"{self._repository}/blobs/{self._digest}"
        if self._session.ask("HEAD", path, allowed=UNSURE).status == HTTPStatus.OK:
            return True
        answer = self._session.ask("GET", self._place, allowed=_FORGOTTEN)
        last = number(answer.headers.get("Range", "").rpartition("-")[2])
        if answer.status in _FORGOTTEN or last is None:
            self._begin()
        else:
            self._place = follow(answer.url, answer.headers.get("Location", self._place))
            # "0-0" stands for nothing as well
            self._reached = min(last + 1, self._size) if last else 0
        return False


class _Body:
    """A file from `start` on, as requests sends it; what comes before is only hashed."""

    def __init__(self, file: Path, digest: str, size: int, meter: Meter, stopped: Callable[[], None]) -> None:
        self._file = file
        self._digest = digest
        self._size = size
        self._meter = meter
        self._stopped = stopped
        self._told = 0
        self.start = 0

    def __len__(self) -> int:
        return self._size - self.start

    def __iter__(self) -> Iterator[memoryview]:
        # a second try begins where the registry is
        self._tell(self.start)
        digest, buffer, position = hashlib.sha256(), memoryview(bytearray(_CHUNK)), 0
        try:
            with self._file.open("rb", buffering=0) as stream:
                while count := stream.readinto(buffer[: self._size - position]):
                    self._stopped()
                    digest.update(buffer[:count])
                    before, position = position, position + count
                    if position > self.start:
                        yield buffer[max(0, self.start - before) : count]
                        self._tell(position)
                longer = bool(stream.read(1))
        except OSError as error:
            # not to be taken for a broken connection
            raise EnginefarmError(Reason.STORE_CORRUPT, f"{self._file} cannot be read", why=str(error)) from error
        actual = f"sha256:{digest.hexdigest()}"
        if actual != self._digest or position < self._size or longer:
            why = f"expected {self._digest}, {self._size} bytes\nactual   {actual}, {position} bytes"
            raise EnginefarmError(Reason.STORE_CORRUPT, f"{self._file} is not what it claims to be", why=why)

    def _tell(self, position: int) -> None:
        self._meter.advance(position - self._told)
        self._told = position


def _finish(session: Session, place: str, digest: str, content: bytes = b"") -> None:
    closing = f"{place}{'&' if urlsplit(place).query else '?'}digest={digest}"
    with session.open("PUT", closing, _OCTETS, content, _FORGOTTEN) as response:
        _refuse_forgotten(response)


def _refuse_forgotten(response: requests.Response) -> None:
    if response.status_code in _FORGOTTEN:
        raise PassingError(f"the registry has forgotten an upload: {response.status_code} {response.reason}")


def _place(answer: Answer) -> str:
    return follow(answer.url, answer.headers.get("Location"))
