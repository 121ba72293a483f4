"""One job from key to stored engine: lower, build, examine, verify, manifest."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from builder.errors import EnginefarmError, Reason
from builder.events import JobOutcome, Note, Status
from builder.fetch import Fetcher
from builder.job_stages import CALIBRATION, JobStages, Tuned, Work, weights_of
from builder.key import (
    Key,
    Runtime,
    canonical,
    engine_key,
    proof_key,
)
from builder.locks import named_lock
from builder.manifest import Manifest, load_manifest
from builder.models import Models
from builder.plan import Job
from builder.provenance import head_commit
from builder.recipe import Recipe
from builder.record import Evidence, make_manifest
from builder.stage_runner import StageRunner
from builder.store import Entry, Store
from builder.timing_caches import TIMING_CACHE
from builder.titles import CALIBRATION_CACHE, ENGINE, KEY, MANIFEST, PROOF, PROOF_ANNOTATION
from builder.worker_source import ENGINE_STAGES, PROOF_STAGES, worker_sha256

# files beside an engine that only its build can make, to what the stage calls them
LEFT = {TIMING_CACHE: "timing_cache", CALIBRATION_CACHE: CALIBRATION}


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """The keys of a job: what its engine depends on, what its full proof depends on besides, and the proof left out."""

    engine: Key
    proved: Key
    unproved: Key


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRunner:
    """Makes engines. `verify` off leaves the proof out, and the manifest says so."""

    store: Store
    models: Models
    fetcher: Fetcher
    stages: StageRunner
    verify: bool

    def run(self, job: Job, recipe: Recipe, runtime: Runtime, tuned: Tuned | None = None) -> JobOutcome:
        """Make the job's engine, or find what another process has made meanwhile. Refusals end up in the outcome."""
        started = time.monotonic()
        try:
            model = self.models.obtain(recipe, self.fetcher, self.stages)
            work = Work(
                job=job,
                recipe=recipe,
                runtime=runtime,
                model=model,
                samples=self.models.sample_files(recipe),
                tuned=tuned,
            )
            keys = make_keys(job, recipe, model.identity, runtime, tuned)
            with named_lock(self.models.home, f"engine-{keys.engine.sha256}", self.stages.cancel, self._on_wait(job)):
                return self._make(work, keys, started)
        except EnginefarmError as error:
            status = Status.CANCELLED if error.reason is Reason.INTERRUPTED else Status.FAILED
            seconds = time.monotonic() - started
            return JobOutcome(job=job.id, status=status, seconds=seconds, error=error, log=error.log)
        finally:
            self.stages.workspace.done_with(job.id)

    def _make(self, work: Work, keys: Keys, started: float) -> JobOutcome:
        found = find_proved(self.store, keys, verify=self.verify)
        if found is not None:
            return _outcome(work.job, Status.REUSED, started, read_manifest(self.store, found), {})
        known = find_engine(self.store, keys)
        before = read_manifest(self.store, known) if known is not None else None
        files = self.store.files(known) if known is not None else {}
        engine = files[ENGINE].path if known is not None else None
        on = JobStages(
            stages=self.stages,
            work=work,
            store=self.store,
            verify=self.verify,
            known=before,
            engine=engine,
            calibration=files[CALIBRATION_CACHE].path if CALIBRATION_CACHE in files else None,
        )
        results = on.run()
        left = None
        if engine is None:
            outputs = results["build"].outputs
            left = {title: outputs[role] for title, role in LEFT.items() if role in outputs}
        engine = engine if engine is not None else results["build"].outputs["engine"]
        proof = keys.proved if self.verify else keys.unproved
        manifest = make_manifest(
            Evidence(
                job=work.job,
                recipe=work.recipe,
                runtime=work.runtime,
                model=work.model,
                engine_key=keys.engine,
                proof_key=proof,
                engine=engine,
                results=results,
                before=before,
                tuning=work.tuned.tuning() if work.tuned is not None else None,
                commit=head_commit(self.models.project.root),
            )
        )
        weights = weights_of(work.recipe, results["lower"])
        save(self.store, manifest, engine, keys.engine, proof, left, weights)
        status = Status.BUILT if known is None else Status.PROVED
        return _outcome(work.job, status, started, manifest, {name: item.seconds for name, item in results.items()})

    def _on_wait(self, job: Job) -> Callable[[], None]:
        text = "another enginefarm is building the same engine: waiting for it"
        return lambda: self.stages.listen(Note(subject=job.id, text=text))


