"""The stages of one job in order: lower, build, examine, verify; those of a tuned engine on a GPU that is leased."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builder import durable, preflight
from builder.errors import EnginefarmError, Reason
from builder.events import Note
from builder.gpu import Gpu
from builder.gpu_lease import lease, require_memory
from builder.gpu_watch import Watch, Watched
from builder.key import Runtime, Tuning, options_document, profiles_document
from builder.manifest import Manifest
from builder.models import OnnxModel, inputs_document
from builder.plan import Job
from builder.recipe import Precision, Recipe
from builder.stacks import BuildStackFile
from builder.stage import StageResult
from builder.stage_runner import StageRunner, Subject
from builder.store import Blob, Store
from builder.timing_caches import caches_for, class_document, save_cache
from builder.titles import WEIGHTS

Results = dict[str, StageResult]
# what a stage calls the calibration cache that it reads or leaves
CALIBRATION = "calibration_cache"
# files of the weights beside an engine that was built without them, to what the stage lower calls them; the model asks
# for the second by that name
_ROLES = dict(zip(WEIGHTS, ("lowered", "external"), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """Where a job is tuned: GPUs that are alike, any of which will do.

    `sealed`: the only timing cache it may use; `same_device`: that is known to come from a GPU like these.
    `calibration`: the calibration cache that an int8 build takes instead of calibrating.
    """

    gpus: tuple[Gpu, ...]
    sealed: Path | None = None
    same_device: bool = False
    calibration: Path | None = None

    def tuning(self) -> Tuning:
        """Return what the engine's key says of it."""
        first = self.gpus[0]
        digest = durable.sha256_file(self.sealed) if self.sealed is not None else None
        return Tuning(device=first.name, sm=first.sm, driver=first.driver, timing_cache=digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What the stages of one job work on."""

    job: Job
    recipe: Recipe
    runtime: Runtime
    model: OnnxModel
    samples: Mapping[str, Path]
    tuned: Tuned | None = None

    @property
    def subject(self) -> Subject:
        """Who the stages work for."""
        stack = self.runtime.stack
        return Subject(label=self.job.id, recipe=self.recipe.name, precision=self.job.precision, stack=stack)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStages:
    """Runs a job's stages; `known`, `engine` and `calibration`, its cache, are of one that need not be built again."""

    stages: StageRunner
    work: Work
    store: Store
    verify: bool
    known: Manifest | None = None
    engine: Path | None = None
    calibration: Path | None = None

    def run(self) -> Results:
        """Run them; what is tuned on a GPU holds the lease of one from the build to the last stage.

        Raises:
            EnginefarmError: as `StageRunner.run`; GPU_MEMORY_SHORT.

        """
        work = self.work
        inputs = work.model.inputs("model", "external")
        results = {"lower": self.stages.run(work.subject, "lower", inputs, lower_params(work.job, work.recipe))}
        with self._lease() as gpu:
            self._run_on(gpu, results)
        return results

    def _run_on(self, gpu: str | None, results: Results) -> None:
        work, lowered = self.work, lowered_inputs(results["lower"])
        building = building_params(work.job, work.recipe, work.runtime, results["lower"])
        engine, calibration = self.engine, self.calibration
        if self.known is not None:
            check_weights(self.known, results["lower"])
        if engine is None:
            results["build"] = self._build(gpu, {**lowered, **self._calibrating()}, building)
            engine = results["build"].outputs["engine"]
            calibration = results["build"].outputs.get(CALIBRATION)
        # an engine that was tuned on a GPU is proven on it; another is proven by its graph
        proving = {**lowered, "engine": engine} if gpu is not None else lowered
        layers = results["build"].data.get("network_layers") if "build" in results else None
        examining = {**building, "network_layers": layers} if layers else building
        results["examine"] = self.stages.run(work.subject, "examine", proving, examining, gpu)
        if self.verify:
            profiles = self.known.engine.profiles if self.known is not None else results["build"].data["profiles"]
            params = verify_params(work.job, work.recipe, building, profiles, self.stages.threads)
            inputs = {**work.model.inputs("model", "external", "reference"), **proving, **work.samples}
            # an engine built to look into it is to be of the same ranges
            inputs |= {CALIBRATION: calibration} if calibration is not None else {}
            results["verify"] = self.stages.run(work.subject, "verify", inputs, params, gpu)

    def _calibrating(self) -> dict[str, Path]:
        work = self.work
        if work.recipe.calibration(work.job.precision) is None:
            return {}
        cache = work.tuned.calibration if work.tuned is not None else None
        return {**work.samples, **({CALIBRATION: cache} if cache is not None else {})}

    def _build(self, gpu: str | None, lowered: Mapping[str, Path], building: Mapping[str, Any]) -> StageResult:
        work, stages, tuned = self.work, self.stages, self.work.tuned
        if tuned is None:
            return stages.run(work.subject, "build", lowered, building)
        if tuned.sealed is not None:
            inputs = {**lowered, "timing_cache_0000": tuned.sealed}
            return stages.run(
                work.subject, "build", inputs, {**building, "sealed": True, "same_device": tuned.same_device}, gpu
            )
        document = class_document(work.runtime, work.job.precision, building["options"], tuned.tuning())
        known = caches_for(self.store, document)
        with Watch(gpu or tuned.gpus[0].uuid) as watch:
            result = stages.run(work.subject, "build", {**lowered, **known.inputs()}, building, gpu)
        result = replace(result, data={**result.data, "watched": _watched(watch.seen)})
        # kept at once: what was measured is of use even if the engine fails its proof
        save_cache(self.store, document, known.digests, result.outputs["timing_cache"])
        return result

    @contextmanager
    def _lease(self) -> Iterator[str | None]:
        if self.work.tuned is None:
            yield None
            return
        cancel = self.stages.cancel
        with lease(self.work.tuned.gpus, cancel, self._on_wait, os.environ, self.work.job.id) as gpu:
            require_memory(gpu, preflight.gpu_memory_bytes(self.work.model.size), cancel)
            yield gpu.uuid

    def _on_wait(self, text: str) -> None:
        self.stages.listen(Note(subject=self.work.job.id, text=text))


def _watched(seen: Watched) -> dict[str, Any]:
    return {
        "peak_memory_bytes": seen.peak_memory_bytes,
        "memory_before_bytes": seen.first_memory_bytes,
        "max_temperature_c": seen.max_temperature_c,
        "throttle": list(seen.throttle),
        "neighbours": [program.text for program in seen.neighbours],
    }


def lower_params(job: Job, recipe: Recipe) -> dict[str, Any]:
    """Return what the stage lower is told."""
    return {
        "precision": job.precision,
        "profiles": profiles_document(recipe),
        "keep_fp32": recipe.precisions[Precision(job.precision)].keep_fp32.model_dump(mode="json"),
    }


def engine_params(job: Job, recipe: Recipe, stack: BuildStackFile) -> dict[str, Any]:
    """Return what every stage that makes or loads an engine is told."""
    return {
        "precision": job.precision,
        "profiles": profiles_document(recipe),
        "family": stack.family,
        "import_name": stack.import_name,
        "sms": list(job.sms),
        "options": options_document(job, recipe),
    }


def building_params(job: Job, recipe: Recipe, runtime: Runtime, lower: StageResult) -> dict[str, Any]:
    """Return what the stages build and examine are told."""
    stack = runtime.stack.build
    settings = recipe.precisions[Precision(job.precision)]
    return {
        **engine_params(job, recipe, stack),
        "keep_fp32": settings.keep_fp32.model_dump(mode="json"),
        "kept_fp32": lower.data["kept_fp32"],
        "kept_reasons": lower.data["kept_reasons"],
        "engine_layers": stack.needs_gpu,
        "calibration": _calibration_params(job, recipe),
    }


def _calibration_params(job: Job, recipe: Recipe) -> dict[str, Any] | None:
    calibration = recipe.calibration(job.precision)
    if calibration is None:
        return None
    return {**calibration.model_dump(mode="json"), "inputs": inputs_document(recipe)}


def verify_params(
    job: Job, recipe: Recipe, building: Mapping[str, Any], profiles: list[dict[str, Any]], threads: int
) -> dict[str, Any]:
    """Return what the stage verify is told; `profiles` are the engine's own."""
    settings = recipe.precisions[Precision(job.precision)]
    return {
        **building,
        "inputs": inputs_document(recipe),
        "tolerance": settings.tolerance.model_dump(mode="json", exclude_none=True),
        "auto_fp32": settings.auto_fp32,
        "engine_profiles": profiles,
        "threads": threads,
    }


def weights_of(recipe: Recipe, lower: StageResult) -> dict[str, Path]:
    """Return the files to keep beside an engine that is built without its weights, by title; of others none."""
    if not recipe.build.strip_weights:
        return {}
    return {title: lower.outputs[role] for title, role in _ROLES.items() if role in lower.outputs}


def check_weights(manifest: Manifest, lower: StageResult) -> None:
    """Refuse to give an engine other weights than it was built without.

    Raises:
        EnginefarmError: INPUTS_CHANGED.

    """
    for one in manifest.engine.weights:
        path = lower.outputs.get(_ROLES[one.file])
        if path is None or durable.sha256_file(path) != one.sha256:
            what = f"{manifest.job} was built from another lowered model: its weights are not those of {one.file}"
            raise EnginefarmError(Reason.INPUTS_CHANGED, what, fix="build it again")


def weights_inputs(files: Mapping[str, Blob]) -> dict[str, Path]:
    """Return the weights beside an engine by the names that stages know them by. `files`: the engine's in the store."""
    titles = {"lowered": "lowered", "external": "lowered_external"}
    return {titles[role]: files[title].path for title, role in _ROLES.items() if title in files}


def lowered_inputs(lower: StageResult) -> dict[str, Path]:
    """Return the files of the lowered model by the names that stages know them by."""
    titles = {"external": "lowered_external"}
    return {titles.get(name, name): path for name, path in lower.outputs.items()}
