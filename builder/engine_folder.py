"""Puts an engine where applications find it: a folder per model that is the old one or the new one, never a mixture."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from builder import durable
from builder.errors import EnginefarmError, Reason
from builder.locks import named_lock
from builder.project import Home
from builder.store import Blob
from builder.titles import ENGINE, KEY, MANIFEST, WEIGHTS

TRUST = "trust.json"
FILES = (ENGINE, MANIFEST, KEY)
"""What every engine's folder has; that of one built without its weights has `titles.WEIGHTS` besides."""
_VERSIONS = ".versions"


def offer_engine(  # one parameter per part of the record
    home: Home,
    model: str,
    blobs: Mapping[str, Blob],
    cancel: threading.Event,
    *,
    reference: str,
    signer: str | None = None,
    to: Path | None = None,
) -> Path:
    """Put an engine of the store where applications load it, or into a folder `to`, with a record of what was checked.

    Raises:
        EnginefarmError: as `place_engine` and `copy_engine`.

    """
    trust = {
        "engine_sha256": blobs[ENGINE].digest.removeprefix("sha256:"),
        "manifest_sha256": blobs[MANIFEST].digest.removeprefix("sha256:"),
        "signer": signer,
        "reference": reference,
        "checked_at": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
    }
    files = {title: blobs[title].path for title in (*FILES, *(one for one in WEIGHTS if one in blobs))}
    return copy_engine(to, files, trust) if to is not None else place_engine(home, model, files, trust, cancel)


def place_engine(
    home: Home, model: str, files: Mapping[str, Path], trust: Mapping[str, Any], cancel: threading.Event
) -> Path:
    """Make an engine the one that `builder.runtime.load(model)` loads; return its folder.

    The folder is a link that is replaced in one step. The version before stays, for those who are reading it.

    Raises:
        EnginefarmError: PATH_OCCUPIED, DISK_FULL, STORE_READ_ONLY, INTERRUPTED.

    """
    link, versions = home.engines / model, home.engines / _VERSIONS / model
    clear = durable.unobstructed(str(link))
    with clear, durable.writing(str(link)), named_lock(home, f"engines-{model}", cancel):
        if link.exists() and not link.is_symlink():
            what = f"{link} is a folder that enginefarm did not make"
            raise EnginefarmError(Reason.PATH_OCCUPIED, what, fix="move it away")
        versions.mkdir(parents=True, exist_ok=True)
        before = link.readlink().name if link.is_symlink() else None
        folder = Path(tempfile.mkdtemp(prefix="v", dir=versions))
        _fill(folder, files, trust)
        durable.sync_folder(versions)
        fresh = home.engines / f".{model}.link"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(folder.relative_to(home.engines))
        fresh.replace(link)
        durable.sync_folder(home.engines)
        # what a killed pull left goes with the rest: nobody else is here
        for other in versions.iterdir():
            if other.name not in {folder.name, before}:
                shutil.rmtree(other, ignore_errors=True)
    return link


def copy_engine(folder: Path, files: Mapping[str, Path], trust: Mapping[str, Any]) -> Path:
    """Write an engine to a folder of the user's choice, whole or not at all; an older one there is replaced.

    Raises:
        EnginefarmError: PATH_OCCUPIED, DISK_FULL, STORE_READ_ONLY.

    """
    try:
        with durable.writing(str(folder)):
            # by its own name, which `.` and `..` are not
            folder = folder.absolute() if folder.name not in {"", ".."} else folder.resolve()
            _refuse_foreign(folder)
            folder.parent.mkdir(parents=True, exist_ok=True)
            temp = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                _fill(temp, files, trust, share=False)
                _swap(temp, folder)
            finally:
                shutil.rmtree(temp, ignore_errors=True)
            durable.sync_folder(folder.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise EnginefarmError(Reason.PATH_OCCUPIED, f"{folder.parent} is no folder", why=str(error)) from error
    except OSError as error:
        # a mount point, a name too long, a folder that somebody removes meanwhile
        what, fix = f"{folder} cannot be put in place as a whole", "name a folder that is not there yet"
        raise EnginefarmError(Reason.PATH_OCCUPIED, what, why=str(error), fix=fix) from error
    except EnginefarmError as error:
        if error.reason is Reason.STORE_READ_ONLY:
            error.fix = "name a folder that you may write to"
        raise
    return folder


def _fill(folder: Path, files: Mapping[str, Path], trust: Mapping[str, Any], *, share: bool = True) -> None:
    folder.chmod(0o755)
    for title, path in files.items():
        _take(path, folder / title, share=share)
    durable.write_atomically(folder / TRUST, json.dumps(trust, indent=2, sort_keys=True).encode() + b"\n", folder)


def _take(source: Path, target: Path, *, share: bool) -> None:
    # a second name for the store's file costs nothing; other file systems and strict kernels want a copy
    if share:
        with suppress(OSError):
            os.link(source, target)
            return
    durable.copy_hashed(source, target)
    target.chmod(0o644)


def _refuse_foreign(folder: Path) -> None:
    if folder == Path.cwd():
        what = f"{folder} is the folder that you are in: it would be gone"
        raise EnginefarmError(Reason.PATH_OCCUPIED, what, fix="name a folder that is not there yet")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise EnginefarmError(Reason.PATH_OCCUPIED, f"{folder} is not a folder that enginefarm wrote")
    others = sorted(path.name for path in folder.iterdir() if not _is_ours(path)) if folder.is_dir() else []
    if others:
        why = f"not ours: {', '.join(others[:5])}"
        raise EnginefarmError(Reason.PATH_OCCUPIED, f"{folder} holds other files", why=why)


def _is_ours(path: Path) -> bool:
    return path.name in {*FILES, *WEIGHTS, TRUST} and path.is_file() and not path.is_symlink()


def _swap(temp: Path, folder: Path) -> None:
    if not folder.exists():
        temp.rename(folder)
        return
    older = temp.with_name(f"{temp.name}.older")
    folder.rename(older)
    try:
        temp.rename(folder)
    except OSError:
        older.rename(folder)
        raise
    shutil.rmtree(older, ignore_errors=True)
