"""Runs stages in unpacked images, without a container engine: on rented GPU machines and clusters. Needs root.

ENGINEFARM_ROOTFS names the folder that `enginefarm images unpack` filled: STACK.json is what is known of an image, and
STACK/ its files. Keys name the image as the docker executor does, so both make and find the same engines.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.bases import load_bases
from builder.errors import EnginefarmError, Reason
from builder.executors import enter
from builder.executors.contained import COMMAND, SOURCE, TMP, TMP_OPTIONS, WORK, image_runtime, stage_environment
from builder.executors.context import ExecutorContext
from builder.executors.processors import Processors
from builder.image_record import ImageRecord, newest_fitting
from builder.image_unpack import read_mark, read_record, record_path, root_path
from builder.key import Runtime
from builder.stacks import Stack
from builder.stage import StageRequest, StageResult, collect, lay_out
from builder.worker_source import WORKER

VARIABLE = "ENGINEFARM_ROOTFS"
DRIVER = "/usr/local/nvidia"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# of data-centre and desktop GPUs, of Jetsons, of Windows' Linux
_GPU_DEVICES = ("nvidia*", "nvhost*", "nvmap", "nvgpu", "dxg")
_LIBRARY = re.compile(
    r"^\s*(?P<name>libcuda\.so\.1|libnvidia-ml\.so\.1|libnvidia-(?:ptxjitcompiler|nvvm|gpucomp)\S*\.so\.\S+)"
    r" \((?P<abi>[^)]*)\) => (?P<path>\S+)$",
    re.MULTILINE,
)
_ABIS = {"x86_64": "x86-64", "aarch64": "AArch64"}
_ASK_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverFiles:
    """The driver's libraries: what to show of the machine, and the folders in the image that then hold them."""

    mounts: tuple[enter.Mount, ...]
    tmpfs: tuple[str, ...]
    folders: tuple[str, ...]


class RootfsExecutor:
    """One process per stage, with an unpacked image for its root."""

    def __init__(self, context: ExecutorContext) -> None:
        """Look at the folder.

        Raises:
            EnginefarmError: IMAGE_MISSING where ENGINEFARM_ROOTFS names no folder; EXECUTOR_UNAVAILABLE without the
                rights of root.

        """
        self._context = context
        self._folder = _folder()
        self._bases = load_bases(context.project.images)
        self._processors = Processors()
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str | None], ImageRecord] = {}
        self._driver: DriverFiles | None = None

    def identified(self, stack: Stack) -> bool:
        """Say whether the image is known, unpacked or not."""
        return self._record(stack) is not None

    def runtime(self, stack: Stack) -> Runtime:
        """Name the stack's image.

        Raises:
            EnginefarmError: IMAGE_MISSING where nothing is known of it.

        """
        record = self._record(stack)
        if record is None:
            raise self._missing(stack)
        return image_runtime(stack, record)

    def ready(self, stack: Stack) -> bool:
        """Say whether the image is unpacked."""
        record = self._record(stack)
        mark = read_mark(self._folder, stack.name)
        return record is not None and mark is not None and mark.digest == record.digest

    def prepare(self, stack: Stack, log: Path) -> None:  # noqa: ARG002  # nothing is done here
        """Refuse what is not unpacked: that takes a Docker Engine.

        Raises:
            EnginefarmError: IMAGE_MISSING.

        """
        if not self.ready(stack):
            raise self._missing(stack)

    def run(self, stack: Stack, request: StageRequest) -> StageResult:
        """Run one stage.

        Raises:
            EnginefarmError: IMAGE_MISSING; EXECUTOR_UNAVAILABLE where the machine forbids mounts; GPU_UNREADABLE where
                a GPU is asked for and the driver's libraries are not found; else as `stage.collect`.

        """
        mark = read_mark(self._folder, stack.name)
        if mark is None or not self.ready(stack):
            raise self._missing(stack)
        lay_out(request)
        with self._processors.lend() as processor:
            spec = self._spec(root_path(self._folder, stack.name), mark.env, request, processor)
            argv = [sys.executable, "-I", str(Path(enter.__file__)), json.dumps(spec._asdict())]
            outcome = process.run(
                argv,
                cwd=request.folder,
                # for this program alone: the stage gets what `spec` says
                env=os.environ,
                log=request.log,
                timeout_s=request.timeout_s,
                cancel=self._context.cancel,
            )
        if outcome.exit_code == enter.REFUSED and not (request.folder / "result.json").exists():
            fix = "run in a virtual machine or a privileged container, or use --executor local"
            what = f"stage {request.stage} could not enter the image of {stack.name}"
            raise EnginefarmError(Reason.EXECUTOR_UNAVAILABLE, what, why=process.tail(request.log), fix=fix)
        return collect(request, outcome)

    def _spec(self, root: Path, image_env: dict[str, str], request: StageRequest, processor: int) -> enter.Spec:
        env = {**image_env, **stage_environment(request, processor), "CUDA_VISIBLE_DEVICES": request.gpu or ""}
        tmpfs, devices = {TMP: TMP_OPTIONS}, [Path("/dev", name) for name in _DEVICES]
        mounts: list[enter.Mount] = []
        if request.gpu is not None:
            driver = self._driver_files()
            tmpfs |= dict.fromkeys(driver.tmpfs, "size=1m,mode=755")
            mounts += driver.mounts
            devices += [path for pattern in _GPU_DEVICES for path in sorted(Path("/dev").glob(pattern))]
            own = env.get("LD_LIBRARY_PATH")
            env["LD_LIBRARY_PATH"] = ":".join([*driver.folders, *([own] if own else [])])
        folder = request.folder.resolve()
        mounts += [
            enter.Mount(str(folder), WORK, read_only=False),
            # links to the store lie here: nothing in an image may change them
            enter.Mount(str(folder / "in"), f"{WORK}/in", read_only=True),
            enter.Mount(str(WORKER.resolve()), f"{SOURCE}/builder/worker", read_only=True),
        ]
        return enter.Spec(
            root=str(root.resolve()),
            parent=os.getpid(),
            tmpfs=tmpfs,
            devices=[str(path) for path in devices if path.exists()],
            mounts=mounts,
            argv=list(COMMAND),
            env=env,
            folder=WORK,
        )

    def _record(self, stack: Stack) -> ImageRecord | None:
        name = (stack.name, stack.variant)
        with self._lock:
            if name not in self._records:
                record = read_record(self._folder, stack.name)
                if record is None or newest_fitting(stack, self._bases, [record]) is None:
                    return None
                self._records[name] = record
            return self._records[name]

    def _missing(self, stack: Stack) -> EnginefarmError:
        record, mark = read_record(self._folder, stack.name), read_mark(self._folder, stack.name)
        lock = f" --lock {stack.variant}" if stack.variant else ""
        if record is None:
            why = f"{record_path(self._folder, stack.name)} is not there, or no record of an image"
        elif record.variant != stack.variant:
            why = f"it is that of lock {record.variant or 'requirements.lock'}"
        elif not self.identified(stack):
            why = f"it was built from other files than those of {stack.folder}"
        elif mark is None:
            why = f"{root_path(self._folder, stack.name)} is not there, or not unpacked to its end"
        else:
            why = f"{root_path(self._folder, stack.name)} holds {mark.digest}, the record is of {record.digest}"
        what = f"the image of stack {stack.name} is not unpacked in {self._folder}"
        fix = f"where a Docker Engine has it: `enginefarm images unpack {stack.name} DIR{lock}`; copy DIR here"
        return EnginefarmError(Reason.IMAGE_MISSING, what, why=why, fix=fix)

    def _driver_files(self) -> DriverFiles:
        with self._lock:
            if self._driver is None:
                self._driver = find_driver(Path(DRIVER), platform.machine())
            return self._driver


