# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Write all lock files again: `make locks`, or `make locks ARGS=--upgrade` for the newest versions.

Pins stay as they are unless they no longer fit what is asked for, or --upgrade is given. The package index, proxy and
folders of wheels are those that pip is set up with; none of them gets into a lock. The resolver lives in a
temporary environment.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESOLVER = "uv==0.13.8"
BUILD_STACK = "images/trtrtx1.7-cuda13/requirements.lock"
EVERYWHERE = ("--universal", "--python-version", "3.10")
PLACELESS = ("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A lock file, what is asked for, and the locks whose versions it must share."""

    path: str
    sources: tuple[str, ...]
    options: tuple[str, ...] = EVERYWHERE
    shares: tuple[str, ...] = ()


# a lock comes after those it shares versions with
LOCKS = (
    Lock(path="requirements.lock", sources=("pyproject.toml",), options=(*EVERYWHERE, "--extra", "build")),
    Lock(path=BUILD_STACK, sources=("images/trtrtx1.7-cuda13/requirements.in",)),
    Lock(
        path="images/export/requirements.lock",
        sources=("images/export/requirements.in",),
        # the CPU build of PyTorch is pinned for one Python and one platform
        options=("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28"),
        shares=(BUILD_STACK,),
    ),
    Lock(
        path="requirements-dev.lock",
        sources=("pyproject.toml",),
        options=(*EVERYWHERE, "--extra", "dev"),
        shares=("requirements.lock", BUILD_STACK),
    ),
)


def pip_settings() -> dict[str, str]:
    """Say in the resolver's words where pip looks; the resolver does not read pip's settings."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    found = dict(line.split("=", 1) for line in listed.splitlines())
    settings = {name.rsplit(".", 1)[1]: value.strip("'\"") for name, value in found.items()}
    translated = {
        "UV_DEFAULT_INDEX": settings.get("index-url"),
        "UV_FIND_LINKS": ",".join(settings.get("find-links", "").split()),
        "SSL_CERT_FILE": settings.get("cert"),
    }
    return {name: value for name, value in translated.items() if value}


def install_resolver(folder: Path) -> Path:
    """Make an environment with the resolver and return its command."""
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", RESOLVER], check=True)
    return folder / "bin" / "uv"


def update(resolver: Path, lock: Lock, *, upgrade: bool, environ: dict[str, str]) -> bool:
    """Write one lock; return whether it changed."""
    path = ROOT / lock.path
    before = path.read_bytes() if path.is_file() else b""
    shared = [part for name in lock.shares for part in ("--constraint", name)]
    options = [*PLACELESS, *lock.options, *shared, *(["--upgrade"] if upgrade else [])]
    compiler = [str(resolver), "pip", "compile", "--quiet", "--generate-hashes"]
    subprocess.run([*compiler, *options, "--output-file", lock.path, *lock.sources], check=True, cwd=ROOT, env=environ)
    return path.read_bytes() != before


def main() -> int:
    """Write the locks and print, as JSON, which changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of keeping the pins")
    upgrade: bool = parser.parse_args().upgrade
    environ = {**os.environ, **pip_settings()}
    with tempfile.TemporaryDirectory() as folder:
        resolver = install_resolver(Path(folder))
        changed = {lock.path: update(resolver, lock, upgrade=upgrade, environ=environ) for lock in LOCKS}
    print(json.dumps({"changed": [path for path, new in changed.items() if new]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
