"""Building where none can be pulled: which job, and when."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import build_here as module
from builder.build_here import BUILT_HERE, Built, Workshop, build_here, choose_job, pull_or_build
from builder.compat import Fit, Wish
from builder.errors import EnginefarmError, Reason
from builder.events import Event, JobOutcome, Status
from builder.jobs import read_manifest
from builder.machine import GpuFacts
from builder.plan import Plan
from builder.project import Project
from builder.pull import Order, Puller
from builder.pull_checks import Machine
from builder.runner import Settings
from tests.artifacts import document, refusal
from tests.published import add_parcel, machine, parcel, publish
from tests.pulling import TRUSTING, Pull

ROOT = Path(__file__).parents[2]
RECIPE = "tiny-mlp"


@pytest.mark.parametrize(
    ("wanted", "stack", "precision"),
    [
        (machine(), "trtrtx1.7-cuda13", "fp16"),
        (replace(machine(), wish=Wish(precision="fp32")), "trtrtx1.7-cuda13", "fp32"),
        # without any TensorRT the default stack, which needs no GPU
        (machine(tensorrt_rtx=None), "trtrtx1.7-cuda13", "fp16"),
        # whose TensorRT the default stack is not: another one
        (machine(tensorrt_rtx=None, tensorrt="10.9.0.34"), "trt10.9-cuda12.8", "fp16"),
        (replace(machine(tensorrt_rtx=None), wish=Wish(stack="trt10.9-cuda12.8")), "trt10.9-cuda12.8", "fp16"),
    ],
)
def test_the_job_that_fits_best(wanted: Machine, stack: str, precision: str) -> None:
    _, job = choose_job(RECIPE, wanted, Project(root=ROOT))
    assert (job.recipe, job.stack, job.precision) == (RECIPE, stack, precision)
    assert "8.6" in job.sms


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (machine(gpus=(GpuFacts(name="Old", sm="5.2", memory_bytes=1),)), "no target has SM 5.2 (Old)"),
        (machine(gpus=()), "it has no NVIDIA GPU"),
        (machine(tensorrt_rtx="1.0.0.1"), "EF-211 was built by TensorRT-RTX"),
    ],
)
def test_a_machine_that_nothing_can_be_built_for(wanted: Machine, why: str) -> None:
    error = refusal(lambda: choose_job(RECIPE, wanted, Project(root=ROOT)))
    assert error.reason is Reason.NO_ENGINE_FITS
    assert why in (error.why or "")


def test_a_recipe_that_is_not_there() -> None:
    assert refusal(lambda: choose_job("absent", machine(), Project(root=ROOT))).reason is Reason.RECIPE_UNKNOWN


class Site:
    """A home, a registry without what fits, and a workshop whose runner makes a parcel."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pull = Pull(folder)
        self.heard: list[Event] = []
        self.built = parcel(RECIPE)
        self.plans: list[Plan] = []
        self.error: EnginefarmError | None = None
        monkeypatch.setattr(module, "run", self.run)

    @property
    def workshop(self) -> Workshop:
        return Workshop(
            project=Project(root=ROOT),
            home=self.pull.home,
            settings=Settings(),
            listen=self.heard.append,
            cancel=threading.Event(),
        )

    def run(self, plan: Plan, *_: object) -> tuple[JobOutcome, ...]:
        self.plans.append(plan)
        (job,) = plan.jobs
        if self.error is not None:
            return (JobOutcome(job=job.id, status=Status.FAILED, seconds=1.0, error=self.error),)
        entry = add_parcel(self.pull.store, self.built)
        manifest = read_manifest(self.pull.store, entry)
        return (JobOutcome(job=job.id, status=Status.BUILT, seconds=1.0, manifest=manifest),)

    def __call__(self, workshop: Workshop | None, **order: Any) -> object:
        wanted: dict[str, Any] = {"machine": machine(), "policy": TRUSTING, "allow_unsigned": True}
        puller = Puller(home=self.pull.home, cancel=threading.Event(), listen=self.heard.append)
        located = replace(self.pull.located(), model=order.pop("model", RECIPE))
        wish = Order(**wanted | order)
        return puller.pull(located, wish) if workshop is None else pull_or_build(puller, located, wish, workshop)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_what_was_built_lies_where_applications_load_it(site: Site, tmp_path: Path) -> None:
    built = build_here(RECIPE, machine(), site.workshop)
    assert (built.model, built.verdict.fit, built.folder) == (RECIPE, Fit.SAME_SM, site.pull.home.engines / RECIPE)
    record = document(built.folder / "trust.json")
    assert (record["reference"], record["signer"]) == (BUILT_HERE, None)
    assert record["engine_sha256"] == site.built.told.engine.sha256
    assert build_here(RECIPE, machine(), site.workshop, tmp_path / "out").folder == tmp_path / "out"


def test_a_build_that_fails_says_why(site: Site) -> None:
    site.error = EnginefarmError(Reason.BUILD_FAILED, "no")
    assert refusal(lambda: build_here(RECIPE, machine(), site.workshop)) is site.error


def test_an_engine_that_does_not_fit_after_all_is_not_placed(site: Site) -> None:
    told = site.built.told
    site.built = parcel(RECIPE, target=told.target.model_copy(update={"sms": ["9.0"]}))
    assert refusal(lambda: build_here(RECIPE, machine(), site.workshop)).reason is Reason.NO_ENGINE_FITS
    assert not site.pull.home.engines.exists()


def test_it_is_built_where_there_is_none(site: Site) -> None:
    assert refusal(lambda: site(None)).reason is Reason.ARTIFACT_MISSING
    assert isinstance(site(site.workshop), Built)
    assert len(site.plans) == 1
    assert any("it is built here" in getattr(event, "text", "") for event in site.heard)


def test_it_is_built_where_none_fits(site: Site) -> None:
    hopper = parcel(RECIPE, target=parcel().told.target.model_copy(update={"sms": ["9.0"]}))
    publish(site.pull.place, [hopper], model=RECIPE)
    assert refusal(lambda: site(None)).reason is Reason.NO_ENGINE_FITS
    assert isinstance(site(site.workshop), Built)


def test_what_is_not_trusted_is_not_built_over(site: Site) -> None:
    publish(site.pull.place, [parcel(RECIPE)], model=RECIPE)
    assert refusal(lambda: site(site.workshop, allow_unsigned=False)).reason is Reason.UNSIGNED
    assert site.plans == []


def test_a_model_that_is_no_recipe_stays_missing(site: Site) -> None:
    error = refusal(lambda: site(site.workshop, model="absent"))
    assert error.reason is Reason.ARTIFACT_MISSING
    assert "absent is no recipe" in (error.why or "")