def find_driver(folder: Path, machine: str) -> DriverFiles:
    """Find the libraries of NVIDIA's driver: in a folder of their own, else where the linker finds them.

    Raises:
        EnginefarmError: GPU_UNREADABLE.

    """
    parts = [name for name in ("lib64", "lib") if (folder / name / "libcuda.so.1").exists()]
    if parts:
        folders = tuple(f"{DRIVER}/{name}" for name in parts)
        return DriverFiles(mounts=(enter.Mount(str(folder), DRIVER, read_only=True),), tmpfs=(), folders=folders)
    found = parse_libraries(_linker_cache(), machine)
    if "libcuda.so.1" not in found:
        what = "the libraries of NVIDIA's driver are not to be found"
        why = f"libcuda.so.1 is neither in {folder}/lib64 nor known to `ldconfig -p`"
        raise EnginefarmError(Reason.GPU_UNREADABLE, what, why=why, fix="run `ldconfig` after installing the driver")
    mounts = tuple(enter.Mount(path, f"{DRIVER}/lib64/{name}", read_only=True) for name, path in sorted(found.items()))
    return DriverFiles(mounts=mounts, tmpfs=(DRIVER,), folders=(f"{DRIVER}/lib64",))


def parse_libraries(listed: str, machine: str) -> dict[str, str]:
    """Read `ldconfig -p`: the driver's libraries that CUDA programs load, name to path; the first of a name counts."""
    found: dict[str, str] = {}
    for match in _LIBRARY.finditer(listed):
        if _ABIS.get(machine, machine) in match["abi"].split(","):
            found.setdefault(match["name"], match["path"])
    return found


def _linker_cache() -> str:
    program = shutil.which("ldconfig", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        return ""
    with tempfile.TemporaryDirectory() as name:
        log = Path(name) / "cache"
        process.run([program, "-p"], cwd=Path(name), env={}, log=log, timeout_s=_ASK_S)
        return log.read_text(encoding="utf-8", errors="replace")


def _folder() -> Path:
    named = os.environ.get(VARIABLE)
    if not named or not Path(named).is_dir():
        what = f"{VARIABLE} names no folder of unpacked images" + (f": {named}" if named else "")
        fix = f"`enginefarm images unpack STACK DIR` makes one; then set {VARIABLE}=DIR"
        raise EnginefarmError(Reason.IMAGE_MISSING, what, fix=fix)
    if os.geteuid() != 0:
        what = "unpacked images can be entered by root alone"
        raise EnginefarmError(Reason.EXECUTOR_UNAVAILABLE, what, fix="run as root, or use --executor docker or local")
    return Path(named).resolve()
