"""Stages in unpacked images: what they may do, how they end, and that they make and find docker's engines."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from builder.errors import Reason
from builder.events import Event
from builder.executors import enter, rootfs
from builder.executors.context import ExecutorContext
from builder.executors.enter import Mount
from builder.executors.rootfs import DriverFiles, RootfsExecutor
from builder.image_record import ImageRecord
from builder.project import Home, Project
from builder.stacks import load_stacks
from builder.stage import StageRequest, StageResult
from builder.worker_source import WORKER
from tests.artifacts import refusal
from tests.integration.farm import ROOT, Farm, product, shapes

pytestmark = pytest.mark.integration

STACK = "trtrtx1.7-cuda13"
PROBE = """
import os, socket
from .protocol import Outcome

def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

def write(path):
    return attempt(lambda: open(path, "r+" if os.path.isfile(path) else "w").write("x"))

def run(job):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    facts = {
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "connect": attempt(lambda: socket.create_connection(("8.8.8.8", 53), timeout=2)),
        "writes": {path: write(path) for path in PATHS},
        "own": write("out/note.txt"),
        "scratch": write(os.environ["TMPDIR"] + "/note.txt"),
        "work": sorted(os.listdir("/work")),
        "devices": sorted(os.listdir("/dev")),
        "chroot": attempt(lambda: os.chroot("/tmp")),
        "mknod": attempt(lambda: os.mknod("/tmp/disk", 0o60600, os.makedev(8, 0))),
        "capabilities": [status[name].strip() for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "environment": dict(os.environ),
        "input": open("in/secret.txt").read(),
    }
    return Outcome({"note": "out/note.txt"}, facts)
"""
PATHS = [
    "/note",
    "/opt/stack/note",
    "/opt/enginefarm/src/builder/worker/note",
    "/work/in/secret.txt",
    "/etc/passwd",
    "/proc/sys/kernel/hostname",
    "/sys/power/state",
]
HANGS = """
import subprocess, sys, time
def run(job):
    print("under way", flush=True)
    time.sleep(120)
"""


class Box:
    """An executor over the shared root, with a worker whose stage `lower` is the test's own code."""

    def __init__(self, folder: Path, roots: Path, code: str, patch: pytest.MonkeyPatch) -> None:
        patch.setenv("ENGINEFARM_ROOTFS", str(roots))
        worker = Path(shutil.copytree(WORKER, folder / "worker"))
        (worker / "lower.py").write_text(code, encoding="utf-8")
        patch.setattr(rootfs, "WORKER", worker)
        self.events: list[Event] = []
        self.cancel = threading.Event()
        self.stack = load_stacks(ROOT / "images")[STACK]
        self.folder = folder / "a job" / "lower"
        self.executor = RootfsExecutor(
            ExecutorContext(
                project=Project(root=ROOT),
                home=Home(root=folder / "home"),
                install=False,
                cancel=self.cancel,
                listen=self.events.append,
            )
        )
        self.secret = folder / "secret.txt"
        self.secret.write_text("kept", encoding="utf-8")

    def run(self, timeout_s: float = 60.0, gpu: str | None = None) -> StageResult:
        request = StageRequest(
            job="a job",
            stage="lower",
            inputs={"secret": self.secret},
            params={},
            folder=self.folder,
            timeout_s=timeout_s,
            gpu=gpu,
        )
        return self.executor.run(self.stack, request)


@pytest.fixture
def box(tmp_path: Path, roots: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Box]:
    """Make a box around a stage's code."""
    return lambda code: Box(tmp_path, roots, code, monkeypatch)


def logged(folder: Path) -> str:
    """Return what a stage has said so far."""
    try:
        return (folder / "log.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def mounts() -> list[str]:
    """List what is mounted on this machine."""
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()


def workers(folder: Path) -> list[int]:
    """Find the processes whose working folder is a stage's."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").stat().st_ino == folder.stat().st_ino:
                found.append(int(path.name))
        except OSError:
            continue
    return found


def test_a_stage_sees_its_own_folder_and_nothing_else(box: Callable[[str], Box]) -> None:
    one = box(PROBE.replace("PATHS", repr(PATHS)))
    facts = one.run().data
    assert facts["interfaces"] == ["lo"]
    assert facts["connect"] == "OSError"
    assert {path: said for path, said in facts["writes"].items() if said not in {"OSError", "PermissionError"}} == {}
    assert (facts["own"], facts["scratch"], facts["input"]) == ("done", "done", "kept")
    assert facts["work"] == ["in", "job.json", "log.txt", "out"]
    devices = {"fd", "full", "null", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}
    assert set(facts["devices"]) <= devices
    assert (facts["chroot"], facts["mknod"]) == ("PermissionError", "PermissionError")
    assert facts["capabilities"] == ["0" * 16] * 5
    assert facts["no_new_privileges"] == "1"
    assert one.secret.read_text(encoding="utf-8") == "kept"
    assert "warning" not in logged(one.folder)


def test_a_stage_has_the_images_variables_and_its_own(
    box: Callable[[str], Box], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "of the farm")
    env = box(PROBE.replace("PATHS", "[]")).run().data["environment"]
    assert env.pop("PATH").startswith("/usr/local/sbin:")
    assert env.pop("ENGINEFARM_CPU").isdecimal()
    # what Python itself sets where the image names no locale
    env.pop("LC_CTYPE", None)
    assert env == {
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": "/opt/enginefarm/src:/opt/stack",
        "PYTHONHASHSEED": "0",
        "HOME": "/tmp",
        "TMPDIR": "/tmp",
        "CUDA_VISIBLE_DEVICES": "",
    }


def test_nothing_is_mounted_outside(box: Callable[[str], Box], roots: Path) -> None:
    one, before = box(HANGS), mounts()
    during: list[list[str]] = []

    def look() -> None:
        until(lambda: "under way" in logged(one.folder))
        during.append(mounts())
        # what looks like the image from here is the image alone
        assert not any((roots / STACK / "work").iterdir())
        assert sorted(path.name for path in (roots / STACK / "dev").iterdir() if path.name == "null") == []
        one.cancel.set()

    looking = threading.Thread(target=look)
    looking.start()
    assert refusal(one.run).reason is Reason.INTERRUPTED
    looking.join()
    assert during == [before]
    shutil.rmtree(one.folder)
    assert (roots / STACK / "opt" / "stack").is_dir()


def test_a_stage_that_takes_too_long(box: Callable[[str], Box]) -> None:
    one = box(HANGS)
    error = refusal(lambda: one.run(timeout_s=1.5))
    assert error.reason is Reason.STAGE_TIMEOUT
    assert "under way" in (error.why or "")
    assert workers(one.folder) == []


def test_a_stage_that_somebody_kills(box: Callable[[str], Box]) -> None:
    one = box(HANGS)

    def kill() -> None:
        until(lambda: "under way" in logged(one.folder))
        os.kill(workers(one.folder)[0], signal.SIGKILL)

    threading.Thread(target=kill).start()
    error = refusal(one.run)
    assert (error.reason, "signal 9" in error.what) == (Reason.WORKER_DIED, True)


KILLED_FARM = """
import sys, threading
from pathlib import Path
import pytest
from tests.integration.test_rootfs_executor import HANGS, Box
Box(Path(sys.argv[1]), Path(sys.argv[2]), HANGS, pytest.MonkeyPatch()).run()
"""


def test_a_stage_does_not_outlive_its_farm(tmp_path: Path, roots: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED_FARM, str(tmp_path), str(roots)], cwd=ROOT)
    folder = tmp_path / "a job" / "lower"
    until(lambda: "under way" in logged(folder))
    assert len(workers(folder)) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    until(lambda: workers(folder) == [])


SEES_A_DRIVER = """
import ctypes, os
from .protocol import Outcome
def run(job):
    wanted = ("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "CUDA_MODULE_LOADING")
    library = ctypes.CDLL("libcuda.so.1")
    facts = {name: os.environ.get(name) for name in wanted}
    facts["mapped"] = [line.split()[-1] for line in open("/proc/self/maps") if "libcuda" in line][0]
    try:
        open("/usr/local/nvidia/lib64/libcuda.so.1", "a")
    except OSError as error:
        facts["writing"] = type(error).__name__
    return Outcome({}, facts)
"""


@pytest.mark.parametrize("place", ["folder", "files"])
def test_a_stage_with_a_gpu_loads_the_machines_driver(
    box: Callable[[str], Box], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Any library does for a driver here: how it comes in is what matters."""
    one = box(SEES_A_DRIVER)
    driver = tmp_path / "driver"
    (driver / "lib64").mkdir(parents=True)
    source = next(Path("/").glob("lib/*-linux-gnu/libm.so.6"))
    shutil.copy(source, driver / "lib64" / "libcuda.so.1")
    if place == "folder":
        found = rootfs.find_driver(driver, "x86_64")
    else:
        target = f"{rootfs.DRIVER}/lib64"
        mount = Mount(str(driver / "lib64" / "libcuda.so.1"), f"{target}/libcuda.so.1", read_only=True)
        found = DriverFiles(mounts=(mount,), tmpfs=(rootfs.DRIVER,), folders=(target,))
    monkeypatch.setattr(rootfs, "find_driver", lambda folder, machine: found)
    assert one.run(gpu="GPU-1").data == {
        "CUDA_VISIBLE_DEVICES": "GPU-1",
        "LD_LIBRARY_PATH": "/usr/local/nvidia/lib64",
        "CUDA_MODULE_LOADING": "LAZY",
        "mapped": "/usr/local/nvidia/lib64/libcuda.so.1",
        "writing": "OSError",
    }


def test_no_driver_for_a_stage_with_a_gpu(box: Callable[[str], Box], monkeypatch: pytest.MonkeyPatch) -> None:
    one = box(SEES_A_DRIVER)
    monkeypatch.setattr(rootfs, "_linker_cache", lambda: "")
    monkeypatch.setattr(rootfs, "DRIVER", "/nowhere")
    assert refusal(lambda: one.run(gpu="GPU-1")).reason is Reason.GPU_UNREADABLE


def test_the_real_linker_is_asked() -> None:
    assert "libc.so.6" in rootfs._linker_cache()


def test_an_image_that_cannot_be_entered(box: Callable[[str], Box], monkeypatch: pytest.MonkeyPatch) -> None:
    one = box(HANGS)
    honest = one.executor._spec

    def orphaned(*arguments: Any) -> enter.Spec:
        # as if the farm had died while the stage was starting
        return honest(*arguments)._replace(parent=1)

    monkeypatch.setattr(one.executor, "_spec", orphaned)
    error = refusal(one.run)
    assert error.reason is Reason.EXECUTOR_UNAVAILABLE
    assert "the farm is gone" in (error.why or "")


def test_a_root_with_a_link_for_a_mount_point(
    box: Callable[[str], Box], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = box(HANGS)
    honest = one.executor._spec
    false = tmp_path / "false"
    false.mkdir()
    (false / "tmp").symlink_to(tmp_path)

    def lured(*arguments: Any) -> enter.Spec:
        return honest(*arguments)._replace(root=str(false))

    monkeypatch.setattr(one.executor, "_spec", lured)
    assert "/tmp of the image is a link" in (refusal(one.run).why or "")


def test_the_engines_are_those_of_the_local_executor(farm: Farm, roots: Path, rtx_image: ImageRecord) -> None:
    (farm.home / "images").unlink(missing_ok=True)
    precisions = {name: {"tolerance": {"default": {"max_abs": 0.05}}} for name in ("fp32", "fp16")}
    farm.recipe("toy", product(64), shapes(width=64), precisions=precisions)
    outside = farm.build()
    inside = farm.build("--executor", "rootfs", ENGINEFARM_ROOTFS=str(roots))
    digests = [[job["engine"]["sha256"] for job in jobs] for jobs in (outside, inside)]
    assert digests[0] == digests[1]
    assert [job["status"] for job in inside] == ["built", "built"]
    assert {job["engine"]["image"] for job in inside} == {rtx_image.digest}
    again = farm.build("--executor", "rootfs", ENGINEFARM_ROOTFS=str(roots))
    assert [job["status"] for job in again] == ["reused", "reused"]


def test_docker_and_unpacked_images_share_keys(farm: Farm, roots: Path, tmp_path: Path, rtx_image: ImageRecord) -> None:
    farm.recipe("toy", product(64), shapes(width=64))
    built = farm.build("--executor", "docker")
    record = tmp_path / "record-only"
    said = farm.run("images", "unpack", STACK, str(record), "--record-only")
    assert (said.returncode, sorted(path.name for path in record.iterdir())) == (0, [f"{STACK}.json"])
    # the record is enough to find what the store has, and not to make anything
    found = farm.build("--executor", "rootfs", ENGINEFARM_ROOTFS=str(record))
    assert [job["status"] for job in found] == ["reused"]
    assert [job["key"] for job in found] == [job["key"] for job in built]
    farm.recipe("other", product(32), shapes(width=32))
    jobs = farm.build(code=5, ENGINEFARM_ROOTFS=str(record), ENGINEFARM_EXECUTOR="rootfs")
    failed = next(job for job in jobs if job["status"] == "failed")
    assert failed["error"]["reason"] == "image-missing"
    assert "not unpacked to its end" in json.dumps(failed["error"])
