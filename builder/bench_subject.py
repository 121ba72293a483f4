"""What belongs to an engine that is to be benched: its recipe, stack, model, GPUs, and what to compare it with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.built import job_of, recipe_of, stack_of
from builder.fetch import Fetcher
from builder.job_stages import weights_inputs
from builder.key import profiles_document
from builder.manifest import Manifest
from builder.models import EXTERNAL, MODEL, export_params, inputs_document
from builder.plan import Job
from builder.project import Project
from builder.recipe import PretrainedWeights, PythonSource, Recipe
from builder.stacks import Stack, load_stacks
from builder.store import Entry, Store
from builder.titles import ENGINE

TORCH_KINDS = ("eager", "compile")
ONNX_KIND = "onnxruntime"
KINDS = (*TORCH_KINDS, ONNX_KIND)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSubject:
    """What is benched. `onnx`: files of the model before lowering as stage inputs; empty if it left the store.

    `weights`: of an engine that was built without them, as stage inputs.
    """

    job: Job
    manifest: Manifest
    recipe: Recipe
    stack: Stack
    engine: Path
    onnx: Mapping[str, Path]
    weights: Mapping[str, Path] = field(default_factory=dict)

    def engine_params(self, points: Sequence[str]) -> dict[str, Any]:
        """Return what the stage `bench` is told; `points` of each shape profile are timed."""
        stack = self.stack.build
        return {
            **self._common(points),
            "family": stack.family,
            "import_name": stack.import_name,
            "sms": list(self.job.sms),
            "options": self.manifest.build.options,
        }

    def baseline_params(self, kind: str, points: Sequence[str]) -> dict[str, Any]:
        """Return what the stage `baseline` is told."""
        own = export_params(self.recipe) if kind in TORCH_KINDS else {}
        return {**own, **self._common(points), "kind": kind}

    def _common(self, points: Sequence[str]) -> dict[str, Any]:
        return {
            "precision": self.job.precision,
            "profiles": profiles_document(self.recipe),
            "inputs": inputs_document(self.recipe),
            "points": list(points),
        }


def find_subject(store: Store, entry: Entry, manifest: Manifest, project: Project) -> BenchSubject:
    """Find all that belongs to an engine of the store.

    Raises:
        EnginefarmError: as `recipe_of`, INPUTS_CHANGED where the stack's lock is no longer that of the engine.

    """
    job = job_of(manifest)
    recipe, files = recipe_of(manifest, project), store.files(entry)
    return BenchSubject(
        job=job,
        manifest=manifest,
        recipe=recipe,
        stack=stack_of(manifest, load_stacks(project.images)),
        engine=files[ENGINE].path,
        weights=weights_inputs(files),
        onnx=_onnx(store, manifest),
    )


def find_baselines(
    subject: BenchSubject, project: Project, fetcher: Fetcher, wanted: Sequence[str] = KINDS
) -> dict[str, dict[str, Path]]:
    """Map each kind of baseline that is wanted, and that the model can be run with, to its stage's inputs.

    Raises:
        EnginefarmError: FETCH_FAILED, DIGEST_MISMATCH.

    """
    found: dict[str, dict[str, Path]] = {}
    torch = [kind for kind in TORCH_KINDS if kind in wanted]
    if torch and isinstance(subject.recipe.source, PythonSource):
        inputs = {"recipe_dir": project.recipes / subject.recipe.name}
        if isinstance(subject.recipe.weights, PretrainedWeights):
            inputs["weights"] = fetcher.weights(subject.recipe.weights.file)
        found = {kind: dict(inputs) for kind in torch}
    if ONNX_KIND in wanted and subject.onnx:
        found[ONNX_KIND] = dict(subject.onnx)
    return found


def _onnx(store: Store, manifest: Manifest) -> dict[str, Path]:
    wanted = f"sha256:{manifest.onnx.sha256}"
    for entry in store.entries("onnx"):
        files = store.files(entry)
        if MODEL in files and files[MODEL].digest == wanted:
            titles = {"model": MODEL, "external": EXTERNAL}
            return {name: files[title].path for name, title in titles.items() if title in files}
    return {}
