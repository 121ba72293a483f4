"""A farm that only pretends to rebuild: one engine in a store, and what each rebuild and each run of engines gives."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from builder.errors import EnginefarmError, Reason
from builder.events import JobOutcome, Status
from builder.gpu import Gpu
from builder.job_stages import Tuned
from builder.jobs import read_manifest
from builder.key import Key, Runtime, canonical
from builder.manifest import Manifest
from builder.project import Home, Project
from builder.reproduce import Ask, Reproduction, reproduce
from builder.runner import Settings
from builder.stage import StageRequest, StageResult
from builder.store import Entry, Store
from builder.timing_caches import TIMING_CACHE
from builder.titles import ENGINE, KEY, MANIFEST, PROOF, PROOF_ANNOTATION
from tests.engines import manifest

ROOT = Path(__file__).parents[1]
CLASSIC, RTX = "trt8.6-cuda12.0", "trtrtx1.7-cuda13"
ENGINE_BYTES, CACHE_BYTES = bytes(5000), b"what was measured"
H200 = Gpu(uuid="GPU-1", index=0, name="NVIDIA H200", sm="9.0", driver="580.1", memory_bytes=1 << 37, mig=False)
A100 = Gpu(uuid="GPU-2", index=1, name="NVIDIA A100", sm="8.0", driver="580.1", memory_bytes=1 << 36, mig=False)
EQUAL = {"equal": True, "within": True, "outputs": {"logits": {"case": "batch/min", "max_abs": 0.0, "mse": 0.0}}}
NEAR = {"equal": False, "within": True, "outputs": {"logits": {"case": "batch/max", "max_abs": 1e-4, "mse": 2e-9}}}
FAR = {"equal": False, "within": False, "outputs": {"logits": {"case": "batch/opt", "max_abs": None, "mse": None}}}


@dataclass
class Farm:
    """A store with one engine, and what rebuilding it gives."""

    home: Home
    stack: str
    gpus: tuple[Gpu, ...] = (H200,)
    rebuilt: list[bytes] = field(default_factory=lambda: [ENGINE_BYTES])
    compared: list[dict[str, Any]] = field(default_factory=list)
    repeats: bool = True
    key: Key = field(init=False)
    keys_for: list[Tuned | None] = field(default_factory=list)
    tuned: list[Tuned | None] = field(default_factory=list)
    requests: list[StageRequest] = field(default_factory=list)
    leases: list[str] = field(default_factory=list)
    stop_at: int | None = None

    def __post_init__(self) -> None:
        """Put the engine into the store."""
        self.store = Store(self.home.store)
        sealed = {"options": {"hardware_compatibility": "none"}, "timing_cache": None, "driver": "580.1"}
        document = {"kind": "engine", "key_version": 1, **sealed}
        self.key = Key(document=document, sha256=hashlib.sha256(self.stack.encode()).hexdigest())
        files: dict[str, Path | bytes] = {
            ENGINE: ENGINE_BYTES,
            MANIFEST: self.described(ENGINE_BYTES).to_json().encode(),
            KEY: canonical(document),
            PROOF: b"{}",
        }
        if self.stack == CLASSIC:
            files[TIMING_CACHE] = CACHE_BYTES
        self.entry = self.add(self.store, files)

    def add(self, store: Store, files: dict[str, Path | bytes]) -> Entry:
        annotations = {PROOF_ANNOTATION: "proof"}
        return store.add(kind="engine", key=self.key.sha256, name=self.job, files=files, annotations=annotations)

    @property
    def sms(self) -> list[str]:
        return ["9.0"] if self.stack == CLASSIC else ["8.0", "8.6"]

    @property
    def job(self) -> str:
        return f"tiny-mlp-fp16-{self.stack}-" + "-".join(f"sm{sm.replace('.', '')}" for sm in self.sms)

    def described(self, content: bytes) -> Manifest:
        made = manifest("tiny-mlp")
        return made.model_copy(
            update={
                "job": self.job,
                "key": self.key.sha256,
                "stack": made.stack.model_copy(update={"name": self.stack}),
                "target": made.target.model_copy(update={"sms": self.sms}),
                "engine": made.engine.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()}),
            }
        )

    # what stands for the executor
    def prepare(self, stack: Any, log: Path) -> None:
        assert stack.name == self.stack

    def runtime(self, stack: Any) -> Runtime:
        return Runtime(stack=stack, python="3.11")

    def run(self, stack: Any, request: StageRequest) -> StageResult:
        self.requests.append(request)
        data = {"device": H200.name, "cases": ["a", "b", "c"], "repeats": self.repeats, "rebuilt": self.compared}
        return StageResult(outputs={}, data=data, seconds=1.0, max_rss_bytes=0)

    # what stands for the runner of jobs
    def job_runner(self, *, store: Store, stages: Any, **_: Any) -> Any:
        assert store.entries() == ()

        def run(job: Any, recipe: Any, runtime: Runtime, tuned: Tuned | None) -> JobOutcome:
            assert job.id == self.job
            number = len(self.tuned)
            self.tuned.append(tuned)
            if number == self.stop_at:
                error = EnginefarmError(Reason.INTERRUPTED, "stopped")
                return JobOutcome(job=job.id, status=Status.CANCELLED, seconds=0.0, error=error)
            content = self.rebuilt[number % len(self.rebuilt)]
            made = self.described(content)
            self.add(store, {ENGINE: content, MANIFEST: made.to_json().encode()})
            return JobOutcome(job=job.id, status=Status.BUILT, seconds=1.0, manifest=made)

        return SimpleNamespace(run=run)

    def make_keys(self, job: Any, recipe: Any, onnx: Any, runtime: Runtime, tuned: Tuned | None) -> Any:
        self.keys_for.append(tuned)
        return SimpleNamespace(engine=self.key)

    @contextmanager
    def lease(self, gpus: tuple[Gpu, ...], *_: Any) -> Iterator[Gpu]:
        self.leases.append(gpus[0].uuid)
        yield gpus[0]

    def reproduce(self, ask: Ask | None = None, name: str | None = None) -> Reproduction:
        project, settings = Project(root=ROOT), Settings()
        arguments = (name or self.job, project, self.home, settings, lambda event: None, threading.Event())
        return reproduce(*arguments) if ask is None else reproduce(*arguments, ask)

    def level(self) -> str:
        (entry,) = self.store.entries("engine")
        return read_manifest(self.store, entry).reproducibility.level


def changed(*offsets: int) -> bytes:
    """Return the engine with other bytes in some places."""
    content = bytearray(ENGINE_BYTES)
    for offset in offsets:
        content[offset] = 1
    return bytes(content)
