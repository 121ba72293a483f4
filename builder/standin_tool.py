"""Finds mmdebstrap, which makes stand-in bases: on PATH, else its package unpacked below the farm's home."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import EnginefarmError, Reason

NAME = "mmdebstrap"
_HOOKS = Path("usr/share/mmdebstrap/hooks")
_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StandinTool:
    """The program, and the folder of its hooks."""

    program: str
    hooks: Path


def find_tool(tools: Path, log: Path, cancel: threading.Event) -> StandinTool:
    """Return the tool; a Debian or Ubuntu without it needs no right to install: the package is unpacked in `tools`.

    Raises:
        EnginefarmError: TOOL_MISSING where there is neither the tool nor apt, INTERRUPTED.

    """
    on_path = shutil.which(NAME)
    if on_path is not None:
        return StandinTool(program=on_path, hooks=Path("/") / _HOOKS)
    folder = tools / NAME
    if not (folder / "usr/bin" / NAME).is_file():
        _unpack(folder, log, cancel)
    return StandinTool(program=str(folder / "usr/bin" / NAME), hooks=folder / _HOOKS)


def _unpack(folder: Path, log: Path, cancel: threading.Event) -> None:
    fix = f"apt-get install {NAME}; or reach a registry and take --base pinned"
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        what = f"a stand-in base needs {NAME}, which is not installed, and this is no Debian that could give it"
        raise EnginefarmError(Reason.TOOL_MISSING, what, fix=fix)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".tool-", dir=folder.parent) as name:
        part = Path(name)
        for inner in ("lists/partial", "cache/archives/partial", "deb", "root"):
            (part / inner).mkdir(parents=True)
        # lists of its own: those of a bare machine are empty, and only root may fill them
        apt = ["apt-get", "-qq", "-o", f"Dir::State::Lists={part}/lists", "-o", f"Dir::Cache={part}/cache"]
        apt += ["-o", "APT::Sandbox::User=root"]
        _run([*apt, "update"], part, log, cancel, fix)
        _run([*apt, "download", NAME], part / "deb", log, cancel, fix)
        (package,) = (part / "deb").glob("*.deb")
        _run(["dpkg-deb", "-x", str(package), str(part / "root")], part, log, cancel, fix)
        shutil.rmtree(folder, ignore_errors=True)
        (part / "root").rename(folder)


def _run(argv: list[str], folder: Path, log: Path, cancel: threading.Event, fix: str) -> None:
    outcome = process.run(argv, cwd=folder, env=os.environ, log=log, timeout_s=_TIMEOUT_S, cancel=cancel)
    if outcome.cancelled:
        raise EnginefarmError(Reason.INTERRUPTED, f"fetching {NAME} was stopped")
    if outcome.exit_code != 0:
        what = f"a stand-in base needs {NAME}, which is not installed and could not be fetched"
        raise EnginefarmError(Reason.TOOL_MISSING, what, where=str(log), why=process.tail(log), fix=fix)
