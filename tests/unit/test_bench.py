"""`bench` around a farm that only pretends: what it finds, refuses, starts, and writes into the manifest."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import bench as bench_module
from builder.bench import BenchSettings, NvmlGauge, bench
from builder.bench_subject import find_baselines, find_subject
from builder.errors import EnginefarmError, Reason
from builder.events import Event, Note, StepFinished, StepStarted
from builder.executors.context import ExecutorContext
from builder.fetch import Fetcher
from builder.gpu import Gpu, GpuProcess
from builder.jobs import read_manifest, save
from builder.key import make_key
from builder.manifest import Manifest
from builder.models import export_params
from builder.project import Home, Project
from builder.query import find_engine
from builder.recipe_file import load_recipe
from builder.stacks import Stack, load_stacks
from builder.stage import StageRequest, StageResult, lay_out
from builder.store import Store
from builder.titles import ENGINE
from builder.worker.turn_files import Turns
from tests import benches, engines
from tests.artifacts import refusal

ROOT = Path(__file__).parents[2]
PROJECT = Project(root=ROOT)
ADA = replace(benches.GPU, sm="8.6", name="NVIDIA A40")
PYTHON = Path("/usr/bin/python3")


def described(recipe: str = "tiny-mlp", **changes: Any) -> Manifest:
    """Describe an engine of a real recipe and a real stack."""
    stack = load_stacks(PROJECT.images)[engines.STACK]
    real = load_recipe(PROJECT.recipes / recipe / "recipe.yaml")
    profiles = [
        {
            "name": profile.name,
            "inputs": {
                name: {"min": shapes.min, "opt": shapes.opt, "max": shapes.max}
                for name, shapes in profile.inputs.items()
            },
        }
        for profile in real.profiles
    ]
    made = engines.manifest(recipe)
    parts: dict[str, Any] = {
        "stack": made.stack.model_copy(update={"lock_sha256": stack.lock_sha256}),
        "engine": made.engine.model_copy(update={"profiles": profiles}),
        "build": made.build.model_copy(update={"options": real.build.model_dump(mode="json")}),
    }
    return made.model_copy(update={**parts, **changes})


def put(store: Store, manifest: Manifest, tmp_path: Path) -> None:
    """Put an engine into a store, with its model beside it."""
    engine = tmp_path / "engine"
    engine.write_bytes(b"plan")
    save(store, manifest, engine, make_key("engine", {"a": 1}), make_key("proof", {"b": 1}))
    model = (ROOT / "recipes/tiny-mlp/model.onnx").read_bytes()
    store.add(kind="onnx", key="c" * 64, name="tiny-mlp", files={"model.onnx": model})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Make a home whose store has one engine of tiny-mlp and its ONNX model."""
    home = Home(root=tmp_path / "home")
    digest = load_recipe(ROOT / "recipes/tiny-mlp/recipe.yaml").source.model_dump()["sha256"]
    onnx = engines.manifest().onnx.model_copy(update={"sha256": digest})
    put(Store(home.store), described(onnx=onnx), tmp_path)
    return home


class Farm:
    """Stands in for executor, baselines' Python, driver and GPU."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.requests: list[StageRequest] = []
        self.events: list[Event] = []
        self.gpus: tuple[Gpu, ...] = (ADA,)
        self.prepared: list[str] = []
        self.leased: list[str] = []
        self.engine_error: EnginefarmError | None = None
        self.gauge = benches.FakeGauge()
        monkeypatch.setattr(bench_module, "EXECUTORS", {"local": lambda context: Executor(self, context)})
        monkeypatch.setattr(bench_module, "visible_gpus", lambda environ: self.gpus)
        monkeypatch.setattr(bench_module, "lease", self.lease)
        monkeypatch.setattr(bench_module, "NvmlGauge", lambda uuid: self.gauge)
        monkeypatch.setattr(bench_module, "run_baseline", self.baseline)

    @contextmanager
    def lease(
        self, gpus: tuple[Gpu, ...], cancel: threading.Event, say: Any, environ: Mapping[str, str], what: str
    ) -> Iterator[Gpu]:
        self.leased.append(what)
        yield gpus[0]

    def baseline(self, python: Path, request: StageRequest, stop: threading.Event) -> StageResult:
        assert python == PYTHON
        times = [3.0, 3.0]
        return self.stage(request, benches.baseline_facts(request.params["kind"]), {"baseline": {"wall": times}})

    def stage(self, request: StageRequest, facts: Mapping[str, Any], series: Mapping[str, Any]) -> StageResult:
        self.requests.append(request)
        lay_out(request)
        turns = Turns(str(request.folder / "turn"))
        turns.ready(dict(facts))
        for wish in turns.requests():
            turns.answer({} if wish["do"] == "compare" else {"series": dict(series), "warmup_runs": 1})
        return StageResult(outputs={}, data={}, seconds=1.0, max_rss_bytes=1 << 30)

    def listen(self, event: Event) -> None:
        self.events.append(event)


class Executor:
    """Runs the engine's stage in this process."""

    def __init__(self, farm: Farm, context: ExecutorContext) -> None:
        self.farm = farm
        self.context = context

    def prepare(self, stack: Stack, log: Path) -> None:
        self.farm.prepared.append(stack.name)

    def run(self, stack: Stack, request: StageRequest) -> StageResult:
        if self.farm.engine_error is not None:
            request.folder.mkdir(parents=True)
            request.log.write_text("TensorRT says no\n", encoding="utf-8")
            raise self.farm.engine_error
        both = {"wall": [1.0, 1.0], "gpu": [0.9, 0.9]}
        cases = [{"name": "batch/opt", "shapes": {"features": [4, 16]}}]
        facts = {**benches.ENGINE_FACTS, "cases": cases}
        return self.farm.stage(request, facts, {"graph": both, "engine": both, "copies": {"wall": [1.1, 1.1]}})


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Farm:
    """Pretend."""
    return Farm(monkeypatch, tmp_path)


