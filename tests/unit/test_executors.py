"""Where stages run: what there is to choose from, and how processors are shared."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from docker.errors import APIError

from builder import executors, process
from builder.environments import DONE, locate
from builder.errors import EnginefarmError, Reason
from builder.executors import EXECUTORS, docker_answers
from builder.executors.context import ExecutorContext
from builder.executors.local import LocalExecutor
from builder.executors.processors import Processors
from builder.project import Home, Project
from builder.stage import StageRequest
from tests.artifacts import refusal
from tests.unit.test_environments import OWN, make_stack


@pytest.fixture
def context(tmp_path: Path) -> ExecutorContext:
    """Let executors install nothing."""
    return ExecutorContext(
        project=Project(root=tmp_path),
        home=Home(root=tmp_path / "home"),
        install=False,
        cancel=threading.Event(),
        listen=lambda event: None,
    )


def test_registry_has_three_names() -> None:
    assert sorted(EXECUTORS) == ["docker", "local", "rootfs"]
    assert EXECUTORS["local"] is LocalExecutor
    assert executors.AUTO not in EXECUTORS


def test_docker_is_not_there_without_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(name: str) -> NoReturn:
        raise AssertionError(name)

    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(executors, "_SOCKET", tmp_path / "docker.sock")
    # nobody pays for the library then
    monkeypatch.setattr(executors, "import_module", imported)
    assert not docker_answers()


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize("place", ["socket", "variable"])
def test_docker_is_asked_where_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, *, answers: bool
) -> None:
    class Engine:
        def info(self) -> None:
            if not answers:
                raise EnginefarmError(Reason.DOCKER_UNAVAILABLE, "no Docker Engine answers")

    socket = tmp_path / "docker.sock"
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    if place == "socket":
        socket.touch()
    else:
        monkeypatch.setenv("DOCKER_HOST", "tcp://elsewhere:2375")
    monkeypatch.setattr(executors, "_SOCKET", socket)
    monkeypatch.setattr("builder.docker_engine.DockerEngine", Engine)
    assert docker_answers() is answers


@pytest.fixture
def four(monkeypatch: pytest.MonkeyPatch) -> Processors:
    """Make four processors, of which the first may not be used."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7, 3, 5})
    return Processors()


def test_stages_spread_over_the_processors(four: Processors) -> None:
    with four.lend() as first, four.lend() as second, four.lend() as third:
        assert [first, second, third] == [3, 5, 7]
        # one more than there are: each may get a second, none a third
        with four.lend() as fourth, four.lend() as fifth:
            assert [fourth, fifth] == [3, 5]


def test_processor_that_is_free_again_is_next(four: Processors) -> None:
    with four.lend():
        with four.lend() as second:
            pass
        with four.lend() as again:
            assert again == second


def test_processor_is_free_after_an_error(four: Processors) -> None:
    with pytest.raises(ZeroDivisionError), four.lend():
        raise ZeroDivisionError
    with four.lend() as processor:
        assert processor == 3


def test_threads_get_processors_of_their_own(four: Processors) -> None:
    together, lent = threading.Barrier(6, timeout=20), []

    def stage() -> None:
        with four.lend() as processor:
            lent.append(processor)
            together.wait()

    threads = [threading.Thread(target=stage) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lent) == [3, 3, 5, 5, 7, 7]


def test_only_allowed_processors_are_lent() -> None:
    with Processors().lend() as processor:
        assert processor in os.sched_getaffinity(0)


def test_local_stack_is_known_before_it_is_installed(context: ExecutorContext, tmp_path: Path) -> None:
    local, stack = LocalExecutor(context), make_stack(tmp_path / "images" / "export")
    assert local.identified(stack)
    assert not local.ready(stack)
    runtime = local.runtime(stack)
    assert (runtime.stack, runtime.python, runtime.image) == (stack, OWN, None)
    assert not context.home.root.exists()


