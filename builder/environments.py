"""Python environments of the local executor: one per stack, Python and lock, installed by hash, made once."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from builder import process
from builder.errors import EnginefarmError, Reason
from builder.project import Home
from builder.stacks import Stack

_DONE = ".enginefarm-complete"
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
        return (self.folder / _DONE).is_file()


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
    home.locks.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.locks / f"env-{environment.folder.name}.lock"):
        if environment.installed:
            return
        shutil.rmtree(environment.folder, ignore_errors=True)
        environment.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            _run([str(environment.base.path), "-m", "venv", "--without-pip", str(environment.folder)], log, cancel)
            _install_packages(environment, log, cancel)
        except BaseException:
            shutil.rmtree(environment.folder, ignore_errors=True)
            raise
        (environment.folder / _DONE).write_text(environment.stack.lock_sha256 + "\n", encoding="utf-8")


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
        fix=f"install python{versions[-1]} (your distribution, `uv python install {versions[-1]}` or pyenv) and run again",
    )


def _candidates(version: str) -> Iterator[Path]:
    name = f"python{version}"
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = Path(folder or ".") / name
        # pyenv's shims answer to every version but run only the active ones
        if path.parent.name != "shims":
            yield path
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/{name}"), reverse=True)
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR", "~/.local/share/uv/python")).expanduser()
    yield from sorted(uv.glob(f"cpython-{version}.*/bin/{name}"), reverse=True)


def _install_packages(environment: Environment, log: Path, cancel: threading.Event) -> None:
    pip = [
        *(sys.executable, "-m", "pip", "--python", str(environment.python)),
        *("install", "--no-input", "--disable-pip-version-check", "--require-hashes", "--no-deps"),
        *("-r", str(environment.stack.lock_path)),
    ]
    extra = environment.stack.spec.extra_index
    try:
        _run(pip, log, cancel)
    except EnginefarmError as error:
        if extra is None or error.reason is not Reason.INSTALL_FAILED:
            raise
        _run([*pip, "--extra-index-url", extra], log, cancel)


def _run(argv: list[str], log: Path, cancel: threading.Event) -> None:
    # pip reads the user's own configuration (proxy, mirror, certificates): the environment is passed on as it is
    outcome = process.run(argv, cwd=log.parent, env=os.environ, log=log, timeout_s=_INSTALL_TIMEOUT_S, cancel=cancel)
    if outcome.cancelled:
        raise EnginefarmError(Reason.INTERRUPTED, "installing was stopped")
    if outcome.exit_code == 0:
        return
    tail = process.tail(log)
    if "No space left on device" in tail:
        raise EnginefarmError(Reason.DISK_FULL, "the disk filled up while installing", why=tail)
    raise EnginefarmError(Reason.INSTALL_FAILED, f"{outcome.shown()} failed", where=str(log), why=tail)
