"""Stages in containers: what they may do, how they end, and that the engines are those of the local executor."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from builder.docker_engine import OWNER, DockerEngine
from builder.errors import EnginefarmError, Reason
from builder.events import Event, Note
from builder.executors import docker as docker_executor
from builder.executors.context import ExecutorContext
from builder.executors.docker import DockerExecutor
from builder.image_record import ImageRecord
from builder.project import Home, Project
from builder.stacks import load_stacks
from builder.stage import StageRequest, StageResult
from builder.worker_source import WORKER
from tests.integration.farm import ROOT, Farm, product, shapes, share_environments
from tests.integration.proxy import Proxy

pytestmark = pytest.mark.integration

STACK = "trtrtx1.7-cuda13"
PROBE = """
import json, os, socket
HOSTS = ("172.17.0.1", "8.8.8.8")
from .protocol import Outcome

def attempt(action):
    try:
        action()
    except OSError as error:
        return type(error).__name__
    return "done"

def write(path):
    return attempt(lambda: open(path, "w").write("x"))

def run(job):
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    facts = {
        "interfaces": sorted(os.listdir("/sys/class/net")),
        "connect": [attempt(lambda: socket.create_connection((host, 53), timeout=2)) for host in HOSTS],
        "writes": {path: write(path) for path in PATHS},
        "own": write("out/note.txt"),
        "scratch": write(os.environ["TMPDIR"] + "/note.txt"),
        "work": sorted(os.listdir("/work")),
        "ids": [os.getuid(), os.getgid()],
        "capabilities": status["CapEff"].strip(),
        "bounding": status["CapBnd"].strip(),
        "no_new_privileges": status["NoNewPrivs"].strip(),
        "seccomp": status["Seccomp"].strip(),
        "input": open("in/secret.txt").read(),
    }
    return Outcome({"note": "out/note.txt"}, facts)
"""
PATHS = ["/note", "/opt/stack/note", "/opt/enginefarm/src/builder/worker/note", "/work/in/secret.txt", "/etc/passwd"]
HANGS = """
import time
def run(job):
    print("under way", flush=True)
    time.sleep(120)
"""
EATS = """
def run(job):
    food = []
    while True:
        food.append(bytearray(16 << 20))
"""


class Box:
    """An executor over the shared image, with a worker whose stage `lower` is the test's own code."""

    def __init__(self, folder: Path, code: str, patch: pytest.MonkeyPatch, **changes: Any) -> None:
        share_environments(folder / "home")
        self.home = Home(root=folder / "home")
        self.run_folder = folder / "home" / "work" / "run-test"
        self.run_folder.mkdir(parents=True)
        worker = Path(copytree(WORKER, folder / "worker"))
        (worker / "lower.py").write_text(code, encoding="utf-8")
        patch.setattr(docker_executor, "WORKER", worker)
        self.events: list[Event] = []
        self.cancel = threading.Event()
        project = Project(root=ROOT)
        self.executor = DockerExecutor(
            ExecutorContext(
                project=project,
                home=self.home,
                install=False,
                cancel=self.cancel,
                listen=self.events.append,
                **changes,
            )
        )
        self.stack = load_stacks(project.images)[STACK]
        self.engine = DockerEngine()
        self.secret = folder / "secret.txt"
        self.secret.write_text("kept", encoding="utf-8")

    def run(self, timeout_s: float = 60.0, gpu: str | None = None) -> StageResult:
        folder = self.run_folder / "a job" / "lower"
        request = StageRequest(
            job="a job",
            stage="lower",
            inputs={"secret": self.secret},
            params={},
            folder=folder,
            timeout_s=timeout_s,
            gpu=gpu,
        )
        return self.executor.run(self.stack, request)

    def refuse(self, timeout_s: float = 60.0) -> EnginefarmError:
        with pytest.raises(EnginefarmError) as caught:
            self.run(timeout_s)
        return caught.value

    def containers(self) -> list[Any]:
        return self.engine.containers(f"{OWNER}={self.home.root}")

    def close(self) -> None:
        for engine in (self.engine, self.executor._engine):
            engine.client.close()


