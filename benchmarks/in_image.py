"""Runs a program of this checkout inside an unpacked image, with a GPU, as the executor rootfs runs stages.

Usage: python benchmarks/in_image.py STACK [--read HOST:INSIDE]... [--write HOST:INSIDE]... -- PROGRAM [ARGUMENT]...

ENGINEFARM_ROOTFS names the folder that `enginefarm images unpack` filled. The checkout is at /opt/enginefarm/src, which
is on Python's path. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from builder.executors import enter, rootfs
from builder.executors.contained import SOURCE, TMP, TMP_OPTIONS
from builder.image_unpack import read_mark, root_path


def mounts(given: list[str], *, read_only: bool) -> list[enter.Mount]:
    """Read HOST:INSIDE."""
    found = []
    for one in given:
        source, _, target = one.partition(":")
        found.append(enter.Mount(str(Path(source).resolve(strict=True)), target, read_only=read_only))
    return found


def main() -> int:
    """Enter the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stack")
    parser.add_argument("--read", action="append", default=[], metavar="HOST:INSIDE")
    parser.add_argument("--write", action="append", default=[], metavar="HOST:INSIDE")
    parser.add_argument("program", nargs="+")
    arguments = parser.parse_args()
    folder = Path(os.environ[rootfs.VARIABLE])
    mark = read_mark(folder, arguments.stack)
    if mark is None:
        sys.exit(f"{root_path(folder, arguments.stack)} is not there, or not unpacked to its end")
    driver = rootfs.find_driver(Path(rootfs.DRIVER), platform.machine())
    devices = [Path("/dev", name) for name in rootfs._DEVICES]  # noqa: SLF001
    devices += [path for pattern in rootfs._GPU_DEVICES for path in sorted(Path("/dev").glob(pattern))]  # noqa: SLF001
    own = mark.env.get("LD_LIBRARY_PATH")
    env = {
        **mark.env,
        "PYTHONPATH": f"{SOURCE}:/opt/stack",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        # else CUDA copies all of a library's kernels to the device first: 7 s for TensorRT 8.6
        "CUDA_MODULE_LOADING": "LAZY",
        "HOME": TMP,
        "TMPDIR": TMP,
        "LD_LIBRARY_PATH": ":".join([*driver.folders, *([own] if own else [])]),
    }
    spec = enter.Spec(
        root=str(root_path(folder, arguments.stack).resolve()),
        parent=os.getpid(),
        tmpfs={TMP: TMP_OPTIONS.replace("256m", "8g"), **dict.fromkeys(driver.tmpfs, "size=1m,mode=755")},
        devices=[str(path) for path in devices if path.exists()],
        mounts=[
            *driver.mounts,
            enter.Mount(str(ROOT), SOURCE, read_only=True),
            *mounts(arguments.read, read_only=True),
            *mounts(arguments.write, read_only=False),
        ],
        argv=arguments.program,
        env=env,
        folder="/",
    )
    return subprocess.run(
        [sys.executable, "-I", str(Path(enter.__file__)), json.dumps(spec._asdict())], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