NAME = engines.job_id("tiny-mlp")


def run(farm: Farm, home: Home, **changes: Any) -> bench_module.Benched:
    settings = BenchSettings(**changes)
    return bench(NAME, PROJECT, home, settings, farm.listen, threading.Event())


def test_engine_and_baseline_are_timed_and_written_down(farm: Farm, home: Home) -> None:
    found = run(farm, home, baseline_python=PYTHON)
    assert [timing.name for timing in found.result.cases[0].timings][3:] == ["onnxruntime-cuda"]
    assert farm.prepared == [engines.STACK]
    assert farm.leased == [f"bench of {NAME}"]
    store = Store(home.store)
    entry = find_engine(store, NAME)
    stored = read_manifest(store, entry)
    assert stored.bench == found.result
    assert stored.proof == found.manifest.proof
    assert store.files(entry)[ENGINE].path.read_bytes() == b"plan"
    assert len(store.entries("engine")) == 1


def test_second_bench_takes_the_place_of_the_first(farm: Farm, home: Home) -> None:
    run(farm, home)
    second = run(farm, home, rounds=2)
    store = Store(home.store)
    stored = read_manifest(store, find_engine(store, NAME)).bench
    assert stored is not None
    assert stored == second.result
    assert stored.rounds == 2


def test_stages_get_what_they_need(farm: Farm, home: Home) -> None:
    run(farm, home, baseline_python=PYTHON, all_shapes=True, timeout_s=77.0)
    engine, baseline = farm.requests
    assert (engine.stage, baseline.stage) == ("bench", "baseline")
    assert sorted(engine.inputs) == ["engine"]
    assert sorted(baseline.inputs) == ["model"]
    assert engine.folder != baseline.folder
    assert {engine.gpu, baseline.gpu} == {ADA.uuid}
    assert engine.timeout_s == 77.0
    assert engine.params["points"] == ["min", "opt", "max"]
    assert engine.params["family"] == "rtx"
    assert engine.params["options"]["hardware_compatibility"] == "none"
    assert baseline.params["kind"] == "onnxruntime"
    assert baseline.params["precision"] == "fp16"
    assert baseline.params["inputs"]["features"]["dtype"] == "float32"


def test_engine_alone_without_a_python(farm: Farm, home: Home) -> None:
    found = run(farm, home)
    assert found.result.baselines == []
    assert [request.stage for request in farm.requests] == ["bench"]
    assert farm.requests[0].params["points"] == ["opt"]


def test_people_are_told_how_it_goes(farm: Farm, home: Home) -> None:
    run(farm, home)
    kinds = [type(event) for event in farm.events]
    assert kinds == [StepStarted, StepFinished]
    assert not any(isinstance(event, Note) for event in farm.events)


def test_model_that_left_the_store_is_told(farm: Farm, home: Home, tmp_path: Path) -> None:
    store = Store(home.store)
    store.remove(store.entries("onnx")[0])
    found = run(farm, home, baseline_python=PYTHON)
    assert found.result.baselines == []
    told = [event.text for event in farm.events if isinstance(event, Note)]
    assert told == [f"the ONNX model of {NAME} is no longer in the store: no onnxruntime"]


