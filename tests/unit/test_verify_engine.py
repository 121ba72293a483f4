"""`verify` around a farm that only pretends: what it finds, refuses, starts, and writes into the manifest."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from builder import built
from builder import verify_engine as module
from builder.errors import EnginefarmError, Reason
from builder.events import Event, Note, StepFinished
from builder.executors.context import ExecutorContext
from builder.gpu import Gpu
from builder.jobs import Keys, find_proved, read_manifest, save, update_manifest
from builder.key import Runtime, make_key, proof_key
from builder.manifest import Manifest
from builder.project import Home, Project
from builder.recipe_file import load_recipe
from builder.runner import Settings
from builder.stacks import Stack, load_stacks
from builder.stage import StageRequest, StageResult
from builder.store import Entry, Store
from builder.titles import CALIBRATION_CACHE, ENGINE, KEY, MANIFEST, PROOF, PROOF_ANNOTATION
from builder.verify_engine import Verification, verify_engine
from builder.worker_source import PROOF_STAGES, worker_sha256
from tests import engines
from tests.artifacts import blob, overwrite, refusal

ROOT = Path(__file__).parents[2]
PLAN = b"plan"
A40 = Gpu(uuid="GPU-1", index=0, name="NVIDIA A40", sm="8.6", driver="580.1", memory_bytes=48 << 30, mig=False)
H200 = replace(A40, uuid="GPU-2", index=1, name="NVIDIA H200", sm="9.0")
ENGINE_KEY = make_key("engine", {"a": 1})
PROVEN = {
    "engine_verified": True,
    "engine_reason": None,
    "method": "the engine on NVIDIA A40, SM 8.6",
    "reference": "framework",
    "cases": [{"profile": "batch", "point": "min", "shapes": {}, "outputs": {}, "ok": True}],
    "outside": [],
    "worst": {"case": "batch/min", "output": "y", "metric": "max_abs", "value": 1e-4, "limit": 2e-3},
}


@dataclass
class Farm:
    """A project of its own, a store with one engine of it, and what stands for executor, driver and GPU."""

    root: Path
    recipe: str = "tiny-mlp"
    gpus: tuple[Gpu, ...] = (H200, A40)
    images: set[str] = field(default_factory=set)
    trouble: dict[str, EnginefarmError] = field(default_factory=dict)
    requests: list[StageRequest] = field(default_factory=list)
    given: list[dict[str, bytes]] = field(default_factory=list)
    prepared: list[str] = field(default_factory=list)
    leased: list[tuple[tuple[Gpu, ...], str]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    waits: bool = False
    executor: str = ""

    def __post_init__(self) -> None:
        """Copy the recipe; nothing is in the store yet."""
        self.project, self.home = Project(root=self.root / "project"), Home(root=self.root / "home")
        self.store = Store(self.home.store)
        shutil.copytree(ROOT / "recipes" / self.recipe, self.project.recipes / self.recipe)
        self.project.images.symlink_to(ROOT / "images")
        self.stack = load_stacks(self.project.images)[engines.STACK]

    @property
    def job(self) -> str:
        return engines.job_id(self.recipe)

    @property
    def recipe_file(self) -> Path:
        return self.project.recipes / self.recipe / "recipe.yaml"

    def described(self, **changes: Any) -> Manifest:
        """Describe the engine as the recipe and the stack are now."""
        recipe, made = load_recipe(self.recipe_file), engines.manifest(self.recipe)
        points = ("min", "opt", "max")
        profiles = [
            {"name": one.name, "inputs": {n: {p: getattr(s, p) for p in points} for n, s in one.inputs.items()}}
            for one in recipe.profiles
        ]
        exported = hashlib.sha256(b"export").hexdigest()
        onnx = made.onnx.model_copy(update={"sha256": recipe.source.model_dump().get("sha256", exported)})
        parts: dict[str, Any] = {
            "stack": made.stack.model_copy(update={"lock_sha256": self.stack.lock_sha256}),
            "engine": made.engine.model_copy(update={"profiles": profiles}),
            "build": made.build.model_copy(update={"options": recipe.build.model_dump(mode="json")}),
            "onnx": onnx,
        }
        return made.model_copy(update={**parts, **changes})

    def put(self, manifest: Manifest | None = None, left: Mapping[str, Path] | None = None) -> Entry:
        engine = self.root / "engine"
        engine.write_bytes(PLAN)
        unproved = make_key("proof", {"verified": False})
        return save(self.store, manifest or self.described(), engine, ENGINE_KEY, unproved, left)

    def verify(self, name: str = "", **settings: Any) -> Verification:
        arguments = (self.project, self.home, Settings(**settings), self.events.append, threading.Event())
        return verify_engine(name or self.job, *arguments)

    @contextmanager
    def lease(
        self, gpus: tuple[Gpu, ...], cancel: threading.Event, say: Any, environ: Mapping[str, str], what: str = ""
    ) -> Iterator[Gpu]:
        self.leased.append((gpus, what))
        if self.waits:
            say("GPU 1 is busy: waiting")
        yield gpus[0]

    # what stands for an executor: with images nothing is known of a stack before it is prepared
    def open(self, name: str) -> Any:
        def opened(context: ExecutorContext) -> Farm:
            self.executor = name
            return self

        return opened

    def identified(self, stack: Stack) -> bool:
        return self.executor == "local" or stack.name in self.images

    def prepare(self, stack: Stack, log: Path) -> None:
        self.prepared.append(stack.name)
        self.images.add(stack.name)

    def runtime(self, stack: Stack) -> Runtime:
        if not self.identified(stack):
            raise EnginefarmError(Reason.IMAGE_MISSING, f"the image of stack {stack.name} is not built")
        return Runtime(stack=stack, python="3.11")

    def run(self, stack: Stack, request: StageRequest) -> StageResult:
        self.requests.append(request)
        self.given.append({name: path.read_bytes() for name, path in request.inputs.items() if path.is_file()})
        (request.folder / "out").mkdir(parents=True)
        request.log.write_text(f"{request.stage} says no\n", encoding="utf-8")
        if request.stage in self.trouble:
            raise self.trouble[request.stage]
        made: dict[str, tuple[str, dict[str, Any]]] = {
            "lower": ("lowered", {"kept_fp32": [], "kept_reasons": {}}),
            "export": ("model", {}),
        }
        role, data = made.get(request.stage, ("", PROVEN))
        out = request.folder / "out" / role
        if role:
            out.write_bytes(request.stage.encode())
        return StageResult(outputs={role: out} if role else {}, data=data, seconds=1.0, max_rss_bytes=1 << 30)


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """Make a farm whose model is a file of the project."""
    farm = started(Farm(root=tmp_path), monkeypatch)
    farm.put()
    return farm


@pytest.fixture
def exporting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """Make a farm whose engine an image built, of a Python model that the store no longer has."""
    farm = started(Farm(root=tmp_path, recipe="resnet18"), monkeypatch)
    part = farm.described().stack
    farm.put(farm.described(stack=part.model_copy(update={"image": "sha256:" + "5" * 64})))
    return farm


def started(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> Farm:
    monkeypatch.setattr(built, "EXECUTORS", {name: farm.open(name) for name in ("local", "docker")})
    monkeypatch.setattr(module, "visible_gpus", lambda environ: farm.gpus)
    monkeypatch.setattr(module, "lease", farm.lease)
    return farm


def test_what_passes_is_written_into_the_manifest(farm: Farm) -> None:
    before = farm.described()
    verified = farm.verify()
    (entry,) = farm.store.entries("engine")
    after = read_manifest(farm.store, entry)
    assert (verified.job, verified.gpu, verified.manifest) == (farm.job, A40.label, after)
    assert (after.proof.status, after.proof.engine_verified, after.proof.reason) == ("passed", True, None)
    assert (after.proof.method, after.proof.reference) == (PROVEN["method"], "framework")
    assert (after.proof.cases, after.proof.outside, after.proof.worst) == (PROVEN["cases"], [], PROVEN["worst"])
    assert after.proof.tolerance == {"default": {"max_abs": 2e-3, "cosine": 0.9999}, "outputs": {}}
    # all else stays
    assert after.model_copy(update={"proof": before.proof, "created": before.created}) == before
    assert farm.store.read(entry, ENGINE) == PLAN


def test_a_build_finds_the_proof(farm: Farm) -> None:
    recipe, job = load_recipe(farm.recipe_file), built.job_of(farm.described())
    worker = worker_sha256(PROOF_STAGES, farm.stack.build.family)
    keys = Keys(
        engine=ENGINE_KEY,
        proved=proof_key(job, recipe, ENGINE_KEY, worker, verified=True),
        unproved=proof_key(job, recipe, ENGINE_KEY, worker, verified=False),
    )
    assert find_proved(farm.store, keys, verify=True) is None
    verified, found = farm.verify(), find_proved(farm.store, keys, verify=True)
    assert found is not None
    assert verified.manifest.proof.key == found.annotations[PROOF_ANNOTATION] == keys.proved.sha256
    assert json.loads(farm.store.read(found, PROOF)) == keys.proved.document
    assert json.loads(farm.store.read(found, KEY)) == ENGINE_KEY.document


def test_the_engine_runs_on_a_gpu_that_fits_and_the_graph_is_lowered_without_one(farm: Farm) -> None:
    farm.verify()
    assert farm.prepared == [engines.STACK]
    assert farm.leased == [((A40,), farm.job)]
    lower, verify = farm.requests
    assert (lower.stage, lower.gpu, sorted(lower.inputs)) == ("lower", None, ["model"])
    assert (verify.stage, verify.gpu, sorted(verify.inputs)) == ("verify", A40.uuid, ["engine", "lowered", "model"])
    assert (farm.given[1]["engine"], farm.given[1]["lowered"]) == (PLAN, b"lower")
    assert verify.params["family"] == "rtx"
    assert verify.params["engine_profiles"] == farm.described().engine.profiles
    assert verify.params["tolerance"]["default"] == {"max_abs": 2e-3, "cosine": 0.9999}
    assert verify.params["inputs"]["features"]["kind"] == "normal"
    assert [event.step for event in farm.events if isinstance(event, StepFinished)] == ["lower", "verify"]


def test_an_int8_engine_brings_its_ranges_along(farm: Farm) -> None:
    farm.store.remove(farm.store.entries("engine")[0])
    ranges = farm.root / "ranges"
    ranges.write_bytes(b"ranges")
    farm.put(left={CALIBRATION_CACHE: ranges})
    farm.verify()
    assert farm.given[1]["calibration_cache"] == b"ranges"
    (entry,) = farm.store.entries("engine")
    assert farm.store.read(entry, CALIBRATION_CACHE) == b"ranges"


def test_who_waits_for_a_gpu_is_told(farm: Farm) -> None:
    farm.waits = True
    farm.verify()
    assert [(event.subject, event.text) for event in farm.events if isinstance(event, Note)] == [
        (farm.job, "GPU 1 is busy: waiting")
    ]


@pytest.mark.parametrize(
    ("asked", "image", "executor"),
    [
        ("auto", None, "local"),
        ("auto", "sha256:1", "docker"),
        ("docker", None, "docker"),
        ("local", "sha256:1", "local"),
    ],
)
def test_stages_run_as_when_the_engine_was_built(farm: Farm, asked: str, image: str | None, executor: str) -> None:
    farm.store.remove(farm.store.entries("engine")[0])
    farm.put(farm.described(stack=farm.described().stack.model_copy(update={"image": image})))
    farm.verify(executor=asked)
    assert farm.executor == executor


def test_a_model_that_left_the_store_is_exported_again_by_an_image_that_is_not_here(exporting: Farm) -> None:
    exporting.verify()
    assert exporting.executor == "docker"
    assert exporting.prepared == [engines.STACK, "export"]
    assert [request.stage for request in exporting.requests] == ["export", "lower", "verify"]


def test_a_model_that_is_in_the_store_needs_no_export_stack(exporting: Farm) -> None:
    exporting.verify(executor="local")
    assert exporting.prepared == [engines.STACK, "export"]
    exporting.prepared.clear()
    exporting.requests.clear()
    exporting.verify(executor="local")
    assert exporting.prepared == [engines.STACK]
    assert [request.stage for request in exporting.requests] == ["lower", "verify"]


def untouched(farm: Farm) -> bool:
    """Say whether the engine's proof is still the one that it was built with."""
    (entry,) = farm.store.entries("engine")
    manifest = read_manifest(farm.store, entry)
    return not manifest.proof.engine_verified and manifest.proof == engines.manifest().proof


