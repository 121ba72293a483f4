"""Engines that were never built: manifests, outcomes and stores for tests of what people see."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from builder import manifest as m
from builder.key import canonical, make_key
from builder.store import Entry, Store
from builder.titles import ENGINE, KEY, MANIFEST, PROOF

STACK = "trtrtx1.7-cuda13"


def job_id(recipe: str = "tiny", precision: str = "fp16") -> str:
    """Name a job for Ampere."""
    return f"{recipe}-{precision}-{STACK}-sm80-sm86"


def engine_bytes(recipe: str, precision: str, variant: int) -> bytes:
    """Return other bytes for another engine."""
    return f"{recipe} {precision} {variant}".encode() * 1000


def key_document(recipe: str, precision: str, variant: int = 0) -> dict[str, Any]:
    """Return what an engine depends on, much shortened."""
    return {"precision": precision, "onnx": {"model.onnx": recipe}, "worker_sha256": str(variant) * 64}


def manifest(recipe: str = "tiny", precision: str = "fp16", *, variant: int = 0, **changes: Any) -> m.Manifest:
    """Make a manifest; `changes` replace whole parts."""
    content = engine_bytes(recipe, precision, variant)
    cases = [
        {
            "profile": "default",
            "point": point,
            "shapes": {"x": [batch, 3, 32, 32]},
            "outputs": {
                "y": {"max_abs": 0.0012, "max_rel": 0.03, "mse": 3.1e-9, "cosine": 0.999998, "nonfinite": 0, "ok": True}
            },
            "ok": True,
        }
        for point, batch in (("min", 1), ("opt", 4), ("max", 8))
    ]
    parts: dict[str, Any] = {
        "schema_version": 1,
        "job": job_id(recipe, precision),
        "key": make_key("engine", key_document(recipe, precision, variant)).sha256,
        "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        "farm_version": "0.1.0",
        "recipe": m.RecipePart(
            name=recipe,
            description="A small network for tests.",
            licence="Apache-2.0",
            weights="seeded",
            weights_detail={"kind": "seeded", "seed": 0},
            source={"kind": "python", "entry": "model.py:build"},
        ),
        "precision": m.PrecisionPart(
            requested=precision,
            realised=precision,
            share=0.98,
            share_basis="macs",
            source="network",
            layers={"layers": 12},
        ),
        "stack": m.StackPart(
            name=STACK,
            tensorrt="1.7.1.116",
            cuda="13.0",
            platform="linux/amd64",
            python="3.11",
            lock_sha256="1" * 64,
            packages=["numpy==2.0.0"],
            image=None,
            confirmed=True,
        ),
        "target": m.TargetPart(name="ampere", sms=["8.0", "8.6"]),
        "onnx": m.OnnxPart(sha256="2" * 64, external_sha256=None, size=4000, export=None),
        "lowered": m.LoweredPart(sha256="3" * 64, size=2100, detail={}),
        "engine": m.EnginePart(
            file="model.plan",
            sha256=hashlib.sha256(content).hexdigest(),
            size=len(content),
            inputs=[{"name": "x", "dtype": "float32", "shape": [-1, 3, 32, 32]}],
            outputs=[{"name": "y", "dtype": "float32", "shape": [-1, 10]}],
            profiles=[],
            flags=["STRONGLY_TYPED"],
            needs_host_code=False,
        ),
        "build": m.BuildPart(
            seconds=0.52, max_rss_bytes=700 << 20, options={}, repeatable=True, tuned_on=None, warnings=[]
        ),
        "proof": m.ProofPart(
            key="4" * 64,
            status="passed",
            engine_verified=False,
            reason="no GPU",
            method="low precision emulated on the CPU",
            reference="framework",
            tolerance={},
            cases=cases,
            outside=[
                {
                    "profile": "default",
                    "shapes": {"x": [9, 3, 32, 32]},
                    "graph": "agrees",
                    "excluded_by_profile": True,
                    "detail": "",
                }
            ],
            worst={
                "case": "default/max",
                "output": "y",
                "metric": "max_abs",
                "value": 0.0012,
                "limit": 0.01,
                "headroom": 0.88,
            },
        ),
        "reproducibility": m.Reproducibility(level="unmeasured", rebuilds=0, measured_at=None, detail=None),
        "stages": {"build": m.StageCost(seconds=0.52, max_rss_bytes=700 << 20)},
        "bench": None,
        "host": {"system": "linux"},
    }
    return m.Manifest(**{**parts, **changes})


def add_engine(store: Store, recipe: str = "tiny", precision: str = "fp16", *, variant: int = 0) -> Entry:
    """Put an engine into a store."""
    described = manifest(recipe, precision, variant=variant)
    engine = make_key("engine", key_document(recipe, precision, variant))
    proof = make_key("proof", {"engine": engine.sha256, "tolerance": {"max_abs": 0.01 + variant}})
    files: dict[str, Path | bytes] = {
        ENGINE: engine_bytes(recipe, precision, variant),
        MANIFEST: described.to_json().encode(),
        KEY: canonical(engine.document),
        PROOF: canonical(proof.document),
    }
    return store.add(kind="engine", key=engine.sha256, name=described.job, files=files)
