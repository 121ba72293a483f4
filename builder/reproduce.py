"""Rebuilds an engine from its source in fresh processes and empty stores, and says how far it is the same."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from builder.built import job_of, open_stages
from builder.engine_bytes import ByteDifference, compare_files
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, Note
from builder.executors import AUTO, Executor
from builder.fetch import Fetcher
from builder.gpu import Gpu, visible_gpus
from builder.gpu_choice import alike, choose_gpus, fits, hidden
from builder.gpu_lease import lease
from builder.job_stages import Tuned, engine_params, weights_inputs
from builder.jobs import JobRunner, make_keys, read_manifest, update_manifest
from builder.key import Key, differences
from builder.levels import OutputDifference, Reproduction, measure, verdict
from builder.manifest import Manifest, Reproducibility
from builder.models import EXPORT_STACK, Models, inputs_document
from builder.plan import Job
from builder.project import Home, Project
from builder.query import find_engine
from builder.recipe import Precision, PythonSource, Recipe
from builder.recipe_file import load_recipe
from builder.runner import Settings
from builder.stacks import Stack, load_stacks
from builder.stage_runner import StageRunner, Subject
from builder.store import Entry, Store
from builder.timing_caches import TIMING_CACHE
from builder.titles import CALIBRATION_CACHE, ENGINE, KEY
from builder.workspace import Workspace

__all__ = ["REBUILDS_ON_GPU", "REBUILDS_WITHOUT_GPU", "Ask", "Reproduction", "reproduce"]

REBUILDS_WITHOUT_GPU, REBUILDS_ON_GPU = 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """How to rebuild. `rebuilds` null: REBUILDS_WITHOUT_GPU or REBUILDS_ON_GPU. `cold`: without the engine's caches."""

    rebuilds: int | None = None
    cold: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Copy:
    """What a rebuild left: its manifest and, where its bytes differ, the file and how."""

    manifest: Manifest
    difference: ByteDifference | None
    engine: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Everything that rebuilding an engine takes. `tuned`: null for an engine that was built without a GPU."""

    store: Store
    entry: Entry
    manifest: Manifest
    job: Job
    recipe: Recipe
    stack: Stack
    project: Project
    home: Home
    stacks: Mapping[str, Stack]
    executor: Executor
    stages: StageRunner
    tuned: Tuned | None

    def models(self, store: Store) -> Models:
        """Return the models of a store."""
        return Models(project=self.project, home=self.home, store=store, executor=self.executor, stacks=self.stacks)


def reproduce(  # the parts of a run
    name: str,
    project: Project,
    home: Home,
    settings: Settings,
    listen: Listener,
    cancel: threading.Event,
    ask: Ask = Ask(),
) -> Reproduction:
    """Rebuild the engine `name` (job id, key or engine digest) from the recipe on and compare every step.

    An engine that was tuned on a GPU is rebuilt from its own caches, of timings and for int8 of calibration, and
    nothing else. Where bytes differ, outputs are compared on a GPU, if there is one that the engine runs on. The level
    is written into the engine's manifest, unless the rebuilds were cold.

    Raises:
        EnginefarmError: NAME_UNKNOWN, STORE_CORRUPT, INPUTS_CHANGED when the recipe, a lock, the driver or the worker
            has changed since, GPU_NEEDED, SM_MISMATCH, OPTION_UNSUPPORTED for `cold` where no timing cache is used, or
            what a failing stage says.

    """
    store = Store(home.store)
    entry = find_engine(store, name)
    store.check(entry)
    store.touch(entry)
    manifest = read_manifest(store, entry)
    with Workspace(home, keep=settings.keep_work) as workspace:
        executor = _executor(manifest, settings.executor)
        stages = open_stages(executor, workspace, project, home, settings, listen, cancel)
        source = _source(store, entry, manifest, project, home, stages, ask)
        count = ask.rebuilds or (REBUILDS_WITHOUT_GPU if source.tuned is None else REBUILDS_ON_GPU)
        copies = [_rebuild(source, workspace.folder / f"rebuild-{index}") for index in range(count)]
        outputs, repeats = _compare_outputs(source, copies)
    rebuilds = zip(copies, outputs, strict=True)
    found = verdict(
        entry.name,
        manifest,
        [measure(manifest, copy.manifest, copy.difference, compared) for copy, compared in rebuilds],
        cold=ask.cold,
        timing_cache=_sealed(source),
        repeats=repeats,
    )
    if not ask.cold:
        _write_level(store, entry, found)
    return found


def _executor(manifest: Manifest, asked: str) -> str:
    # as the engine was built: an image's engine in an image
    if manifest.stack.image is None:
        return "local"
    return "docker" if asked in {AUTO, "local"} else asked


def _source(
    store: Store, entry: Entry, manifest: Manifest, project: Project, home: Home, stages: StageRunner, ask: Ask
) -> _Source:
    stacks = load_stacks(project.images)
    stack = stacks[manifest.stack.name]
    # another lock will be named among what has changed
    stack = stack.of_lock(manifest.stack.lock_sha256) or stack
    recipe = load_recipe(project.recipes / manifest.recipe.name / "recipe.yaml")
    stored = json.loads(store.read(entry, KEY))
    job = job_of(manifest)
    if ask.cold and not stack.build.needs_gpu:
        what = f"stack {stack.name} builds without a timing cache: every rebuild is a cold one"
        raise EnginefarmError(Reason.OPTION_UNSUPPORTED, what, fix="leave out --cold")
    tuned = _tuned(store, entry, manifest, job, ask) if stack.build.needs_gpu else None
    exports = isinstance(recipe.source, PythonSource) and tuned is None
    for one in [*([stacks[EXPORT_STACK]] if exports else []), stack]:
        stages.executor.prepare(one, home.logs / f"install-{one.name}.log")
    source = _Source(
        store=store,
        entry=entry,
        manifest=manifest,
        job=job,
        recipe=recipe,
        stack=stack,
        project=project,
        home=home,
        stacks={**stacks, stack.name: stack},
        executor=stages.executor,
        stages=stages,
        tuned=tuned,
    )
    _check_inputs(source, stored)
    return source


def _tuned(store: Store, entry: Entry, manifest: Manifest, job: Job, ask: Ask) -> Tuned:
    on = manifest.build.tuned_on
    # the same model where there is one: another would be named among what has changed
    gpus = choose_gpus(job, visible_gpus(os.environ), "built again", hidden(os.environ))
    fitting = sorted(gpus, key=lambda gpu: on is not None and gpu.name != on.name)
    files = {} if ask.cold else store.files(entry)
    sealed, calibration = (files[title].path if title in files else None for title in (TIMING_CACHE, CALIBRATION_CACHE))
    # device and driver are those of the engine: it may be another board all the same
    return Tuned(gpus=alike(fitting), sealed=sealed, same_device=sealed is not None, calibration=calibration)


def _check_inputs(source: _Source, stored: Mapping[str, Any]) -> None:
    onnx = source.models(source.store).identity(source.recipe)
    now: Key | None = None
    if onnx is not None:
        # as the engine was built, which need not be as it is rebuilt: sealed with its timing cache or not
        as_built = source.tuned
        if as_built is not None and stored["timing_cache"] is None:
            as_built = Tuned(gpus=as_built.gpus)
        runtime = source.executor.runtime(source.stack)
        now = make_keys(source.job, source.recipe, onnx, runtime, as_built).engine
    if now is not None and now.sha256 == source.entry.key:
        return
    why = "its ONNX model is no longer the one in the store"
    if now is not None:
        why = "changed since: " + ", ".join(path for path, _, _ in differences(stored, now.document))
    raise EnginefarmError(
        Reason.INPUTS_CHANGED, f"{source.entry.name} was built from other inputs than the project now has", why=why
    )


def _rebuild(source: _Source, folder: Path) -> _Copy:
    """Rebuild once, in a store of its own; only an engine of other bytes is kept."""
    fresh = Store(folder / "store")
    if source.tuned is not None:
        # what tuning does is in question here, and a machine with a GPU need not have PyTorch
        _lend_model(source, fresh)
    runner = JobRunner(
        store=fresh,
        models=source.models(fresh),
        fetcher=Fetcher(source.home, source.stages.cancel),
        stages=source.stages,
        verify=False,
    )
    outcome = runner.run(source.job, source.recipe, source.executor.runtime(source.stack), source.tuned)
    if outcome.error is not None:
        raise outcome.error
    (rebuilt,) = fresh.entries("engine")
    left, right = source.store.files(source.entry)[ENGINE], fresh.files(rebuilt)[ENGINE]
    manifest = read_manifest(fresh, rebuilt)
    difference = None if left.digest == right.digest else compare_files(left.path, right.path)
    kept = None if difference is None else right.path.replace(folder / ENGINE)
    shutil.rmtree(fresh.root, ignore_errors=True)
    return _Copy(manifest=manifest, difference=difference, engine=kept)


def _lend_model(source: _Source, fresh: Store) -> None:
    for entry in source.store.find("onnx", source.models(source.store).key(source.recipe).sha256)[:1]:
        files: dict[str, Path | bytes] = {title: blob.path for title, blob in source.store.files(entry).items()}
        fresh.add(kind="onnx", key=entry.key, name=entry.name, files=files, annotations=dict(entry.annotations))


def _compare_outputs(source: _Source, copies: Sequence[_Copy]) -> tuple[list[OutputDifference | None], bool | None]:
    """Run the engine and the copies that differ from it on the same inputs; also whether the engine repeats itself."""
    paths = {f"rebuilt_{index}": copy.engine for index, copy in enumerate(copies) if copy.engine is not None}
    # a rebuilt engine without weights takes those of the engine, which have to be its own
    same = all(copy.manifest.engine.weights == source.manifest.engine.weights for copy in copies)
    gpus = _gpus_to_run_on(source) if paths and same else ()
    if not gpus:
        return [None] * len(copies), None
    data = _run_engines(source, paths, gpus)
    measured = dict(zip(paths, data["rebuilt"], strict=True))
    found = [
        None
        if (one := measured.get(f"rebuilt_{index}")) is None
        else OutputDifference(
            device=data["device"],
            cases=len(data["cases"]),
            equal=one["equal"],
            within=one["within"],
            worst=one["outputs"],
        )
        for index in range(len(copies))
    ]
    return found, bool(data["repeats"])


def _gpus_to_run_on(source: _Source) -> tuple[Gpu, ...]:
    if source.tuned is not None:
        return source.tuned.gpus
    try:
        return alike([gpu for gpu in visible_gpus(os.environ) if fits(source.job, gpu)])
    except (EnginefarmError, IndexError):
        # it was built without a GPU and can be judged by its bytes
        return ()


def _run_engines(source: _Source, engines: Mapping[str, Path], gpus: tuple[Gpu, ...]) -> Mapping[str, Any]:
    recipe, job, stack = source.recipe, source.job, source.stack.build
    settings = recipe.precisions[Precision(job.precision)]
    params = {
        **engine_params(job, recipe, stack),
        "inputs": inputs_document(recipe),
        "tolerance": settings.tolerance.model_dump(mode="json", exclude_none=True),
    }
    models = source.models(source.store)
    files = source.store.files(source.entry)
    inputs = {"engine": files[ENGINE].path, **weights_inputs(files), **engines, **models.sample_files(recipe)}
    model = models.find(recipe)
    if model is not None:
        inputs |= model.inputs("reference")
    stages = source.stages
    subject = Subject(label=job.id, recipe=recipe.name, precision=job.precision, stack=source.stack)

    def waiting(text: str) -> None:
        stages.listen(Note(subject=job.id, text=text))

    with lease(gpus, stages.cancel, waiting, os.environ, job.id) as gpu:
        return stages.run(subject, "outputs", inputs, params, gpu.uuid).data


def _sealed(source: _Source) -> str | None:
    if source.tuned is None or source.tuned.sealed is None:
        return None
    return source.store.files(source.entry)[TIMING_CACHE].digest.removeprefix("sha256:")


def _write_level(store: Store, entry: Entry, found: Reproduction) -> None:
    measured = Reproducibility(
        level=found.level,
        rebuilds=found.rebuilds,
        measured_at=datetime.now(tz=timezone.utc),
        detail=found.summary(),
    )
    update_manifest(store, entry, reproducibility=measured)