def test_an_unknown_name(farm: Farm) -> None:
    assert refusal(lambda: farm.verify("tiny-mlp-fp17")).reason is Reason.NAME_UNKNOWN
    assert farm.prepared == []


@pytest.mark.parametrize("title", [ENGINE, MANIFEST])
def test_a_damaged_engine_never_runs(farm: Farm, title: str) -> None:
    (entry,) = farm.store.entries("engine")
    overwrite(blob(farm.store, farm.store.files(entry)[title].digest), b"something else")
    assert refusal(farm.verify).reason is Reason.STORE_CORRUPT
    assert (farm.prepared, farm.leased, farm.requests) == ([], [], [])


@pytest.mark.parametrize(
    ("gpus", "reason", "where"),
    [
        ((), Reason.GPU_NEEDED, "a machine with an NVIDIA GPU, and this one has none"),
        ((H200,), Reason.SM_MISMATCH, "a GPU of SM 8.0, 8.6; here: NVIDIA H200 (SM 9.0)"),
    ],
)
def test_no_gpu_that_fits(farm: Farm, gpus: tuple[Gpu, ...], reason: Reason, where: str) -> None:
    farm.gpus = gpus
    error = refusal(farm.verify)
    assert (error.reason, error.what) == (reason, f"{farm.job} can be verified only on {where}")
    # said before anything is installed
    assert (farm.prepared, farm.requests) == ([], [])


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("[8, 16]", "[9, 16]", "was built for other shape profiles than recipe tiny-mlp now has"),
        ("fp16:", "bf16:", "recipe tiny-mlp no longer has fp16"),
    ],
)
def test_a_recipe_that_changed_since(farm: Farm, old: str, new: str, what: str) -> None:
    text = farm.recipe_file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    farm.recipe_file.write_text(text.replace(old, new), encoding="utf-8")
    error = refusal(farm.verify)
    assert error.reason is Reason.INPUTS_CHANGED
    assert what in error.what
    assert (farm.prepared, untouched(farm)) == ([], True)


