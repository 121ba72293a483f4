# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Write all lock files again: `make locks`, or `make locks ARGS=--upgrade` for the newest versions.

Pins stay as they are unless they no longer fit what is asked for, or --upgrade is given. The package index, proxy and
folders of wheels are those that pip is set up with; none of them gets into a lock. The resolver lives in a
temporary environment.

A line `name @ URL --hash=...` of a .in file goes into the lock as it stands: it names a part of gigabytes that no index
has, and is not fetched here. What such a part needs is asked for beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESOLVER = "uv==0.13.8"
BUILD_STACK = "images/trtrtx1.7-cuda13/requirements.lock"
# the oldest Python that the locks with shared versions speak about
FLOOR = "3.10"
EVERYWHERE = ("--universal", "--python-version", FLOOR)
DEBIAN_11 = ("--universal", "--python-version", "3.9")
# TensorRT's bindings know NumPy 1 only up to 10.13; weights from NumPy 2 read as zeros (8.6.0). ml-dtypes goes along.
NUMPY_1 = ("numpy", "ml-dtypes")
PLACELESS = ("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A lock file, what is asked for, and the locks whose versions it must share, but for the packages in `apart`."""

    path: str
    sources: tuple[str, ...]
    options: tuple[str, ...] = EVERYWHERE
    shares: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()


# a lock comes after those it shares versions with
LOCKS = (
    Lock(path="requirements.lock", sources=("pyproject.toml",), options=(*EVERYWHERE, "--extra", "build")),
    Lock(path=BUILD_STACK, sources=("images/trtrtx1.7-cuda13/requirements.in",)),
    Lock(
        path="images/trt8.6-cuda12.0/requirements.lock",
        sources=("images/trt8.6-cuda12.0/requirements.in",),
        options=DEBIAN_11,
        shares=(BUILD_STACK,),
        apart=NUMPY_1,
    ),
    Lock(
        path="images/trt8.6-cuda12.0/requirements-8.6.0.lock",
        sources=("images/trt8.6-cuda12.0/requirements-8.6.0.in",),
        options=DEBIAN_11,
        shares=("images/trt8.6-cuda12.0/requirements.lock",),
        apart=("tensorrt-libs",),
    ),
    Lock(
        path="images/trt10.9-cuda12.8/requirements.lock",
        sources=("images/trt10.9-cuda12.8/requirements.in",),
        shares=(BUILD_STACK,),
        apart=NUMPY_1,
    ),
    Lock(
        path="images/trt10.13-cuda12.9/requirements.lock",
        sources=("images/trt10.13-cuda12.9/requirements.in",),
        shares=(BUILD_STACK,),
        apart=NUMPY_1,
    ),
    Lock(
        path="images/trt10.16-cuda13.2/requirements.lock",
        sources=("images/trt10.16-cuda13.2/requirements.in",),
        shares=(BUILD_STACK,),
    ),
    Lock(
        path="images/trt11.3-cuda13.4/requirements.lock",
        sources=("images/trt11.3-cuda13.4/requirements.in",),
        shares=(BUILD_STACK,),
    ),
    Lock(
        path="images/l4t36.4-trt10.3/requirements.lock",
        sources=("images/l4t36.4-trt10.3/requirements.in",),
        shares=(BUILD_STACK,),
        apart=NUMPY_1,
    ),
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


def split(text: str) -> tuple[str, list[str]]:
    """Take the lines of a .in file that name an address apart from those that the resolver reads."""
    entries = re.split(r"\n(?=\S)", text.strip())
    return "\n".join(one for one in entries if " @ " not in one), [one for one in entries if " @ " in one]


def shared_pins(lock: Lock) -> str:
    """Write down the versions to share; the locks they come from say nothing about a Python older than FLOOR."""
    pins = []
    for name in lock.shares:
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            pin, _, marker = line.partition(" --hash=")[0].partition(" ; ")
            if "==" in pin and pin.split("==")[0] not in lock.apart:
                old = f"({marker.strip()}) and " if marker else ""
                pins.append(f"{pin.strip()} ; {old}python_full_version >= '{FLOOR}'\n")
    return "".join(pins)


def update(resolver: Path, lock: Lock, *, upgrade: bool, environ: dict[str, str]) -> bool:
    """Write one lock; return whether it changed."""
    path = ROOT / lock.path
    before = path.read_bytes() if path.is_file() else b""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources, direct = [], []
        for source in lock.sources:
            if not source.endswith(".in"):
                sources.append(source)
                continue
            asked, addresses = split((ROOT / source).read_text(encoding="utf-8"))
            direct += addresses
            sources.append(str(folder / f"{len(sources)}.in"))
            Path(sources[-1]).write_text(asked + "\n", encoding="utf-8")
        (folder / "shared.txt").write_text(shared_pins(lock), encoding="utf-8")
        options = [*PLACELESS, *lock.options, "--constraint", str(folder / "shared.txt")]
        compiler = [str(resolver), "pip", "compile", "--quiet", "--generate-hashes", *options]
        compiler += ["--upgrade"] if upgrade else []
        subprocess.run([*compiler, "--output-file", lock.path, *sources], check=True, cwd=ROOT, env=environ)
    if direct:
        resolved = re.split(r"\n(?=\S)", path.read_text(encoding="utf-8").strip())
        hashed = [re.sub(r"\s+--hash=", " \\\\\n    --hash=", one) for one in direct]
        path.write_text("\n".join(sorted([*resolved, *hashed])) + "\n", encoding="utf-8")
    return path.read_bytes() != before


def main() -> int:
    """Write the locks and print, as JSON, which changed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions instead of keeping the pins")
    parser.add_argument("only", nargs="*", metavar="LOCK", help="paths of the locks to write (default: all)")
    arguments = parser.parse_args()
    upgrade: bool = arguments.upgrade
    locks = [lock for lock in LOCKS if not arguments.only or lock.path in arguments.only]
    environ = {**os.environ, **pip_settings()}
    with tempfile.TemporaryDirectory() as folder:
        resolver = install_resolver(Path(folder))
        changed = {lock.path: update(resolver, lock, upgrade=upgrade, environ=environ) for lock in locks}
    print(json.dumps({"changed": [path for path, new in changed.items() if new]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
