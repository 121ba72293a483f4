"""The stages of an int8 job: what the build is fed with, and what stays of its calibration."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from builder import job_stages
from builder.errors import EnginefarmError, Reason
from builder.gpu_watch import Watched
from builder.job_stages import JobStages, Tuned, Work
from builder.jobs import LEFT, JobRunner, read_manifest, save
from builder.key import Runtime, make_key
from builder.manifest import WeightsFile
from builder.plan import Job
from builder.project import Home
from builder.recipe import Recipe
from builder.stage import StageResult
from builder.store import Store
from builder.timing_caches import TIMING_CACHE
from builder.titles import CALIBRATION_CACHE, ENGINE
from tests.engines import manifest
from tests.rebuilds import H200
from tests.unit.test_key import SHA, stack
from tests.unit.test_plan import recipe
from tests.unit.test_record import BUILT, EXAMINED, VERIFIED

SAMPLE = {"x": {"dtype": "float32", "values": {"kind": "file", "path": "x.npy", "sha256": SHA}}}
SETTINGS = {"tolerance": {"default": {"cosine": 0.9}}}

UNSEEN = Watched(
    looks=0,
    first_memory_bytes=0,
    peak_memory_bytes=0,
    max_temperature_c=0,
    min_sm_clock_mhz=0,
    max_sm_clock_mhz=0,
    throttle=(),
    neighbours=(),
    problem=None,
)


@dataclass
class Stages:
    """Stands for the runner of stages; `runs` holds the inputs and parameters of each."""

    folder: Path
    runs: dict[str, tuple[Mapping[str, Path], Mapping[str, Any]]] = field(default_factory=dict)
    said: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    threads: int = 1
    cancel: threading.Event = field(default_factory=threading.Event)

    def run(self, _subject: Any, stage: str, inputs: Mapping[str, Path], params: Any, *_: Any) -> StageResult:
        self.runs[stage] = (inputs, params)
        made = {"lower": ["lowered"], "build": ["engine", "timing_cache", "calibration_cache"]}.get(stage, [])
        outputs = {name: self.folder / name for name in made}
        for path in outputs.values():
            path.write_text(path.name)
        data: dict[str, Any] = {"kept_fp32": [], "kept_reasons": {}, "profiles": []} | dict(self.said.get(stage, {}))
        return StageResult(outputs=outputs, data=data, seconds=1.0, max_rss_bytes=1)


@pytest.fixture(autouse=True)
def _gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def lease(*_: Any) -> Iterator[Any]:
        yield H200

    @contextmanager
    def watch(_: str) -> Iterator[Any]:
        yield SimpleNamespace(seen=UNSEEN)

    monkeypatch.setattr(job_stages, "lease", lease)
    monkeypatch.setattr(job_stages, "Watch", watch)
    monkeypatch.setattr(job_stages, "require_memory", lambda *_: None)


def run(tmp_path: Path, precision: str, made: Recipe, tuned: Tuned, **known: Any) -> Stages:
    on = stack(family="trt8", tensorrt="8.6.1", needs_gpu=True, sms=["9.0"], precisions=["fp16", "int8"])
    model: Any = SimpleNamespace(inputs=lambda *_: {"model": tmp_path / "model.onnx"}, size=1)
    work = Work(
        job=Job(recipe="model", precision=precision, stack="s", target="hopper", sms=("9.0",)),
        recipe=made,
        runtime=Runtime(stack=on, python="3.11"),
        model=model,
        samples={"sample.x": tmp_path / "x.npy"},
        tuned=tuned,
    )
    stages: Any = Stages(tmp_path)
    JobStages(stages=stages, work=work, store=Store(tmp_path / "store"), verify=True, **known).run()
    return stages  # type: ignore[no-any-return]


def sampled(**calibration: Any) -> Recipe:
    settings = {**SETTINGS, **({"calibration": calibration} if calibration else {})}
    return recipe(precisions={"fp16": SETTINGS, "int8": settings}, inputs=SAMPLE)


def test_an_int8_build_is_given_samples_and_what_to_do_with_them(tmp_path: Path) -> None:
    stages = run(tmp_path, "int8", sampled(batches=3, method="minmax"), Tuned(gpus=(H200,)))
    inputs, params = stages.runs["build"]
    assert set(inputs) == {"lowered", "sample.x"}
    fed = {"x": {"dtype": "float32", "kind": "file", "path": "in/sample.x.npy"}}
    assert params["calibration"] == {"batches": 3, "method": "minmax", "inputs": fed}
    # an engine built to look into has the ranges of the engine that is looked into
    verified, _ = stages.runs["verify"]
    assert verified["calibration_cache"] == tmp_path / "calibration_cache"
    assert "calibration_cache" not in stages.runs["examine"][0]


def test_int8_without_settings_calibrates_all_the_same(tmp_path: Path) -> None:
    params = run(tmp_path, "int8", sampled(), Tuned(gpus=(H200,))).runs["build"][1]
    assert (params["calibration"]["batches"], params["calibration"]["method"]) == (16, "entropy")


def test_a_known_calibration_is_handed_over(tmp_path: Path) -> None:
    cache = tmp_path / "known"
    sealed = tmp_path / "timing"
    sealed.write_bytes(b"timings")
    inputs, _ = run(tmp_path, "int8", sampled(), Tuned(gpus=(H200,), sealed=sealed, calibration=cache)).runs["build"]
    assert set(inputs) == {"lowered", "sample.x", "timing_cache_0000", "calibration_cache"}
    assert inputs["calibration_cache"] == cache


def test_other_precisions_are_built_as_ever(tmp_path: Path) -> None:
    inputs, params = run(tmp_path, "fp16", sampled(), Tuned(gpus=(H200,), calibration=tmp_path / "c")).runs["build"]
    assert set(inputs) == {"lowered"}
    assert params["calibration"] is None


def test_an_engine_that_need_not_be_built_brings_its_calibration(tmp_path: Path) -> None:
    known: Any = SimpleNamespace(engine=SimpleNamespace(profiles=[], weights=()))
    ranges = tmp_path / "ranges"
    stages = run(
        tmp_path,
        "int8",
        sampled(),
        Tuned(gpus=(H200,)),
        known=known,
        engine=tmp_path / "engine",
        calibration=ranges,
    )
    assert "build" not in stages.runs
    assert stages.runs["verify"][0]["calibration_cache"] == ranges


def test_an_engine_that_need_not_be_built_keeps_to_its_weights(tmp_path: Path) -> None:
    told = manifest("model")
    for content, fits in ((b"lowered", True), (b"another", False)):
        weights = WeightsFile(file="weights.onnx", sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        known = told.model_copy(update={"engine": told.engine.model_copy(update={"weights": (weights,)})})
        arguments: dict[str, Any] = {"known": known, "engine": tmp_path / "engine"}
        if fits:
            stages = run(tmp_path, "int8", sampled(), Tuned(gpus=(H200,)), **arguments)
            # what TensorRT parsed is what the engine is refitted from
            assert all("lowered" in stages.runs[stage][0] for stage in ("examine", "verify"))
            continue
        with pytest.raises(EnginefarmError) as caught:
            run(tmp_path, "int8", sampled(), Tuned(gpus=(H200,)), **arguments)
        assert caught.value.reason is Reason.INPUTS_CHANGED


@pytest.mark.parametrize("strip", [False, True])
def test_a_job_keeps_the_weights_that_its_engine_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, strip: bool
) -> None:
    monkeypatch.setattr("builder.jobs.head_commit", lambda _: None)
    settings = {"int8": {**SETTINGS, "calibration": {"batches": 3}}}
    made = recipe(precisions=settings, inputs=SAMPLE, build={"strip_weights": strip})
    on = stack(family="trt10", tensorrt="10.9.0", needs_gpu=True, sms=["9.0"], precisions=["int8"])
    model = SimpleNamespace(identity={"model.onnx": SHA}, size=1, export=None, inputs=lambda *_: {})
    models: Any = SimpleNamespace(
        obtain=lambda *_: model,
        sample_files=lambda _: {},
        home=Home(root=tmp_path),
        project=SimpleNamespace(root=tmp_path),
    )
    said = {"build": BUILT, "examine": EXAMINED, "verify": VERIFIED}
    stages: Any = Stages(tmp_path, said=said)
    stages.workspace = SimpleNamespace(done_with=lambda _: None)
    store = Store(tmp_path / "store")
    runner = JobRunner(store=store, models=models, fetcher=models, stages=stages, verify=True)
    job = Job(recipe="model", precision="int8", stack="s", target="hopper", sms=("9.0",))
    outcome = runner.run(job, made, Runtime(stack=on, python="3.11"), Tuned(gpus=(H200,)))
    assert outcome.error is None
    (entry,) = store.entries("engine")
    files = store.files(entry)
    assert ("weights.onnx" in files) is strip
    told = read_manifest(store, entry)
    assert [f"sha256:{one.sha256}" for one in told.engine.weights] == ([files["weights.onnx"].digest] if strip else [])
    assert all(one.sha256 == told.lowered.sha256 for one in told.engine.weights)


def test_the_caches_stay_beside_an_engine_that_gets_another_manifest(tmp_path: Path) -> None:
    assert LEFT == {TIMING_CACHE: "timing_cache", CALIBRATION_CACHE: "calibration_cache"}
    store, made = Store(tmp_path / "store"), manifest("model")
    files = {title: tmp_path / title for title in (ENGINE, TIMING_CACHE, CALIBRATION_CACHE)}
    for path in files.values():
        path.write_text(path.name)
    engine, left = files[ENGINE], {title: files[title] for title in LEFT}
    key, proof = make_key("engine", {"a": 1}), make_key("proof", {"a": 1})
    save(store, made, engine, key, proof, left)
    later = made.model_copy(update={"farm_version": "9"})
    entry = save(store, later, engine, key, proof)
    assert store.entries("engine") == (entry,)
    assert {title: store.read(entry, title).decode() for title in LEFT} == {title: title for title in LEFT}
    # another build that left none has none
    assert CALIBRATION_CACHE not in store.files(save(store, made, engine, key, proof, {}))
