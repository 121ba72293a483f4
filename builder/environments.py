"""Python environments of the local executor: one per stack, Python and lock, installed by hash, made once."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.errors import EnginefarmError, Reason
from builder.locks import named_lock
from builder.project import Home
from builder.stacks import Stack

DONE = ".enginefarm-complete"
_INSTALL_TIMEOUT_S = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePython:
    """An interpreter of this machine and its version, such as "3.11"."""

    path: Path
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where a stack's environment is, installed or not."""

    stack: Stack
    base: BasePython
    folder: Path

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.folder / "bin" / "python"

    @property
    def installed(self) -> bool:
        """True once every package is in place."""
        return (self.folder / DONE).is_file()

    def touch(self) -> None:
        """Note that the environment is used now."""
        with suppress(OSError):
            os.utime(self.folder / DONE)


def locate(stack: Stack, home: Home) -> Environment:
    """Name the environment of a stack; nothing is installed.

    Raises:
        EnginefarmError: PYTHON_MISSING where no interpreter fits.

    """
    base = find_python(tuple(stack.spec.python), stack.name)
    return Environment(
        stack=stack, base=base, folder=home.envs / f"{stack.name}-py{base.version}-{stack.lock_sha256[:16]}"
    )


def install(environment: Environment, home: Home, log: Path, cancel: threading.Event) -> None:
    """Install the stack's packages by hash, once; a second process waits for the first.

    Raises:
        EnginefarmError: INSTALL_FAILED with the log's last lines, DISK_FULL, INTERRUPTED.

    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with named_lock(home, f"env-{environment.folder.name}", cancel):
        if environment.installed:
            return
        home.envs.mkdir(parents=True, exist_ok=True)
        for left in [environment.folder, *home.envs.glob(f".{environment.folder.name}.*")]:
            shutil.rmtree(left, ignore_errors=True)
        # a folder of its own and a rename: pip may outlive a killed farm, and must not write into the next one's folder
        part = Path(tempfile.mkdtemp(prefix=f".{environment.folder.name}.", dir=home.envs))
        try:
            _run([str(environment.base.path), "-m", "venv", "--without-pip", str(part)], log, cancel)
            _install_packages(environment.stack, part / "bin" / "python", log, cancel)
            (part / DONE).write_text(environment.stack.lock_sha256 + "\n", encoding="utf-8")
            part.rename(environment.folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def find_python(versions: tuple[str, ...], stack: str) -> BasePython:
    """Find an interpreter of one of the versions: this one, on PATH, of pyenv or of uv.

    Raises:
        EnginefarmError: PYTHON_MISSING.

    """
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    if own in versions:
        return BasePython(path=Path(sys.executable), version=own)
    for version in reversed(versions):
        for path in _candidates(version):
            if path.is_file() and os.access(path, os.X_OK):
                return BasePython(path=path, version=version)
    listed = " or ".join(versions)
    raise EnginefarmError(
        Reason.PYTHON_MISSING,
        f"stack {stack} needs Python {listed}; this is {own} and no other was found",
        fix=f"install python{versions[-1]} (distribution, `uv python install {versions[-1]}` or pyenv) and run again",
    )


def _candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    for folder in filter(None, os.environ.get("PATH", "").split(os.pathsep)):
        path = Path(folder) / name
        # pyenv's shims answer to every version but run only the active ones
        if path.parent.name != "shims":
            yield path
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"), reverse=True)
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python")).expanduser()
    yield from sorted(uv.glob(f"cpython-{version}.*/bin/{name}"), reverse=True)


def _install_packages(stack: Stack, python: Path, log: Path, cancel: threading.Event) -> None:
    pip = [
        *(sys.executable, "-m", "pip", "--python", str(python)),
        *("install", "--no-input", "--disable-pip-version-check", "--require-hashes", "--no-deps"),
        *("-r", str(stack.lock_path)),
    ]
    extra = stack.spec.extra_index
    try:
        _run(pip, log, cancel)
    except EnginefarmError as error:
        if extra is None or error.reason is not Reason.INSTALL_FAILED:
            raise
        _run([*pip, "--extra-index-url", extra], log, cancel)


def _run(argv: list[str], log: Path, cancel: threading.Event) -> None:
    # pip reads the user's own configuration (proxy, mirror, certificates), but must not take the user's packages for
    # the environment's
    env = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}
    outcome = process.run(argv, cwd=log.parent, env=env, log=log, timeout_s=_INSTALL_TIMEOUT_S, cancel=cancel)
    if outcome.cancelled:
        raise EnginefarmError(Reason.INTERRUPTED, "installing was stopped")
    if outcome.exit_code == 0:
        return
    tail = process.tail(log)
    if "No space left on device" in tail:
        raise EnginefarmError(Reason.DISK_FULL, "the disk filled up while installing", why=tail)
    what = f"{outcome.shown()} failed"
    if outcome.timed_out:
        what = f"{outcome.shown()} was still running after {_INSTALL_TIMEOUT_S:.0f} s"
    raise EnginefarmError(Reason.INSTALL_FAILED, what, where=str(log), why=tail, fix=_fix(tail))


def _fix(tail: str) -> str | None:
    if "No module named pip" in tail:
        return f"give this Python pip: `{sys.executable} -m ensurepip`, or your distribution's package"
    if "no such option: --python" in tail:
        return f"this pip is older than 22.3: `{sys.executable} -m pip install --upgrade pip`"
    return None