@pytest.fixture
def box(tmp_path: Path, rtx_image: ImageRecord, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Box]]:
    """Make a box around a stage's code; no container may be left at the end unless the test removes it."""
    made: list[Box] = []

    def make(code: str, **changes: Any) -> Box:
        made.append(Box(tmp_path, code, monkeypatch, **changes))
        return made[-1]

    yield make
    for one in made:
        assert one.containers() == []
        one.close()


def _until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_stage_sees_its_own_folder_and_nothing_else(box: Callable[..., Box]) -> None:
    one = box(PROBE.replace("PATHS", repr(PATHS)))
    facts = one.run().data
    assert facts["interfaces"] == ["lo"]
    assert set(facts["connect"]) == {"OSError"}
    assert {facts["writes"][path] for path in PATHS} <= {"OSError", "PermissionError"}
    assert (facts["own"], facts["scratch"], facts["input"]) == ("done", "done", "kept")
    assert facts["work"] == ["in", "job.json", "log.txt", "out"]
    assert facts["ids"] == [os.getuid(), os.getgid()]
    assert (facts["capabilities"], facts["bounding"]) == ("0" * 16, "0" * 16)
    assert (facts["no_new_privileges"], facts["seccomp"]) == ("1", "2")
    assert one.secret.read_text(encoding="utf-8") == "kept"
    assert (one.run_folder / "a job" / "lower" / "out" / "note.txt").stat().st_uid == os.getuid()


def test_too_much_memory_is_called_so(box: Callable[..., Box]) -> None:
    error = box(EATS, memory_bytes=200 << 20).refuse()
    assert error.reason is Reason.OUT_OF_MEMORY
    assert "200 MiB" in error.what


def test_a_container_that_somebody_kills(box: Callable[..., Box]) -> None:
    one = box(HANGS)

    def kill() -> None:
        _until(lambda: any(container.status == "running" for container in one.containers()))
        one.containers()[0].kill()

    threading.Thread(target=kill).start()
    error = one.refuse()
    assert error.reason is Reason.WORKER_DIED
    assert "signal 9" in error.what


def test_a_stage_that_takes_too_long(box: Callable[..., Box]) -> None:
    error = box(HANGS).refuse(timeout_s=2.0)
    assert error.reason is Reason.STAGE_TIMEOUT
    assert "under way" in (error.why or "")


def test_a_run_that_is_stopped(box: Callable[..., Box]) -> None:
    one = box(HANGS)
    threading.Timer(1.5, one.cancel.set).start()
    assert one.refuse().reason is Reason.INTERRUPTED


def test_a_kept_container_says_how_to_enter(box: Callable[..., Box]) -> None:
    one = box("def run(job):\n    raise SystemExit(3)\n", keep=True)
    assert one.refuse().reason is Reason.WORKER_DIED
    notes = [event.text for event in one.events if isinstance(event, Note)]
    assert len(notes) == 1
    assert "docker run --rm -it --network=none" in notes[0]
    kept = one.containers()
    assert len(kept) == 1
    kept[0].remove()


def test_containers_of_dead_runs_are_swept(box: Callable[..., Box]) -> None:
    one = box("def run(job):\n    raise SystemExit(3)\n", keep=True)
    one.refuse()
    one.run_folder.rename(one.run_folder.with_name("gone"))
    one.run_folder.mkdir()
    (one.run_folder / "a job").mkdir()
    next_one = Box(one.run_folder, "def run(job):\n    raise SystemExit(3)\n", pytest.MonkeyPatch())
    assert next_one.containers() == []
    one.containers()[0].remove()


def test_an_image_that_is_not_there(box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch) -> None:
    one = box(HANGS)
    monkeypatch.setattr("builder.images.find_record", lambda *_: None)
    assert not one.executor.identified(one.stack)
    assert one.refuse().reason is Reason.IMAGE_MISSING
    with pytest.raises(EnginefarmError) as caught:
        one.executor.prepare(one.stack, one.home.logs / "log")
    assert caught.value.reason is Reason.IMAGE_MISSING


def test_a_gpu_that_the_engine_cannot_give(box: Callable[..., Box]) -> None:
    one = box(HANGS)
    info = one.engine.client.info()
    if "nvidia" in info["Runtimes"] or "nvidia.com/gpu" in json.dumps(info.get("DiscoveredDevices")):
        pytest.skip("needs a Docker Engine without NVIDIA's runtime")
    with pytest.raises(EnginefarmError) as caught:
        one.run(gpu="GPU-11111111-aaaa-0000-0000-000000000001")
    assert caught.value.reason is Reason.TOOL_MISSING
    assert "nvidia-container-toolkit" in (caught.value.fix or "")