def make_keys(job: Job, recipe: Recipe, onnx: Mapping[str, str], runtime: Runtime, tuned: Tuned | None = None) -> Keys:
    """Compute the keys of a job whose ONNX model is known."""
    family = runtime.stack.build.family
    tuning = tuned.tuning() if tuned is not None else None
    engine = engine_key(job, recipe, onnx, runtime, worker_sha256(ENGINE_STAGES, family), tuning)
    worker = worker_sha256(PROOF_STAGES, family)
    return Keys(
        engine=engine,
        proved=proof_key(job, recipe, engine, worker, verified=True),
        unproved=proof_key(job, recipe, engine, worker, verified=False),
    )


def find_proved(store: Store, keys: Keys, *, verify: bool) -> Entry | None:
    """Find an intact engine with the proof asked for; a full proof serves those who asked for none, too."""
    wanted = [keys.proved.sha256] if verify else [keys.proved.sha256, keys.unproved.sha256]
    for proof in wanted:
        for entry in store.find("engine", keys.engine.sha256):
            if entry.annotations.get(PROOF_ANNOTATION) == proof and store.intact(entry):
                store.touch(entry)
                return entry
    return None


def find_engine(store: Store, keys: Keys) -> Entry | None:
    """Find an intact engine whose bytes fit, whatever its proof."""
    return next((entry for entry in store.find("engine", keys.engine.sha256) if store.intact(entry)), None)


def read_manifest(store: Store, entry: Entry) -> Manifest:
    """Read the manifest of an engine.

    Raises:
        EnginefarmError: MANIFEST_INVALID, STORE_CORRUPT.

    """
    return load_manifest(store.read(entry, MANIFEST), f"{entry.name} in the store")


def save(
    store: Store,
    manifest: Manifest,
    engine: Path,
    key: Key,
    proof: Key,
    left: Mapping[str, Path] | None = None,
    weights: Mapping[str, Path] = MappingProxyType({}),
) -> Entry:
    """Put an engine with its manifest and key documents into the store; it replaces the job's entry for this key.

    `left`: the caches that the build left, by their names in the store; null keeps those that the older entry has.
    `weights`: likewise, the weights of an engine that was built without them.
    """
    older = [entry for entry in store.find("engine", key.sha256) if entry.name == manifest.job]
    files: dict[str, Path | bytes] = {
        ENGINE: engine,
        MANIFEST: manifest.to_json().encode(),
        KEY: canonical(key.document),
        PROOF: canonical(proof.document),
        **weights,
    }
    for caches in [left] if left is not None else [_left(store, entry) for entry in older]:
        files |= caches
    added = store.add(
        kind="engine", key=key.sha256, name=manifest.job, files=files, annotations={PROOF_ANNOTATION: proof.sha256}
    )
    for entry in older:
        if entry.digest != added.digest:
            store.remove(entry)
    return added


def update_manifest(store: Store, entry: Entry, *, proved: Key | None = None, **parts: object) -> Manifest:
    """Replace parts of an engine's newest manifest: another command may have written one meanwhile. All else stays.

    `proved`: the key of the proof that is among the parts, by which a build finds it.

    Raises:
        EnginefarmError: MANIFEST_INVALID, STORE_CORRUPT, STORE_READ_ONLY, DISK_FULL.

    """
    wanted = store.files(entry)[ENGINE].digest
    same = [one for one in store.find("engine", entry.key) if one.name == entry.name]
    current = next((one for one in same if store.files(one)[ENGINE].digest == wanted), entry)
    updated = read_manifest(store, current).model_copy(update=parts)
    files: dict[str, Path | bytes] = {title: blob.path for title, blob in store.files(current).items()}
    files[MANIFEST] = updated.to_json().encode()
    annotations = dict(current.annotations)
    if proved is not None:
        files[PROOF] = canonical(proved.document)
        annotations[PROOF_ANNOTATION] = proved.sha256
    added = store.add(kind="engine", key=current.key, name=current.name, files=files, annotations=annotations)
    if added.digest != current.digest:
        store.remove(current)
    return updated


def _left(store: Store, entry: Entry) -> dict[str, Path]:
    return {title: blob.path for title, blob in store.files(entry).items() if title in LEFT}


def _outcome(
    job: Job, status: Status, started: float, manifest: Manifest, stage_seconds: dict[str, float]
) -> JobOutcome:
    return JobOutcome(
        job=job.id,
        status=status,
        seconds=time.monotonic() - started,
        manifest=manifest,
        stage_seconds=stage_seconds,
    )
