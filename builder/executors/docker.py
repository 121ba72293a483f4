"""Runs each stage in a container of its stack's image: no network, nothing to write but the stage's own folder."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from docker.errors import APIError
from docker.models.containers import Container
from docker.types import DeviceRequest, Mount

from builder import host
from builder.bases import load_bases
from builder.docker_engine import FLOOR, OWNER, RUN, DockerEngine, docker_errors
from builder.docker_stream import Stream
from builder.errors import EnginefarmError, Reason
from builder.events import Note
from builder.executors.contained import COMMAND, SOURCE, TMP, TMP_OPTIONS, WORK, image_runtime, stage_environment
from builder.executors.context import ExecutorContext
from builder.executors.processors import Processors
from builder.image_record import ImageRecord
from builder.images import ImageBuilder, settings_of
from builder.key import Runtime
from builder.process import Outcome
from builder.stacks import Stack
from builder.stage import StageRequest, StageResult, collect, lay_out
from builder.worker_source import WORKER

_PIDS = 512
_KILLED = 137
_SIGNALS = 128
_TRIES = 2
_BACK_S = 15.0
_LOOK_S = 0.1
# the engine's words where it has no driver of that name, and those of the runtime that it calls
_NO_RUNTIME = (
    "could not select device driver",
    "nvidia-container-runtime-hook: no such file",
    "unresolvable CDI devices",
)
_RUNTIME = ("nvidia-container-cli", "nvidia-container-runtime")
_INSTALL_RUNTIME = (
    "install nvidia-container-toolkit, then `sudo nvidia-ctk runtime configure --runtime=docker` and "
    "`sudo systemctl restart docker`; or use --executor local"
)


class DockerExecutor:
    """One container per stage; images are built on first use unless installing is off."""

    def __init__(self, context: ExecutorContext) -> None:
        self._context = context
        self._engine = DockerEngine()
        self._images: dict[str, ImageRecord] = {}
        self._processors = Processors()
        self._lock = threading.Lock()
        self._swept = False
        self._builder = ImageBuilder(
            project=context.project,
            home=context.home,
            bases=load_bases(context.project.images),
            engine=self._engine,
            listen=context.listen,
            cancel=context.cancel,
            settings=settings_of(os.environ),
        )

    def identified(self, stack: Stack) -> bool:
        """Say whether the image is known: its digest is part of the keys."""
        return self._find(stack) is not None

    def runtime(self, stack: Stack) -> Runtime:
        """Name the stack's image.

        Raises:
            EnginefarmError: IMAGE_MISSING before it is built.

        """
        record = self._find(stack)
        if record is None:
            raise EnginefarmError(Reason.IMAGE_MISSING, f"the image of stack {stack.name} is not built")
        return image_runtime(stack, record)

    def ready(self, stack: Stack) -> bool:
        """Say whether the image is here."""
        return self.identified(stack)

    def prepare(self, stack: Stack, log: Path) -> None:  # noqa: ARG002  # images keep logs of their own
        """Build the image.

        Raises:
            EnginefarmError: IMAGE_MISSING when installing is off; else as `ImageBuilder.build`.

        """
        if self.identified(stack):
            return
        if not self._context.install:
            raise EnginefarmError(Reason.IMAGE_MISSING, f"the image of stack {stack.name} is not built")
        _check_version(self._engine)
        self._images[stack.name] = self._builder.build(stack)

    def run(self, stack: Stack, request: StageRequest) -> StageResult:
        """Run one stage in a container; once more if the engine went away meanwhile and came back.

        Raises:
            EnginefarmError: OUT_OF_MEMORY, DOCKER_UNAVAILABLE, IMAGE_MISSING; else as `stage.collect`.

        """
        self._sweep()
        for attempt in range(1, _TRIES + 1):
            try:
                return self._run(stack, request)
            except EnginefarmError as error:
                if error.reason is not Reason.DOCKER_UNAVAILABLE or attempt == _TRIES or not self._comes_back():
                    raise
                text = f"the Docker Engine went away during {request.stage}; the stage runs again"
                self._context.listen(Note(subject=request.job, text=text))
        raise AssertionError

    def _run(self, stack: Stack, request: StageRequest) -> StageResult:
        lay_out(request)
        record = self._find(stack)
        if record is None:
            raise EnginefarmError(Reason.IMAGE_MISSING, f"the image of stack {stack.name} is gone")
        limit = self._memory_limit()
        doing = f"running stage {request.stage}"
        with self._processors.lend() as processor, docker_errors(doing), _gpu_errors(request):
            container = self._create(record, request, processor, limit)
            failed = True
            try:
                outcome = self._watch(container, request)
                container.reload()
                if container.attrs["State"]["OOMKilled"]:
                    raise _out_of_memory(request, limit)
                result = collect(request, outcome)
                failed = False
            finally:
                self._put_away(container, record, request, failed=failed)
        return result

    def _create(self, record: ImageRecord, request: StageRequest, processor: int, limit: int) -> Container:
        environment = {
            **stage_environment(request, processor),
            "ENGINEFARM_LEASE": "stdin",
            **({"NVIDIA_DRIVER_CAPABILITIES": "compute,utility"} if request.gpu is not None else {}),
        }
        return self._engine.client.containers.create(
            record.tag,
            list(COMMAND),
            network_mode="none",
            read_only=True,
            cap_drop=["ALL"],
            security_opt=["no-new-privileges"],
            user=f"{os.getuid()}:{os.getgid()}",
            mem_limit=limit,
            memswap_limit=limit,
            pids_limit=_PIDS,
            tmpfs={TMP: TMP_OPTIONS},
            mounts=[
                Mount(WORK, str(request.folder), type="bind"),
                # links to the store lie here: nothing in a container may change them
                Mount(f"{WORK}/in", str(request.folder / "in"), type="bind", read_only=True),
                Mount(f"{SOURCE}/builder/worker", str(WORKER), type="bind", read_only=True),
            ],
            device_requests=_devices(request),
            environment=environment,
            labels={OWNER: str(self._context.home.root), RUN: str(request.folder.parents[1])},
            stdin_open=True,
            working_dir=WORK,
        )

    def _watch(self, container: Container, request: StageRequest) -> Outcome:
        started = time.monotonic()
        timed_out = cancelled = False
        with Stream(self._engine, container, request.log) as stream:
            container.start()
            while not stream.ended(_LOOK_S):
                cancelled = self._context.cancel.is_set()
                timed_out = time.monotonic() - started > request.timeout_s
                if cancelled or timed_out:
                    break
        stopped = cancelled or timed_out
        code = _KILLED if stopped else int(container.wait(timeout=_BACK_S)["StatusCode"])
        return Outcome(
            argv=("docker", "run", *container.attrs["Config"]["Cmd"]),
            exit_code=code if code < _SIGNALS else None,
            signal=code - _SIGNALS if code >= _SIGNALS else None,
            duration_s=time.monotonic() - started,
            log=request.log,
            max_rss_bytes=0,
            timed_out=timed_out,
            cancelled=cancelled,
        )

    def _put_away(self, container: Container, record: ImageRecord, request: StageRequest, *, failed: bool) -> None:
        if not (failed and self._context.keep):
            try:
                self._engine.remove(container)
            except EnginefarmError:
                # the engine is gone; a later run sweeps what it left
                return
            return
        enter = f"docker run --rm -it --network=none -v {request.folder}:/work {record.tag} bash"
        kept = f"container {container.short_id} of stage {request.stage} is kept (docker logs, docker cp)"
        text = f"{kept}; to look around in its image: {enter}"
        self._context.listen(Note(subject=request.job, text=text))

    def _find(self, stack: Stack) -> ImageRecord | None:
        with self._lock:
            if stack.name not in self._images:
                found = self._builder.find(stack)
                if found is None:
                    return None
                self._images[stack.name] = found
            return self._images[stack.name]

    def _memory_limit(self) -> int:
        return self._context.memory_bytes or host.available_memory_bytes()

    def _sweep(self) -> None:
        """Remove containers of runs of this home that are dead: their folders are gone."""
        with self._lock:
            if self._swept:
                return
            self._swept = True
        for container in self._engine.containers(f"{OWNER}={self._context.home.root}"):
            if not Path(container.labels.get(RUN, "")).is_dir():
                self._engine.remove(container)

    def _comes_back(self) -> bool:
        deadline = time.monotonic() + _BACK_S
        while time.monotonic() < deadline and not self._context.cancel.wait(0.5):
            try:
                self._engine.info()
            except EnginefarmError:
                continue
            return True
        return False


def _devices(request: StageRequest) -> list[DeviceRequest]:
    if request.gpu is None:
        return []
    return [DeviceRequest(driver="nvidia", device_ids=[request.gpu], capabilities=[["gpu"]])]


@contextmanager
def _gpu_errors(request: StageRequest) -> Iterator[None]:
    """Name what keeps a GPU out of a container: the engine reports it like any of its own troubles."""
    try:
        yield
    except APIError as error:
        said = str(error.explanation or error)
        if request.gpu is None:
            raise
        if any(sign in said for sign in _NO_RUNTIME):
            what = f"this Docker Engine cannot give GPU {request.gpu} to a container"
            raise EnginefarmError(Reason.TOOL_MISSING, what, why=said, fix=_INSTALL_RUNTIME) from error
        if any(sign in said for sign in _RUNTIME):
            what = f"NVIDIA's container runtime failed with GPU {request.gpu}"
            raise EnginefarmError(Reason.GPU_UNREADABLE, what, why=said) from error
        raise


def _out_of_memory(request: StageRequest, limit: int) -> EnginefarmError:
    what = f"stage {request.stage} needed more than its {limit >> 20} MiB and was killed by the kernel"
    fix = "lower -j, raise --memory, or use smaller maximum shapes"
    return EnginefarmError(Reason.OUT_OF_MEMORY, what, fix=fix)


def _check_version(engine: DockerEngine) -> None:
    info = engine.info()
    numbers = tuple(int(part) for part in info.version.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers and numbers < FLOOR:
        what = f"Docker Engine {info.version} is too old: images need {FLOOR[0]}.{FLOOR[1]}"
        raise EnginefarmError(Reason.DOCKER_UNAVAILABLE, what, fix="update it, or use --executor local")
