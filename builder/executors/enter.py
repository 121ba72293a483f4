"""Enters an unpacked image and becomes a stage there: `python -I enter.py SPEC`, by the standard library alone.

It makes namespaces of its own for mounts and network, puts the image read-only over itself with what the stage may see
inside, takes it for the root, gives up all privileges and runs the stage in this very process. Nothing that is mounted
here is visible outside, so nothing outside can be removed through it. SPEC is `Spec` as JSON.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import sys
from typing import NamedTuple

REFUSED = 125
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 24, 38
CAPABILITY_VERSION_3 = 0x20080522
# what a program could change the machine with: as in a container, they are there to be read
KERNEL = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}


class Mount(NamedTuple):
    """A file or folder of the machine, `source`, and where it is to be seen in the image."""

    source: str
    target: str
    read_only: bool


class Spec(NamedTuple):
    """What to enter and run. `parent`: the farm's process; `devices`: files and folders below /dev.

    `tmpfs`: folder in the image to its options. Mounts come in their order, after the empty folders.
    """

    root: str
    parent: int
    tmpfs: dict[str, str]
    devices: list[str]
    mounts: list[Mount]
    argv: list[str]
    env: dict[str, str]
    folder: str


def read_spec(text: str) -> Spec:
    """Read a specification."""
    raw = json.loads(text)
    return Spec(**{**raw, "mounts": [Mount(*one) for one in raw["mounts"]]})


def enter(spec: Spec) -> None:
    """Become the stage; returns only by an error.

    Raises:
        OSError: what the kernel refused.

    """
    _die_with(spec.parent)
    _call("unshare", CLONE_NEWNS)
    try:
        _call("unshare", CLONE_NEWNET)
    except OSError as error:
        sys.stderr.write(f"warning: the network cannot be taken away from this stage ({error})\n")
    _mount("none", "/", None, MS_REC | MS_PRIVATE, None)
    _furnish(spec)
    with open("/proc/sys/kernel/cap_last_cap", encoding="utf-8") as file:
        last = int(file.read())
    # from here on nothing can be imported: Python's own files are outside
    os.chroot(spec.root)
    os.chdir(spec.folder)
    _drop_privileges(last)
    _become(spec)


def _die_with(parent: int) -> None:
    _call("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise OSError(0, "the farm is gone")


def _furnish(spec: Spec) -> None:
    """Put together what the stage will see."""
    root = spec.root
    _mount(root, root, None, MS_BIND, None)
    for target, options in {**spec.tmpfs, "/dev": "size=64k,mode=755"}.items():
        _mount("tmpfs", _place(root, target, folder=True), "tmpfs", MS_NOSUID, options)
    for device in spec.devices:
        _bind(device, _place(root, device, folder=os.path.isdir(device)), read_only=False)
    for name, target in LINKS.items():
        os.symlink(target, f"{root}/dev/{name}")
    shared = _place(root, "/dev/shm", folder=True)  # noqa: S108  # a new one
    _mount("tmpfs", shared, "tmpfs", MS_NOSUID | MS_NODEV, "size=64m,mode=1777")
    _bind("/proc", _place(root, "/proc", folder=True), read_only=False)
    for path in KERNEL:
        if os.path.exists(root + path):
            _bind(root + path, root + path, read_only=True)
    _show_devices_tree(root)
    for one in spec.mounts:
        target = _place(root, one.target, folder=os.path.isdir(one.source))
        _bind(one.source, target, read_only=one.read_only, below=MS_REC)
    _protect(root)


def _show_devices_tree(root: str) -> None:
    path = _place(root, "/sys", folder=True)
    try:
        # a new one shows the stage's own network
        _mount("sysfs", path, "sysfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, None)
    except OSError:
        _bind("/sys", path, read_only=True)


def _place(root: str, target: str, *, folder: bool) -> str:
    """Return the path of a mount point, made if need be; a link in it could lead out of the image."""
    path = root + target
    if os.path.realpath(path) != path:
        raise OSError(0, f"{target} of the image is a link")
    if folder:
        os.makedirs(path, exist_ok=True)
    elif not os.path.lexists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    return path


def _bind(source: str, target: str, *, read_only: bool, below: int = 0) -> None:
    """Show a file or folder at another place, with what is mounted below it only where asked: that stays writable."""
    _mount(source, target, None, MS_BIND | below, None)
    if read_only:
        _protect(target)


def _protect(target: str) -> None:
    # the flags have the same numbers here and there
    kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
    _mount("none", target, None, MS_REMOUNT | MS_BIND | MS_RDONLY | kept, None)


def _drop_privileges(last: int) -> None:
    """Leave root without its powers, for good; `last` is the kernel's highest."""
    for capability in range(last + 1):
        _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
    _call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _call("capset", header, (ctypes.c_uint32 * 6)())


def _become(spec: Spec) -> None:
    for folder in spec.env["PATH"].split(":"):
        try:
            os.execve(f"{folder}/{spec.argv[0]}", spec.argv, spec.env)  # noqa: S606  # this process, inside
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise OSError(errno.ENOENT, f"it has no program {spec.argv[0]}")


def _mount(source: str, target: str, kind: str | None, flags: int, options: str | None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    try:
        _call("mount", *texts[:3], ctypes.c_ulong(flags), texts[3])
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (mounting {source} at {target})") from error


def _call(function: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    numbers = [ctypes.c_ulong(one) if isinstance(one, int) else one for one in arguments]
    if getattr(library, function)(*numbers) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{os.strerror(code)} ({function})")


if __name__ == "__main__":
    try:
        enter(read_spec(sys.argv[1]))
    except OSError as problem:
        sys.stderr.write(f"the image cannot be entered: {problem.strerror}\n")
        raise SystemExit(REFUSED) from None
