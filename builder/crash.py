"""The log of an unexpected error: what someone needs who wants to find the bug."""

from __future__ import annotations

import platform
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from builder import __version__

_PACKAGES = ("click", "pydantic", "pyyaml", "packaging", "filelock", "rich")


def write_crash_log(error: BaseException, arguments: Sequence[str], folder: Path) -> Path:
    """Write traceback, versions and the command line to a new file in `folder`, and return its path.

    Raises:
        OSError: the folder cannot be written.

    """
    folder.mkdir(parents=True, exist_ok=True)
    now = time.time()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
    path = folder / f"{stamp}-{int(now % 1 * 1e6):06}.log"
    path.write_text(crash_text(error, arguments), encoding="utf-8", errors="backslashreplace")
    return path


def crash_text(error: BaseException, arguments: Sequence[str]) -> str:
    """Write the log's text."""
    lines = [
        f"enginefarm {__version__}",
        f"python {platform.python_version()} ({sys.executable})",
        f"system {platform.platform()}",
        *(f"{name} {_version(name)}" for name in _PACKAGES),
        f"command enginefarm {shlex.join(arguments)}",
        "",
        "".join(traceback.format_exception(error)).rstrip(),
        "",
    ]
    return "\n".join(lines)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