KILLED_FARM = """
import sys, threading
from contextlib import suppress
from pathlib import Path
from tests.integration.test_docker_executor import Box, HANGS
import pytest
Box(Path(sys.argv[1]), HANGS, pytest.MonkeyPatch()).run()
"""


def test_a_container_does_not_outlive_its_farm(tmp_path: Path, rtx_image: ImageRecord) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED_FARM, str(tmp_path)], cwd=ROOT)
    label = f"{OWNER}={tmp_path / 'home'}"
    engine = DockerEngine()
    _until(lambda: any(container.status == "running" for container in engine.containers(label)), 60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _until(lambda: all(container.status == "exited" for container in engine.containers(label)))
    for container in engine.containers(label):
        container.remove()


def test_the_engines_are_those_of_the_local_executor(farm: Farm, rtx_image: ImageRecord) -> None:
    precisions = {name: {"tolerance": {"default": {"max_abs": 0.05}}} for name in ("fp32", "fp16")}
    farm.recipe("toy", product(64), shapes(width=64), precisions=precisions)
    outside, inside = farm.build(), farm.build("--executor", "docker")
    digests = [[job["engine"]["sha256"] for job in jobs] for jobs in (outside, inside)]
    assert digests[0] == digests[1]
    assert [job["status"] for job in inside] == ["built", "built"]
    assert {job["engine"]["image"] for job in inside} == {rtx_image.digest}
    assert {job["engine"]["image"] for job in outside} == {None}
    shown = json.loads(farm.run("show", inside[0]["job"], "--json").stdout)
    said = shown["stack"]["image_base"]
    assert said == (f"stand-in {rtx_image.base}" if rtx_image.standin else rtx_image.base)
    assert [job["status"] for job in farm.build("--executor", "docker")] == ["reused", "reused"]
    again = farm.run("reproduce", inside[0]["job"], "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["level"] == "bitwise"


TAKES_A_WHILE = """
import time
from .protocol import Outcome
def run(job):
    time.sleep(3)
    return Outcome({}, {"done": True})
"""


@pytest.fixture
def proxy(tmp_path: Path, rtx_image: ImageRecord, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Put a proxy before the engine, for executors that are made from now on."""
    path = tmp_path / "docker.sock"
    made = Proxy(path)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    yield made
    monkeypatch.undo()
    made.close()
    # what the library leaves open of a lost engine is warned of in this test, and not in whichever is next
    gc.collect()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_restarts_in_the_middle(proxy: Proxy, box: Callable[..., Box]) -> None:
    one = box(TAKES_A_WHILE)

    def cut() -> None:
        _until(lambda: any(container.status == "running" for container in one.containers()))
        proxy.restart(away_s=1.0)

    cutting = threading.Thread(target=cut)
    cutting.start()
    assert one.run().data == {"done": True}
    cutting.join()
    notes = [event.text for event in one.events if isinstance(event, Note)]
    assert notes == ["the Docker Engine went away during lower; the stage runs again"]
    # the first container ended with its connection, and waits for the next run to sweep it
    _until(lambda: all(container.status == "exited" for container in one.containers()))
    for container in one.containers():
        container.remove()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_engine_that_stays_away(proxy: Proxy, box: Callable[..., Box], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_executor, "_BACK_S", 1.0)
    one = box(TAKES_A_WHILE)
    observer = DockerEngine()
    assert one.executor.identified(one.stack)

    def cut() -> None:
        _until(lambda: any(container.status == "running" for container in one.containers()))
        one.engine = observer
        proxy.restart(away_s=5.0)

    cutting = threading.Thread(target=cut)
    cutting.start()
    assert one.refuse().reason is Reason.DOCKER_UNAVAILABLE
    cutting.join()
    monkeypatch.delenv("DOCKER_HOST")
    one.engine = DockerEngine()
    _until(lambda: all(container.status == "exited" for container in one.containers()))
    for container in one.containers():
        container.remove()
