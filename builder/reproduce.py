"""Rebuilds an engine from its source in fresh processes and an empty store, and says how far it is the same."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from builder.errors import EnginefarmError, Reason
from builder.events import Listener
from builder.executors import EXECUTORS
from builder.executors.context import ExecutorContext
from builder.fetch import Fetcher
from builder.jobs import ENGINE, KEY, PROOF, JobRunner, make_keys, read_manifest, save
from builder.journal import Journal
from builder.key import Key, differences
from builder.manifest import Manifest, Reproducibility
from builder.models import EXPORT_STACK, Models
from builder.plan import Job
from builder.project import Home, Project
from builder.query import find_engine
from builder.recipe import PythonSource
from builder.recipe_file import load_recipe
from builder.runner import Settings
from builder.stacks import load_stacks
from builder.stage_runner import StageRunner
from builder.store import Entry, Store
from builder.workspace import Workspace

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """The verdict. `level` is `bitwise` or `drifted`: without a GPU nothing in between can be told."""

    job: str
    level: Literal["bitwise", "drifted"]
    rebuilds: int
    same: bool
    engine_sha256: str
    rebuilt_sha256: str
    first_difference: str | None
    details: tuple[str, ...]


def reproduce(
    name: str, project: Project, home: Home, settings: Settings, listen: Listener, cancel: threading.Event
) -> Reproduction:
    """Rebuild the engine `name` (job id, key or engine digest) from the recipe on and compare every step.

    The level is written into the engine's manifest.

    Raises:
        EnginefarmError: NAME_UNKNOWN, STORE_CORRUPT, INPUTS_CHANGED when the recipe, a lock or the worker has changed
            since, or what a failing stage says.

    """
    store = Store(home.store)
    entry = find_engine(store, name)
    store.check(entry)
    manifest = read_manifest(store, entry)
    job = Job(
        recipe=manifest.recipe.name,
        precision=manifest.precision.requested,
        stack=manifest.stack.name,
        target=manifest.target.name or "",
        sms=tuple(manifest.target.sms),
    )
    with Workspace(home, keep=settings.keep_work) as workspace:
        fresh = Store(workspace.folder / "store")
        image = manifest.stack.image
        rebuilt = _rebuild(job, image, entry, store, fresh, workspace, project, home, settings, listen, cancel)
        verdict = _compare(store, entry, manifest, fresh, rebuilt)
    _write_level(store, entry, manifest, verdict)
    return verdict


def _rebuild(  # noqa: PLR0913, PLR0917  # the parts of a run
    job: Job,
    image: str | None,
    entry: Entry,
    store: Store,
    fresh: Store,
    workspace: Workspace,
    project: Project,
    home: Home,
    settings: Settings,
    listen: Listener,
    cancel: threading.Event,
) -> Entry:
    recipe = load_recipe(project.recipes / job.recipe / "recipe.yaml")
    stacks = load_stacks(project.images)
    context = ExecutorContext(
        project=project,
        home=home,
        install=settings.install,
        cancel=cancel,
        listen=listen,
        keep=settings.keep_work,
        memory_bytes=settings.memory_bytes,
    )
    # as the engine was built: an image's engine in an image
    executor = EXECUTORS["local" if image is None else "docker"](context)
    if isinstance(recipe.source, PythonSource):
        executor.prepare(stacks[EXPORT_STACK], home.logs / f"install-{EXPORT_STACK}.log")
    executor.prepare(stacks[job.stack], home.logs / f"install-{job.stack}.log")
    models = Models(project=project, home=home, store=fresh, executor=executor, stacks=stacks)
    runtime = executor.runtime(stacks[job.stack])
    known = Models(project=project, home=home, store=store, executor=executor, stacks=stacks).identity(recipe)
    _check_inputs(store, entry, make_keys(job, recipe, known, runtime).engine if known is not None else None)
    stages = StageRunner(
        executor=executor,
        workspace=workspace,
        journal=Journal(home.journal),
        listen=listen,
        cancel=cancel,
        timeout_s=settings.timeout_s,
    )
    runner = JobRunner(store=fresh, models=models, fetcher=Fetcher(home, cancel), stages=stages, verify=False)
    outcome = runner.run(job, recipe, runtime)
    if outcome.error is not None:
        raise outcome.error
    return fresh.entries("engine")[0]


def _check_inputs(store: Store, entry: Entry, now: Key | None) -> None:
    if now is not None and now.sha256 == entry.key:
        return
    why = "its ONNX model is no longer the one in the store"
    if now is not None:
        stored = json.loads(store.read(entry, KEY))
        why = "changed since: " + ", ".join(path for path, _, _ in differences(stored, now.document))
    raise EnginefarmError(
        Reason.INPUTS_CHANGED, f"{entry.name} was built from other inputs than the project now has", why=why
    )


def _compare(store: Store, entry: Entry, manifest: Manifest, fresh: Store, rebuilt: Entry) -> Reproduction:
    other = read_manifest(fresh, rebuilt)
    left, right = store.files(entry)[ENGINE], fresh.files(rebuilt)[ENGINE]
    steps = [
        ("the exported ONNX model", manifest.onnx.sha256, other.onnx.sha256),
        ("the lowered ONNX model", manifest.lowered.sha256, other.lowered.sha256),
        ("the engine", manifest.engine.sha256, other.engine.sha256),
    ]
    changed = [f"{name}: {was[:12]} then, {now[:12]} now" for name, was, now in steps if was != now]
    same = left.digest == right.digest
    details = () if same else (*changed, _bytes_that_differ(left.path, right.path))
    return Reproduction(
        job=entry.name,
        level="bitwise" if same else "drifted",
        rebuilds=1,
        same=same,
        engine_sha256=manifest.engine.sha256,
        rebuilt_sha256=other.engine.sha256,
        first_difference=None if same else changed[0],
        details=details,
    )


def _bytes_that_differ(left: Path, right: Path) -> str:
    count, first, offset = 0, None, 0
    with left.open("rb") as one, right.open("rb") as two:
        while (a := one.read(_CHUNK)) and (b := two.read(_CHUNK)):
            if a != b:
                places = [index for index, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]]
                count += len(places)
                first = offset + places[0] if first is None and places else first
            offset += _CHUNK
    sizes = f"{left.stat().st_size} and {right.stat().st_size} bytes long"
    return f"{count} bytes differ, the first at offset {first}; the engines are {sizes}"


def _write_level(store: Store, entry: Entry, manifest: Manifest, verdict: Reproduction) -> None:
    measured = Reproducibility(
        level=verdict.level,
        rebuilds=verdict.rebuilds,
        measured_at=datetime.now(tz=timezone.utc),
        detail=verdict.first_difference,
    )
    key = Key(document=json.loads(store.read(entry, KEY)), sha256=entry.key)
    proof = Key(document=json.loads(store.read(entry, PROOF)), sha256=manifest.proof.key)
    updated = manifest.model_copy(update={"reproducibility": measured})
    save(store, updated, store.files(entry)[ENGINE].path, key, proof)