def test_failing_engine_keeps_its_log_and_the_manifest(farm: Farm, home: Home) -> None:
    farm.engine_error = EnginefarmError(Reason.ENGINE_INVALID, "TensorRT cannot load the engine")
    error = refusal(lambda: run(farm, home))
    assert error.reason is Reason.ENGINE_INVALID
    assert error.log is not None
    assert error.log.read_text(encoding="utf-8") == "TensorRT says no\n"
    store = Store(home.store)
    assert read_manifest(store, find_engine(store, NAME)).bench is None
    finished = farm.events[-1]
    assert isinstance(finished, StepFinished)
    assert not finished.ok


def test_no_gpu_is_said_before_anything_is_installed(farm: Farm, home: Home) -> None:
    farm.gpus = ()
    error = refusal(lambda: run(farm, home))
    assert error.reason is Reason.GPU_NEEDED
    assert error.what == f"{NAME} can be timed only on a machine with an NVIDIA GPU, and this one has none"
    assert farm.prepared == []


def test_gpu_of_another_sm(farm: Farm, home: Home) -> None:
    farm.gpus = (benches.GPU,)
    error = refusal(lambda: run(farm, home))
    assert error.reason is Reason.SM_MISMATCH
    assert error.what == f"{NAME} can be timed only on a GPU of SM 8.0, 8.6; here: NVIDIA H200 (SM 9.0)"


@pytest.mark.parametrize("change", ["profiles", "lock", "stack"])
def test_what_is_no_longer_the_engine_s_is_refused(home: Home, tmp_path: Path, change: str) -> None:
    manifest = described()
    parts: dict[str, dict[str, Any]] = {
        "profiles": {"engine": manifest.engine.model_copy(update={"profiles": []})},
        "lock": {"stack": manifest.stack.model_copy(update={"lock_sha256": "9" * 64})},
        "stack": {"stack": manifest.stack.model_copy(update={"name": "trt7"})},
    }
    store = Store(home.store)
    entry = find_engine(store, NAME)
    error = refusal(lambda: find_subject(store, entry, described(**parts[change]), PROJECT))
    assert error.reason is Reason.INPUTS_CHANGED


def test_other_lock_of_a_stack_is_found(home: Home) -> None:
    plain = load_stacks(PROJECT.images)["trt8.6-cuda12.0"]
    other = plain.with_lock("8.6.0")
    part = described().stack.model_copy(update={"name": plain.name, "lock_sha256": other.lock_sha256})
    store = Store(home.store)
    subject = find_subject(store, find_engine(store, NAME), described(stack=part), PROJECT)
    assert subject.stack.build.import_name == other.build.import_name


def test_baselines_of_a_python_source(home: Home) -> None:
    store = Store(home.store)
    subject = find_subject(store, find_engine(store, NAME), described("vocos-decoder"), PROJECT)
    found = find_baselines(subject, PROJECT, Fetcher(home, threading.Event()))
    # its ONNX model is not in this store
    assert found == {kind: {"recipe_dir": ROOT / "recipes/vocos-decoder"} for kind in ("eager", "compile")}
    assert list(find_baselines(subject, PROJECT, Fetcher(home, threading.Event()), ("compile", "onnxruntime"))) == [
        "compile"
    ]
    params = subject.baseline_params("eager", ("opt",))
    assert params["entry"] == "model.py:build"
    assert params["export"]["input_names"] == ["mel"]
    assert params["weights"] == export_params(subject.recipe)["weights"]


def test_gauge_asks_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    stranger = GpuProcess(pid=77, used_bytes=None, name="python")

    def sample(uuid: str) -> Any:
        asked.append(uuid)
        return benches.look()

    monkeypatch.setattr(bench_module, "sample", sample)
    monkeypatch.setattr("builder.gpu_watch.sample", sample)
    monkeypatch.setattr("builder.gpu_watch.processes", lambda uuid: (stranger,))
    monkeypatch.setattr("builder.gpu_watch._foreign", lambda pid: pid == 77)
    gauge = NvmlGauge("GPU-1")
    assert gauge.sample() == benches.look()
    assert list(gauge.strangers()) == [stranger]
    assert set(asked) == {"GPU-1"}


def test_an_engine_without_weights_brings_them(farm: Farm, home: Home) -> None:
    store = Store(home.store)
    older = find_engine(store, NAME)
    files: dict[str, Path | bytes] = {title: blob.path for title, blob in store.files(older).items()}
    files["weights.onnx"] = b"weights"
    store.add(kind="engine", key=older.key, name=older.name, files=files)
    store.remove(older)
    run(farm, home)
    engine = farm.requests[0]
    assert sorted(engine.inputs) == ["engine", "lowered"]
    assert engine.inputs["lowered"].read_bytes() == b"weights"
