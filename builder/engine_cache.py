"""Keeps the folder of pulled engines within a size: what was not loaded for longest goes first.

`builder.runtime` notes each use in the time of a version's folder. Names below `engines` are links to versions, each
replaced in one step by a pull; who reads one meanwhile is done with it before it may be removed.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.errors import EnginefarmError, Reason
from builder.locks import named_lock
from builder.project import Home

GIB = 1 << 30
VARIABLE = "ENGINEFARM_ENGINES_GIB"
DEFAULT_GIB = 64.0
# engines used so shortly ago are being loaded, perhaps
GRACE_S = 600.0
_VERSIONS = ".versions"


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedEngine:
    """A model's folder: bytes of all its versions, and when the engine was loaded or pulled last."""

    model: str
    size: int
    used: float


def engines_limit(environ: Mapping[str, str]) -> int:
    """Read the limit in bytes from ENGINEFARM_ENGINES_GIB.

    Raises:
        EnginefarmError: POLICY_INVALID where it is no positive number.

    """
    text = environ.get(VARIABLE)
    try:
        limit = float(text) if text else DEFAULT_GIB
    except ValueError:
        limit = -1.0
    if not 0 < limit < float("inf"):
        what = f"{VARIABLE} is {text!r}, not a number of GiB"
        raise EnginefarmError(Reason.POLICY_INVALID, what, fix=f"unset it, or set it to such as {DEFAULT_GIB:.0f}")
    return int(limit * GIB)


def cached_engines(home: Home) -> list[CachedEngine]:
    """List the models that were pulled, least recently used first. Folders of other origin are left out."""
    folder = home.root / "engines"
    found = []
    for link in sorted(folder.glob("[!.]*")):
        # a pull or a removal may be at work
        with suppress(OSError):
            if link.is_symlink():
                versions = folder / _VERSIONS / link.name
                size = sum(path.stat().st_size for path in versions.rglob("*") if path.is_file())
                found.append(CachedEngine(model=link.name, size=size, used=link.stat().st_mtime))
    return sorted(found, key=lambda one: (one.used, one.model))


def trim_engines(
    home: Home, limit_bytes: int, cancel: threading.Event, now: float | None = None
) -> tuple[CachedEngine, ...]:
    """Remove models until the rest fits; return what went. What was used a moment ago stays, whatever the limit.

    Raises:
        EnginefarmError: INTERRUPTED.

    """
    engines = cached_engines(home)
    total = sum(one.size for one in engines)
    gone: list[CachedEngine] = []
    for one in engines:
        if total <= limit_bytes:
            break
        end = _remove(home, one, cancel, time.time() if now is None else now)
        if end == "removed":
            gone.append(one)
        if end != "kept":
            total -= one.size
    return tuple(gone)


def _remove(
    home: Home, engine: CachedEngine, cancel: threading.Event, now: float
) -> Literal["removed", "kept", "absent"]:
    link: Path = home.root / "engines" / engine.model
    # the lock that a pull of this model holds
    with named_lock(home, f"engines-{engine.model}", cancel):
        try:
            used = link.stat().st_mtime
        except OSError:
            # another process was faster
            return "absent"
        if used > engine.used or now - used < GRACE_S:
            return "kept"
        # the name first: who looks it up from here on finds nothing, not half of it
        link.unlink()
        shutil.rmtree(link.parent / _VERSIONS / engine.model, ignore_errors=True)
    return "removed"
