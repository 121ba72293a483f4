"""Assembles a manifest from what the stages found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import builder
from builder import durable, host
from builder.job_stages import weights_of
from builder.key import Key, Runtime, Tuning, options_document
from builder.manifest import (
    SCHEMA_VERSION,
    BuildPart,
    EnginePart,
    LoweredPart,
    Manifest,
    OnnxPart,
    PrecisionPart,
    ProofPart,
    RecipePart,
    Reproducibility,
    StackPart,
    StageCost,
    TargetPart,
    TunedPart,
    WeightsFile,
)
from builder.models import EXTERNAL, MODEL, OnnxModel
from builder.plan import Job
from builder.recipe import Precision, Recipe
from builder.stage import StageResult

_UNMEASURED = Reproducibility(level="unmeasured", rebuilds=0, measured_at=None, detail=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a manifest is made from. `before`: the manifest of the same engine bytes, if they were in the store.

    `commit`: the Git commit of the project, null where it is no checkout.
    """

    job: Job
    recipe: Recipe
    runtime: Runtime
    model: OnnxModel
    engine_key: Key
    proof_key: Key
    engine: Path
    results: Mapping[str, StageResult]
    before: Manifest | None
    tuning: Tuning | None = None
    commit: str | None = None


def make_manifest(evidence: Evidence) -> Manifest:
    """Put the manifest together; what concerns the engine's bytes is taken over where they were not built anew."""
    before = evidence.before
    return Manifest(
        schema_version=SCHEMA_VERSION,
        job=evidence.job.id,
        key=evidence.engine_key.sha256,
        created=datetime.now(tz=timezone.utc),
        farm_version=builder.__version__,
        recipe=_recipe(evidence.recipe, evidence.commit),
        precision=_precision(evidence),
        stack=_stack(evidence.runtime),
        target=TargetPart(name=evidence.job.target, sms=list(evidence.job.sms)),
        onnx=_onnx(evidence.model),
        lowered=_lowered(evidence.results["lower"]),
        engine=_engine(evidence, before),
        build=before.build if before is not None else _build(evidence),
        proof=_proof(evidence),
        reproducibility=before.reproducibility if before is not None else _UNMEASURED,
        bench=before.bench if before is not None else None,
        stages={
            name: StageCost(seconds=round(result.seconds, 3), max_rss_bytes=result.max_rss_bytes)
            for name, result in evidence.results.items()
        },
        host=host.description(),
    )


def _recipe(recipe: Recipe, commit: str | None) -> RecipePart:
    return RecipePart(
        name=recipe.name,
        description=recipe.description,
        licence=recipe.licence,
        weights=recipe.weights_kind,
        weights_detail=recipe.weights.model_dump(mode="json") if recipe.weights is not None else None,
        source=recipe.source.model_dump(mode="json"),
        commit=commit,
    )


def _precision(evidence: Evidence) -> PrecisionPart:
    data = dict(evidence.results["examine"].data)
    return PrecisionPart(
        requested=data.pop("requested"),
        realised=data.pop("realised"),
        share=data.pop("share"),
        share_basis=data.pop("share_basis"),
        source=data.pop("source"),
        layers=data,
    )


def _stack(runtime: Runtime) -> StackPart:
    spec = runtime.stack.build
    return StackPart(
        name=runtime.stack.name,
        tensorrt=spec.tensorrt,
        cuda=spec.cuda,
        platform=spec.platform,
        python=runtime.python,
        lock_sha256=runtime.stack.lock_sha256,
        packages=list(runtime.stack.packages(runtime.python)),
        image=runtime.image,
        image_base=runtime.image_base,
        confirmed=spec.confirmed,
    )


def _onnx(model: OnnxModel) -> OnnxPart:
    return OnnxPart(
        sha256=model.identity[MODEL],
        external_sha256=model.identity.get(EXTERNAL),
        size=model.size,
        export=dict(model.export) if model.export is not None else None,
    )


def _lowered(result: StageResult) -> LoweredPart:
    path = result.outputs["lowered"]
    return LoweredPart(sha256=durable.sha256_file(path), size=path.stat().st_size, detail=dict(result.data))


def _engine(evidence: Evidence, before: Manifest | None) -> EnginePart:
    files = weights_of(evidence.recipe, evidence.results["lower"])
    weights = tuple(
        WeightsFile.model_validate({"file": title, "sha256": durable.sha256_file(path), "size": path.stat().st_size})
        for title, path in files.items()
    )
    if before is not None:
        return before.engine.model_copy(update={"weights": weights})
    data = evidence.results["build"].data
    return EnginePart(
        file="model.plan",
        sha256=durable.sha256_file(evidence.engine),
        size=evidence.engine.stat().st_size,
        inputs=data["inputs"],
        outputs=data["outputs"],
        profiles=data["profiles"],
        flags=data["flags"],
        # no lean runtime is ever put inside an engine
        needs_host_code=False,
        weights=weights,
    )


def _build(evidence: Evidence) -> BuildPart:
    result = evidence.results["build"]
    options = options_document(evidence.job, evidence.recipe)
    return BuildPart(
        seconds=round(result.seconds, 3),
        max_rss_bytes=result.max_rss_bytes,
        options=options,
        repeatable=result.data["repeatable"],
        tuned_on=_tuned(evidence, result.data),
        warnings=result.data["warnings"],
    )


def _tuned(evidence: Evidence, data: Mapping[str, Any]) -> TunedPart | None:
    if evidence.tuning is None:
        return None
    return TunedPart(
        name=data["device"]["name"],
        sm=data["device"]["sm"],
        driver=evidence.tuning.driver,
        workspace_bytes=data["workspace_bytes"],
        retried_with_less_memory=data["retried_with_less_memory"],
        precision_constraints=data["precision_constraints"],
        build_seconds=round(data["build_seconds"], 3),
        timing_cache=data["timing_cache"],
        calibration=data.get("calibration"),
        watched=data.get("watched"),
    )


def _proof(evidence: Evidence) -> ProofPart:
    if "verify" not in evidence.results:
        settings = evidence.recipe.precisions[Precision(evidence.job.precision)]
        return _skipped(evidence.proof_key, settings.tolerance.model_dump(mode="json", exclude_none=True))
    return proof_part(evidence.job, evidence.recipe, evidence.proof_key.sha256, evidence.results["verify"])


def proof_part(job: Job, recipe: Recipe, key: str, result: StageResult) -> ProofPart:
    """Return what the verify stage proved."""
    data = result.data
    tolerance = recipe.precisions[Precision(job.precision)].tolerance
    return ProofPart(
        key=key,
        # int8 on a machine without a GPU: nothing was compared
        status="passed" if data["method"] is not None else "skipped",
        engine_verified=data["engine_verified"],
        reason=data["engine_reason"],
        method=data["method"],
        reference=data["reference"],
        tolerance=tolerance.model_dump(mode="json", exclude_none=True),
        cases=data["cases"],
        outside=data["outside"],
        worst=data["worst"],
    )


def _skipped(key: Key, tolerance: dict[str, Any]) -> ProofPart:
    return ProofPart(
        key=key.sha256,
        status="skipped",
        engine_verified=False,
        reason="verification was left out with --skip-verify",
        method=None,
        reference=None,
        tolerance=tolerance,
        cases=[],
        outside=[],
        worst=None,
    )
