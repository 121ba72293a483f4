"""Times an engine of the store against its baselines on a leased GPU and writes what it found into the manifest."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from builder import gpu_watch
from builder.bench_baselines import STAGE as BASELINE
from builder.bench_baselines import run_baseline
from builder.bench_players import Player
from builder.bench_result import BenchPart
from builder.bench_rounds import Match, Rounds
from builder.bench_subject import KINDS, ONNX_KIND, BenchSubject, find_baselines, find_subject
from builder.built import executor_of
from builder.errors import EnginefarmError
from builder.events import Listener, Note, StepFinished, StepStarted
from builder.executors import AUTO, EXECUTORS, Executor
from builder.executors.context import ExecutorContext
from builder.fetch import Fetcher
from builder.gpu import Gpu, GpuProcess, GpuSample, sample, visible_gpus
from builder.gpu_choice import choose_gpus, hidden
from builder.gpu_lease import lease
from builder.jobs import read_manifest, update_manifest
from builder.manifest import Manifest
from builder.models import Models
from builder.project import Home, Project
from builder.query import find_engine
from builder.stacks import load_stacks
from builder.stage import StageRequest
from builder.store import Store
from builder.workspace import Workspace

STAGE = "bench"
_POINTS = {False: ("opt",), True: ("min", "opt", "max")}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSettings:
    """How to bench. `baseline_python`: a Python with PyTorch or ONNX Runtime; null times the engine alone.

    `baselines`: kinds to compare with, such as eager; none means all that the recipe's source allows. `all_shapes`:
    min, opt and max of each shape profile instead of opt alone. `executor` auto: as the engine was built.
    """

    baseline_python: Path | None = None
    baselines: tuple[str, ...] = ()
    rounds: int = 5
    all_shapes: bool = False
    executor: str = AUTO
    install: bool = True
    keep_work: bool = False
    timeout_s: float = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Benched:
    """An engine and what was found; `manifest` holds it already."""

    job: str
    manifest: Manifest
    result: BenchPart


class NvmlGauge:
    """Sees a GPU through its driver."""

    def __init__(self, uuid: str) -> None:
        self._uuid = uuid

    def sample(self) -> GpuSample:
        """Look once."""
        return sample(self._uuid)

    def strangers(self) -> Sequence[GpuProcess]:
        """List the programs that no farm started."""
        with gpu_watch.Watch(self._uuid) as watch:
            pass
        return watch.seen.neighbours


def bench(
    name: str, project: Project, home: Home, settings: BenchSettings, listen: Listener, cancel: threading.Event
) -> Benched:
    """Time the engine `name` (job id, key or engine digest); the result goes into its manifest.

    Raises:
        EnginefarmError: NAME_UNKNOWN, STORE_CORRUPT, GPU_NEEDED, SM_MISMATCH, GPU_BUSY, INPUTS_CHANGED when the recipe
            or the stack is no longer the engine's, STAGE_TIMEOUT, INTERRUPTED, or what the stage says.

    """
    store = Store(home.store)
    entry = find_engine(store, name)
    store.check(entry)
    manifest = read_manifest(store, entry)
    subject = find_subject(store, entry, manifest, project)
    gpus = choose_gpus(subject.job, visible_gpus(os.environ), "timed", hidden(os.environ))
    chosen = EXECUTORS[executor_of(manifest, settings.executor)]
    context = ExecutorContext(
        project=project, home=home, install=settings.install, cancel=cancel, listen=listen, keep=settings.keep_work
    )
    executor = chosen(context)
    executor.prepare(subject.stack, home.logs / f"install-{subject.stack.name}.log")
    stacks = load_stacks(project.images)
    models = Models(project=project, home=home, store=store, executor=executor, stacks=stacks)
    samples = models.sample_files(subject.recipe)
    wanted = settings.baselines or KINDS if settings.baseline_python is not None else ()
    baselines = find_baselines(subject, project, Fetcher(home, cancel), wanted)
    # its own way to stop: an engine that hangs is killed while the rest goes on to say so
    stop = threading.Event()
    with Workspace(home, keep=settings.keep_work) as workspace:
        table = Table(
            subject=subject,
            settings=settings,
            samples=samples,
            executor=chosen(replace(context, cancel=stop)),
            workspace=workspace,
            cancel=cancel,
        )
        say = partial(_say, listen, entry.name)
        with lease(gpus, cancel, say, os.environ, f"bench of {entry.name}") as gpu:
            match = Match(
                engine=table.engine(gpu, stop),
                baselines=[table.baseline(kind, inputs, gpu) for kind, inputs in baselines.items()],
                rounds=Rounds(
                    rounds=settings.rounds,
                    warmup=subject.recipe.bench.warmup,
                    iterations=subject.recipe.bench.iterations,
                ),
                gauge=NvmlGauge(gpu.uuid),
                say=say,
            )
            if ONNX_KIND in wanted and ONNX_KIND not in baselines:
                say(f"the ONNX model of {entry.name} is no longer in the store: no {ONNX_KIND}")
            result = _play(match, gpu, entry.name, workspace, listen)
    return Benched(job=entry.name, manifest=update_manifest(store, entry, bench=result), result=result)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What all who take turns have in common."""

    subject: BenchSubject
    settings: BenchSettings
    samples: Mapping[str, Path]
    executor: Executor
    workspace: Workspace
    cancel: threading.Event

    def engine(self, gpu: Gpu, stop: threading.Event) -> Player:
        """Make the engine's player; `stop` is what ends the executor's stages."""
        request = self._request(STAGE, STAGE, {"engine": self.subject.engine, **self.subject.weights}, gpu)
        return Player("engine", request, partial(self.executor.run, self.subject.stack, request), stop, self.cancel)

    def baseline(self, kind: str, inputs: Mapping[str, Path], gpu: Gpu) -> Player:
        """Make a baseline's player.

        Raises:
            ValueError: no Python was named for baselines.

        """
        if self.settings.baseline_python is None:
            msg = "baselines need a Python"
            raise ValueError(msg)
        request = self._request(BASELINE, kind, inputs, gpu)
        stop = threading.Event()
        run = partial(run_baseline, self.settings.baseline_python, request, stop)
        return Player(kind, request, run, stop, self.cancel)

    def _request(self, stage: str, name: str, inputs: Mapping[str, Path], gpu: Gpu) -> StageRequest:
        points = _POINTS[self.settings.all_shapes]
        own = self.subject.engine_params(points) if stage == STAGE else self.subject.baseline_params(name, points)
        return StageRequest(
            job=self.subject.job.id,
            stage=stage,
            inputs={**inputs, **self.samples},
            params=own,
            folder=self.workspace.stage(self.subject.job.id, name),
            timeout_s=self.settings.timeout_s,
            gpu=gpu.uuid,
        )


def _play(match: Match, gpu: Gpu, name: str, workspace: Workspace, listen: Listener) -> BenchPart:
    listen(StepStarted(subject=name, step=STAGE, expected_s=None))
    started = time.monotonic()
    result = None
    try:
        result = match.play(gpu)
    except EnginefarmError as error:
        error.log = workspace.keep_log(name, STAGE, match.engine.request.log)
        raise
    finally:
        seconds = time.monotonic() - started
        listen(StepFinished(subject=name, step=STAGE, seconds=seconds, ok=result is not None))
    return result


def _say(listen: Listener, subject: str, text: str) -> None:
    listen(Note(subject=subject, text=text))
