"""Stand-in bases: made of the distribution's packages where no registry of base images can be reached."""

from __future__ import annotations

import os
import tarfile
import threading
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path

from builder import process
from builder.bases import Standin
from builder.errors import EnginefarmError, Reason
from builder.image_layout import ImageLayout, write_single_layer
from builder.standin_tool import NAME, find_tool

BASE_LABEL = "org.enginefarm.base"
STANDIN = "stand-in"
_MACHINES = {"linux/amd64": "amd64", "linux/arm64": "arm64"}
_TIMEOUT_S = 1800.0


def make_standin(  # noqa: PLR0913, PLR0917  # all that the result depends on
    standin: Standin,
    platform: str,
    folder: Path,
    epoch: int,
    drop: Sequence[str],
    tools: Path,
    log: Path,
    cancel: threading.Event,
) -> ImageLayout:
    """Make a base image in an empty folder. Equal inputs and an equal package archive give equal bytes.

    `tools`: where programs that are not installed are kept.

    Raises:
        EnginefarmError: TOOL_MISSING, BASE_UNAVAILABLE with the tool's last words, DISK_FULL, INTERRUPTED.

    """
    tool = find_tool(tools, log, cancel)
    folder.mkdir(parents=True, exist_ok=True)
    raw, layer = folder / "raw.tar", folder / "layer.tar"
    argv = [tool.program, f"--variant={standin.variant}", f"--architectures={_MACHINES[platform]}"]
    argv += [f"--include={package}" for package in standin.include]
    argv += [f"--hook-dir={tool.hooks / hook}" for hook in standin.hooks]
    env = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch)}
    outcome = process.run(
        [*argv, standin.suite, str(raw)], cwd=folder, env=env, log=log, timeout_s=_TIMEOUT_S, cancel=cancel
    )
    if outcome.cancelled:
        raise EnginefarmError(Reason.INTERRUPTED, "making a stand-in base was stopped")
    if outcome.exit_code != 0:
        tail = process.tail(log)
        if "No space left" in tail:
            raise EnginefarmError(Reason.DISK_FULL, "the disk filled up while making a stand-in base", why=tail)
        raise EnginefarmError(Reason.BASE_UNAVAILABLE, f"{NAME} could not make a base", where=str(log), why=tail)
    _clean(raw, layer, epoch, drop)
    raw.unlink()
    created = datetime.fromtimestamp(epoch, tz=timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    labels = {BASE_LABEL: f"{STANDIN} {standin.suite}, Python {standin.python}"}
    return write_single_layer(folder, layer, platform, created, labels, [path, "LANG=C.UTF-8"])


def _clean(raw: Path, layer: Path, epoch: int, drop: Sequence[str]) -> None:
    """Copy an archive in the order of its paths, without what is to be dropped, no time later than `epoch`."""
    with tarfile.open(raw) as source, tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as target:
        for member in sorted(_kept(source, drop), key=_place):
            member.mtime = min(int(member.mtime), epoch)
            member.pax_headers = {}
            member.uname = member.gname = ""
            target.addfile(member, source.extractfile(member) if member.isreg() else None)


def _place(member: tarfile.TarInfo) -> tuple[str, bool, str]:
    # a hard link comes after its file
    return max(member.name, member.linkname if member.islnk() else ""), member.islnk(), member.name


def _kept(archive: tarfile.TarFile, drop: Sequence[str]) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        name = member.name.removeprefix("./").rstrip("/")
        # the kernel's own files come with the container
        device = member.ischr() or member.isblk() or member.isfifo()
        if name in {"", "."} or device or any(fnmatchcase(name, pattern) for pattern in drop):
            continue
        member.name = name
        if member.islnk():
            member.linkname = member.linkname.removeprefix("./")
        yield member
