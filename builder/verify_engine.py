"""Verifies an engine of the store on this machine's GPU and writes the proof into its manifest."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.built import executor_of, job_of, open_stages, recipe_of, stack_of
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, Note
from builder.fetch import Fetcher
from builder.gpu import visible_gpus
from builder.gpu_choice import choose_gpus, hidden
from builder.gpu_lease import lease
from builder.job_stages import (
    CALIBRATION,
    building_params,
    check_weights,
    lower_params,
    lowered_inputs,
    verify_params,
)
from builder.jobs import read_manifest, update_manifest
from builder.key import Key, Runtime, proof_key
from builder.manifest import Manifest
from builder.models import EXTERNAL, MODEL, Models, OnnxModel
from builder.plan import Job
from builder.project import Home, Project
from builder.query import find_engine
from builder.recipe import Recipe
from builder.record import proof_part
from builder.runner import Settings
from builder.stacks import Stack, load_stacks
from builder.stage import StageResult
from builder.stage_runner import StageRunner, Subject
from builder.store import Store
from builder.titles import CALIBRATION_CACHE, ENGINE, KEY
from builder.worker_source import PROOF_STAGES, worker_sha256
from builder.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """An engine's job, the GPU that it ran on, and its manifest with the proof."""

    job: str
    gpu: str
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    job: Job
    recipe: Recipe
    stack: Stack
    runtime: Runtime
    model: OnnxModel
    models: Models
    stages: StageRunner


def verify_engine(
    name: str, project: Project, home: Home, settings: Settings, listen: Listener, cancel: threading.Event
) -> Verification:
    """Run the engine `name` (job id, key or engine digest) on a GPU at every shape of its recipe.

    What passes is written into the manifest: `engine_verified` is true from then on.

    Raises:
        EnginefarmError: NAME_UNKNOWN, STORE_CORRUPT, GPU_NEEDED, SM_MISMATCH, INPUTS_CHANGED where the project no
            longer has the model, the shape profiles, the precision or the lock that the engine was built from, or what
            the stage says.

    """
    store = Store(home.store)
    entry = find_engine(store, name)
    store.check(entry)
    manifest = read_manifest(store, entry)
    job = job_of(manifest)
    fitting = choose_gpus(job, visible_gpus(os.environ), "verified", hidden(os.environ))
    with Workspace(home, keep=settings.keep_work) as workspace:
        setting = _prepare(job, manifest, store, workspace, project, home, settings, listen, cancel)
        lower = _lower_again(setting, manifest)
        with lease(fitting, cancel, lambda text: listen(Note(subject=job.id, text=text)), os.environ, job.id) as gpu:
            files = store.files(entry)
            inputs = {"engine": files[ENGINE].path}
            inputs |= {CALIBRATION: files[CALIBRATION_CACHE].path} if CALIBRATION_CACHE in files else {}
            result = _verify(setting, manifest, inputs, lower, gpu.uuid)
    proved = _proof_key(setting, json.loads(store.read(entry, KEY)), entry.key)
    proof = proof_part(setting.job, setting.recipe, proved.sha256, result)
    return Verification(job=job.id, gpu=gpu.label, manifest=update_manifest(store, entry, proved=proved, proof=proof))


def _prepare(  # noqa: PLR0913, PLR0917  # the parts of a run
    job: Job,
    manifest: Manifest,
    store: Store,
    workspace: Workspace,
    project: Project,
    home: Home,
    settings: Settings,
    listen: Listener,
    cancel: threading.Event,
) -> _Setting:
    recipe = recipe_of(manifest, project)
    stacks = load_stacks(project.images)
    stack = stack_of(manifest, stacks)
    stacks = {**stacks, stack.name: stack}
    stages = open_stages(executor_of(manifest, settings.executor), workspace, project, home, settings, listen, cancel)
    executor = stages.executor
    executor.prepare(stack, home.logs / f"install-{stack.name}.log")
    models = Models(project=project, home=home, store=store, executor=executor, stacks=stacks)
    export = models.export_stack() if models.exports(recipe) else None
    # the key of an exported model says what exported it, which an image tells only once it is there
    if export is not None and (not executor.identified(export) or models.identity(recipe) is None):
        executor.prepare(export, home.logs / f"install-{export.name}.log")
    model = models.obtain(recipe, Fetcher(home, cancel), stages)
    runtime = executor.runtime(stack)
    return _Setting(job=job, recipe=recipe, stack=stack, runtime=runtime, model=model, models=models, stages=stages)


def _lower_again(setting: _Setting, manifest: Manifest) -> StageResult:
    identity = setting.model.identity
    if (identity[MODEL], identity.get(EXTERNAL)) != (manifest.onnx.sha256, manifest.onnx.external_sha256):
        what = f"{setting.job.id} was built from another ONNX model than the project now has"
        raise EnginefarmError(Reason.INPUTS_CHANGED, what)
    subject = _subject(setting)
    params = lower_params(setting.job, setting.recipe)
    lower = setting.stages.run(subject, "lower", setting.model.inputs("model", "external"), params)
    check_weights(manifest, lower)
    return lower


def _verify(
    setting: _Setting, manifest: Manifest, engine: Mapping[str, Path], lower: StageResult, gpu: str
) -> StageResult:
    building = building_params(setting.job, setting.recipe, setting.runtime, lower)
    params = verify_params(setting.job, setting.recipe, building, manifest.engine.profiles, setting.stages.threads)
    samples = setting.models.sample_files(setting.recipe)
    inputs = {**setting.model.inputs("model", "external", "reference"), **lowered_inputs(lower), **samples}
    return setting.stages.run(_subject(setting), "verify", {**inputs, **engine}, params, gpu)


def _proof_key(setting: _Setting, document: dict[str, Any], sha256: str) -> Key:
    # as a build would make it now: what is proven here need not be proven again there
    worker = worker_sha256(PROOF_STAGES, setting.stack.build.family)
    return proof_key(setting.job, setting.recipe, Key(document=document, sha256=sha256), worker, verified=True)


def _subject(setting: _Setting) -> Subject:
    return Subject(
        label=setting.job.id, recipe=setting.recipe.name, precision=setting.job.precision, stack=setting.stack
    )
