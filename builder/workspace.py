"""The folder of one run: private, locked while the run lives, swept by a later run when it died."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout
from typing_extensions import Self

from builder.project import Home

STARTED = ".started"
LOCK = ".lock"
_RUN = "run-"


class Workspace:
    """A context manager: `with Workspace(home, keep=False) as workspace`."""

    def __init__(self, home: Home, *, keep: bool) -> None:
        self._home = home
        self._keep = keep
        self._folder: Path | None = None
        self._lock: FileLock | None = None

    def __enter__(self) -> Self:
        """Sweep what dead runs left and make a folder."""
        self._home.work.mkdir(parents=True, exist_ok=True)
        self._home.locks.mkdir(parents=True, exist_ok=True)
        # sweeping and creating exclude one another: a new folder has no lock for an instant
        with FileLock(self._home.locks / "work.lock"):
            _sweep(self._home.work)
            self._folder = Path(tempfile.mkdtemp(prefix="kept-" if self._keep else _RUN, dir=self._home.work))
            self._lock = FileLock(self._folder / LOCK)
            self._lock.acquire()
            # its time says when the run began
            (self._folder / STARTED).touch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the folder unless it is to be kept."""
        if self._folder is not None and not self._keep:
            shutil.rmtree(self._folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.release()

    @property
    def folder(self) -> Path:
        """The run's folder."""
        if self._folder is None:
            msg = "the workspace is not open"
            raise RuntimeError(msg)
        return self._folder

    def stage(self, subject: str, stage: str) -> Path:
        """Name the folder of one stage of one job or export."""
        return self.folder / _plain(subject) / stage

    def done_with(self, subject: str) -> None:
        """Remove a finished job's folders early, so that a long run does not pile up."""
        if not self._keep:
            shutil.rmtree(self.folder / _plain(subject), ignore_errors=True)

    def keep_log(self, subject: str, stage: str, log: Path) -> Path | None:
        """Copy a failed stage's log to where it outlives the run; the newest one per job and stage stays.

        Null where there is nothing to read in it, or no room for it: the stage's own error is what counts.
        """
        kept = self._home.logs / f"{_plain(subject)}.{stage}.log"
        temp = kept.with_name(f".{kept.name}.{os.getpid()}")
        with suppress(OSError):
            if not log.stat().st_size:
                kept.unlink(missing_ok=True)
                return None
            self._home.logs.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(log, temp)
            temp.replace(kept)
            return kept
        with suppress(OSError):
            temp.unlink(missing_ok=True)
        return None


def sweep_dead_runs(home: Home) -> None:
    """Remove what runs that died left behind; where that cannot be done now, a later run does it."""
    if next(home.work.glob(f"{_RUN}*/"), None) is not None:
        # a timeout of the lock is an OSError, too
        with suppress(OSError), FileLock(home.locks / "work.lock", timeout=0):
            _sweep(home.work)


def _sweep(work: Path) -> None:
    for folder in work.glob(f"{_RUN}*/"):
        try:
            with FileLock(folder / LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, FileNotFoundError):
            continue


def _plain(subject: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", subject)