def test_local_stack_is_not_installed_unasked(
    context: ExecutorContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> NoReturn:
        raise AssertionError

    monkeypatch.setattr(process, "run", run)
    local, stack = LocalExecutor(context), make_stack(tmp_path / "images" / "export")
    error = refusal(lambda: local.prepare(stack, tmp_path / "log"))
    assert error.reason is Reason.ENVIRONMENT_MISSING
    assert "export" in error.what


def test_local_stack_that_is_installed_is_ready_and_its_use_noted(context: ExecutorContext, tmp_path: Path) -> None:
    stack = make_stack(tmp_path / "images" / "export")
    mark = locate(stack, context.home).folder / DONE
    mark.parent.mkdir(parents=True)
    mark.touch()
    os.utime(mark, (1, 1))
    local = LocalExecutor(context)
    assert local.ready(stack)
    local.prepare(stack, tmp_path / "log")
    assert mark.stat().st_mtime > 1000


def test_local_executor_needs_a_python_of_the_stack(
    context: ExecutorContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATH", "PYENV_ROOT", "UV_PYTHON_INSTALL_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    stack = make_stack(tmp_path, python="3.8")
    assert sys.version_info >= (3, 9)
    assert refusal(lambda: LocalExecutor(context).runtime(stack)).reason is Reason.PYTHON_MISSING


@pytest.mark.parametrize("gpu", [None, "GPU-1"])
def test_local_stage_sees_the_gpu_that_it_is_given_and_no_other(
    context: ExecutorContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: str | None
) -> None:
    told: dict[str, str] = {}

    def run(argv: list[str], **options: Any) -> NoReturn:
        told.update(options["env"])
        raise ZeroDivisionError

    # what is set for the farm names other GPUs
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.setenv("CUDA_MODULE_LOADING", "EAGER")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(process, "run", run)
    request = StageRequest(
        job="a job", stage="build", inputs={}, params={}, folder=tmp_path / "stage", timeout_s=1.0, gpu=gpu
    )
    with pytest.raises(ZeroDivisionError):
        LocalExecutor(context).run(make_stack(tmp_path / "images" / "export"), request)
    given = {name: value for name, value in told.items() if "CUDA" in name or "NVIDIA" in name}
    lazy = {} if gpu is None else {"CUDA_MODULE_LOADING": "LAZY"}
    assert given == {"CUDA_VISIBLE_DEVICES": gpu or "", **lazy}


class FakeContainers:
    """An engine's containers; making one fails with what an engine would say."""

    def __init__(self, said: str) -> None:
        self.said = said
        self.asked: dict[str, Any] = {}

    def create(self, *_: object, **options: Any) -> NoReturn:
        self.asked = options
        raise APIError("500 Server Error", explanation=self.said)


@pytest.fixture
def docker(context: ExecutorContext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run a stage in a container that the engine refuses to make, for the reason given."""
    changed = replace(context, project=Project(root=Path(__file__).parents[2]), memory_bytes=1 << 30)

    def run(said: str, gpu: str | None) -> tuple[EnginefarmError, dict[str, Any]]:
        executor: Any = EXECUTORS["docker"](changed)
        containers = FakeContainers(said)
        executor._engine._client = SimpleNamespace(containers=containers)
        monkeypatch.setattr(executor, "_sweep", lambda: None)
        monkeypatch.setattr(executor, "_comes_back", lambda: False)
        monkeypatch.setattr(executor, "_find", lambda stack: SimpleNamespace(tag="enginefarm/x:1"))
        folder = tmp_path / "run" / "job" / "stage"
        request = StageRequest(job="a", stage="lower", inputs={}, params={}, folder=folder, timeout_s=1.0, gpu=gpu)
        error = refusal(lambda: executor.run(make_stack(tmp_path / "images" / "export"), request))
        return error, containers.asked

    return run


def test_container_is_given_the_gpu_and_told_of_it(docker: Callable[..., Any]) -> None:
    _, asked = docker("x", "GPU-1")
    assert asked["device_requests"] == [
        {"Driver": "nvidia", "Count": 0, "DeviceIDs": ["GPU-1"], "Capabilities": [["gpu"]], "Options": {}}
    ]
    named = {name: value for name, value in asked["environment"].items() if "CUDA" in name or "NVIDIA" in name}
    assert named == {"NVIDIA_DRIVER_CAPABILITIES": "compute,utility", "CUDA_MODULE_LOADING": "LAZY"}


def test_container_without_a_gpu_hears_of_none(docker: Callable[..., Any]) -> None:
    _, asked = docker("x", None)
    assert asked["device_requests"] == []
    assert not [name for name in asked["environment"] if "CUDA" in name or "NVIDIA" in name]


@pytest.mark.parametrize(
    ("said", "gpu", "reason"),
    [
        ('could not select device driver "nvidia" with capabilities: [[gpu]]', "GPU-1", Reason.TOOL_MISSING),
        ("failed to inject CDI devices: unresolvable CDI devices nvidia.com/gpu=x", "GPU-1", Reason.TOOL_MISSING),
        ("nvidia-container-cli: device error: GPU-1: unknown device", "GPU-1", Reason.GPU_UNREADABLE),
        ("something else", "GPU-1", Reason.DOCKER_UNAVAILABLE),
        ('could not select device driver "nvidia"', None, Reason.DOCKER_UNAVAILABLE),
    ],
)
def test_trouble_with_a_gpu_is_called_so(
    docker: Callable[..., Any], said: str, gpu: str | None, reason: Reason
) -> None:
    error, _ = docker(said, gpu)
    assert (error.reason, error.why) == (reason, said)
    assert ("nvidia-container-toolkit" in (error.fix or "")) == (reason is Reason.TOOL_MISSING)
