"""Keys: the SHA-256 of a document that holds all that can change an artifact, and nothing that cannot.

Three kinds. `export`: what the ONNX file depends on. `engine`: what the engine's bytes depend on. `proof`: what the
verdict on an engine depends on besides its bytes. A tighter tolerance changes the proof, never the engine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from builder.plan import Job
from builder.recipe import Precision, PretrainedWeights, PythonSource, Recipe
from builder.stacks import Stack

KEY_VERSION = 1

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key document and its digest."""

    document: Document
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What runs a stage: a stack's packages on a Python, or an image.

    `python` such as "3.11": the bindings to TensorRT are compiled for it, and the engine's bytes depend on them.
    """

    stack: Stack
    python: str
    image: str | None = None
    # told in manifests; the image's digest covers it
    image_base: str | None = None

    def as_document(self) -> dict[str, Any]:
        """Return the part of a key document that names the software."""
        if self.image is not None:
            return {"name": self.stack.name, "image": self.image}
        pins = list(self.stack.packages(self.python))
        software = {"lock_sha256": self.stack.lock_sha256, "packages": pins, "python": self.python}
        return {"name": self.stack.name, **software}


def canonical(document: Document) -> bytes:
    """Serialise a document so that equal documents are equal bytes."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def make_key(kind: str, document: Document) -> Key:
    """Hash a document with its kind, version and length in front, so that no two kinds can collide."""
    full = {"kind": kind, "key_version": KEY_VERSION, **document}
    body = canonical(full)
    frame = f"enginefarm-key\0{kind}\0{KEY_VERSION}\0{len(body)}\0".encode()
    return Key(document=full, sha256=hashlib.sha256(frame + body).hexdigest())


def export_key(recipe: Recipe, recipe_files: Mapping[str, str], runtime: Runtime, worker_sha256: str) -> Key:
    """Key of the ONNX file of a Python source.

    `recipe_files` maps each file of the recipe's folder that the model can read to its SHA-256, recipe.yaml left out.
    The shape profiles and inputs count: the export runs at their shapes and makes the reference outputs.
    """
    if not isinstance(recipe.source, PythonSource) or recipe.export is None or recipe.weights is None:
        msg = f"recipe {recipe.name} brings its ONNX file along"
        raise TypeError(msg)
    weights: dict[str, Any] = {"kind": recipe.weights.kind}
    if isinstance(recipe.weights, PretrainedWeights):
        weights["sha256"] = recipe.weights.file.sha256
    else:
        weights["seed"] = recipe.weights.seed
    return make_key(
        "export",
        {
            "entry": recipe.source.entry,
            "files": dict(recipe_files),
            "weights": weights,
            "export": recipe.export.model_dump(mode="json"),
            "profiles": profiles_document(recipe),
            "inputs": {name: spec.model_dump(mode="json") for name, spec in recipe.inputs.items()},
            "stack": runtime.as_document(),
            "worker_sha256": worker_sha256,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What else an engine depends on where it is tuned on a GPU. `timing_cache`: SHA-256 of a sealed one."""

    device: str
    sm: str
    driver: str
    timing_cache: str | None = None


def engine_key(
    job: Job,
    recipe: Recipe,
    onnx: Mapping[str, str],
    runtime: Runtime,
    worker_sha256: str,
    tuning: Tuning | None = None,
) -> Key:
    """Key of an engine. `onnx` maps each file of the ONNX model (weights kept outside included) to its SHA-256.

    Device, driver, calibration, plugins and timing cache are null where a stack builds without them; they are named
    here all the same, so that a later stack cannot forget one.
    """
    build = runtime.stack.build
    settings = recipe.precisions[Precision(job.precision)]
    return make_key(
        "engine",
        {
            "onnx": dict(onnx),
            "precision": job.precision,
            "keep_fp32": {
                "nodes": sorted(settings.keep_fp32.nodes),
                "ops": sorted(settings.keep_fp32.ops),
            },
            "profiles": [
                {name: {k: v for k, v in shapes.items() if k != "also"} for name, shapes in profile["inputs"].items()}
                for profile in profiles_document(recipe)
            ],
            "options": options_document(job, recipe),
            "sms": list(job.sms),
            "family": build.family,
            "tensorrt": build.tensorrt,
            "cuda": build.cuda,
            "platform": build.platform,
            "stack": runtime.as_document(),
            "device": {"name": tuning.device, "sm": tuning.sm} if tuning is not None else None,
            "driver": tuning.driver if tuning is not None else None,
            "calibration": _calibration_document(job, recipe),
            "plugins": [],
            "timing_cache": tuning.timing_cache if tuning is not None else None,
            "worker_sha256": worker_sha256,
        },
    )


def proof_key(job: Job, recipe: Recipe, engine: Key, worker_sha256: str, *, verified: bool) -> Key:
    """Key of the verdict: the engine's key, the job's name and what verification uses, or that it was left out."""
    settings = recipe.precisions[Precision(job.precision)]
    return make_key(
        "proof",
        {
            "engine": engine.sha256,
            "verified": verified,
            "job": job.id,
            "target": job.target,
            "recipe": {
                "name": recipe.name,
                "description": recipe.description,
                "licence": recipe.licence,
                "weights": recipe.weights.model_dump(mode="json") if recipe.weights else None,
            },
            "tolerance": settings.tolerance.model_dump(mode="json"),
            "profiles": profiles_document(recipe),
            "inputs": {name: spec.model_dump(mode="json") for name, spec in recipe.inputs.items()},
            "worker_sha256": worker_sha256,
        },
    )


def options_document(job: Job, recipe: Recipe) -> dict[str, Any]:
    """Return the builder settings of a job: the recipe's, with the compatibility that the plan settled."""
    return {**recipe.build.model_dump(mode="json"), "hardware_compatibility": job.compatibility}


def _calibration_document(job: Job, recipe: Recipe) -> dict[str, Any] | None:
    """Return all that calibration depends on besides the model and the opt shapes: generators, or digests of samples.

    What it finds is not in the key: it follows from this.
    """
    calibration = recipe.calibration(job.precision)
    if calibration is None:
        return None
    inputs = {name: spec.model_dump(mode="json") for name, spec in recipe.inputs.items()}
    for spec in inputs.values():
        # where a sample lies changes nothing, what it holds does
        spec["values"].pop("path", None)
    return {**calibration.model_dump(mode="json"), "inputs": inputs}


def profiles_document(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the shape profiles as plain data, in order: the order is their index in the engine."""
    return [profile.model_dump(mode="json") for profile in recipe.profiles]


def differences(left: object, right: object, path: str = "") -> list[tuple[str, Any, Any]]:
    """List the leaves in which two documents differ, as (dotted path, left, right); None stands for absent."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        found = []
        for name in sorted({*left, *right}):
            found += differences(left.get(name), right.get(name), f"{path}.{name}" if path else name)
        return found
    return [] if left == right else [(path, left, right)]
