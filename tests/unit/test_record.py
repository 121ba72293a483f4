"""What stages found, as the manifest says it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.key import Key, Runtime, Tuning
from builder.models import OnnxModel
from builder.plan import Job
from builder.record import Evidence, make_manifest
from builder.stage import StageResult
from tests.unit.test_key import stack
from tests.unit.test_plan import recipe

CALIBRATION = {"method": "entropy", "batches": 16, "sha256": "ab" * 32}
BUILT: dict[str, Any] = {
    "device": {"name": "NVIDIA H200", "sm": "9.0"},
    "workspace_bytes": 1,
    "retried_with_less_memory": False,
    "precision_constraints": 0,
    "build_seconds": 1.0,
    "timing_cache": {},
    "repeatable": False,
    "warnings": [],
    **{name: [] for name in ("inputs", "outputs", "profiles", "flags")},
}
EXAMINED = {
    "requested": "int8",
    "realised": "mixed",
    "share": 0.8,
    "share_basis": "macs",
    "source": "inspector",
    "chosen_fp16": ["conv1"],
}
VERIFIED: dict[str, Any] = {
    "engine_verified": True,
    "engine_reason": None,
    "method": "the engine on NVIDIA H200, SM 9.0",
    "reference": "framework",
    "cases": [],
    "outside": [],
    "worst": None,
}


def evidence(folder: Path, built: dict[str, Any], verified: dict[str, Any]) -> Evidence:
    """Make what an int8 job on a GPU leaves."""
    engine = folder / "engine"
    engine.write_bytes(b"engine")
    data = {"lower": {}, "build": {**BUILT, **built}, "examine": EXAMINED, "verify": {**VERIFIED, **verified}}
    outputs = {"lower": {"lowered": engine}, "build": {"engine": engine}}
    key = Key(document={}, sha256="0" * 64)
    model: Any = OnnxModel.__new__(OnnxModel)
    for name, value in (("identity", {"model.onnx": "1" * 64}), ("size", 1), ("export", None)):
        object.__setattr__(model, name, value)
    settings = {"tolerance": {"default": {"cosine": 0.99}}}
    return Evidence(
        job=Job(recipe="model", precision="int8", stack="s", target="hopper", sms=("9.0",)),
        recipe=recipe(precisions={"int8": settings}),
        runtime=Runtime(stack=stack(family="trt8", tensorrt="8.6.1", precisions=["int8"]), python="3.11"),
        model=model,
        engine_key=key,
        proof_key=key,
        engine=engine,
        results={
            stage: StageResult(outputs=outputs.get(stage, {}), data=facts, seconds=1.0, max_rss_bytes=1)
            for stage, facts in data.items()
        },
        before=None,
        tuning=Tuning(device="NVIDIA H200", sm="9.0", driver="580"),
    )


@pytest.mark.parametrize("calibration", [CALIBRATION, None])
def test_the_digest_of_a_calibration_is_beside_that_of_the_timings(
    tmp_path: Path, calibration: dict[str, Any] | None
) -> None:
    made = make_manifest(evidence(tmp_path, {"calibration": calibration}, {}))
    assert made.build.tuned_on is not None
    assert made.build.tuned_on.calibration == calibration
    assert made.precision.layers["chosen_fp16"] == ["conv1"]
    assert made.proof.status == "passed"


def test_nothing_compared_is_not_passed(tmp_path: Path) -> None:
    reason = "int8 cannot be emulated on the CPU"
    nothing = {"engine_verified": False, "engine_reason": reason, "method": None, "reference": None}
    made = make_manifest(evidence(tmp_path, {}, nothing))
    assert (made.proof.status, made.proof.engine_verified, made.proof.reason) == ("skipped", False, reason)


def test_the_commit_of_the_project_is_kept(tmp_path: Path) -> None:
    found = evidence(tmp_path, {}, {})
    assert make_manifest(found).recipe.commit is None
    assert make_manifest(replace(found, commit="c" * 40)).recipe.commit == "c" * 40