@pytest.mark.parametrize("change", [{"lock_sha256": "9" * 64}, {"name": "trt7"}])
def test_a_stack_that_changed_since(farm: Farm, change: dict[str, str]) -> None:
    farm.store.remove(farm.store.entries("engine")[0])
    farm.put(farm.described(stack=farm.described().stack.model_copy(update=change)))
    assert refusal(farm.verify).reason is Reason.INPUTS_CHANGED
    assert farm.prepared == []


@pytest.mark.parametrize("change", [{"sha256": "9" * 64}, {"external_sha256": "9" * 64}])
def test_an_engine_of_another_model(farm: Farm, change: dict[str, str]) -> None:
    farm.store.remove(farm.store.entries("engine")[0])
    farm.put(farm.described(onnx=farm.described().onnx.model_copy(update=change)))
    error = refusal(farm.verify)
    assert error.reason is Reason.INPUTS_CHANGED
    assert error.what == f"{farm.job} was built from another ONNX model than the project now has"
    assert (farm.requests, farm.leased) == ([], [])
    assert untouched(farm)


@pytest.mark.parametrize("stage", ["lower", "verify"])
def test_a_stage_that_fails_leaves_the_manifest_and_its_log(farm: Farm, stage: str) -> None:
    farm.trouble[stage] = EnginefarmError(Reason.NUMERICS_TOLERANCE, "max_abs 1 exceeds 0.002")
    error = refusal(farm.verify)
    assert error.reason is Reason.NUMERICS_TOLERANCE
    assert error.log is not None
    assert error.log.read_text(encoding="utf-8") == f"{stage} says no\n"
    assert untouched(farm)
    # no GPU is held for what needs none
    assert len(farm.leased) == (stage == "verify")


def test_a_run_that_was_stopped_starts_nothing(farm: Farm) -> None:
    cancel = threading.Event()
    cancel.set()
    arguments = (farm.job, farm.project, farm.home, Settings(), farm.events.append, cancel)
    assert refusal(lambda: verify_engine(*arguments)).reason is Reason.INTERRUPTED
    assert farm.requests == []
    assert untouched(farm)


def test_a_manifest_written_meanwhile_is_kept(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(stack: Stack, request: StageRequest) -> StageResult:
        if request.stage == "verify":
            (entry,) = farm.store.entries("engine")
            update_manifest(farm.store, entry, farm_version="9.9")
        return original(stack, request)

    original = farm.run
    monkeypatch.setattr(farm, "run", run)
    farm.verify()
    (entry,) = farm.store.entries("engine")
    after = read_manifest(farm.store, entry)
    assert (after.farm_version, after.proof.engine_verified) == ("9.9", True)
