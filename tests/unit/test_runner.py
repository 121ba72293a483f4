"""Where a run looks for what is made already, and when it asks for containers."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from builder import runner
from builder.errors import EnginefarmError, Reason
from builder.events import Event, JobOutcome, Note, Status
from builder.executors import AUTO
from builder.plan import Job, Plan
from builder.project import Home, Project
from builder.runner import Execution, Settings
from tests.artifacts import refusal
from tests.engines import STACK, manifest

ROOT = Path(__file__).parents[2]
JOBS = tuple(
    Job(recipe=recipe, precision="fp16", stack=STACK, target="ampere", sms=("8.0", "8.6"))
    for recipe in ("tiny", "vocos")
)


class FakeExecutor:
    """Names itself as the software that keys depend on; images of `docker` have to be prepared."""

    def __init__(self, name: str, farm: Farm) -> None:
        self.name, self.farm = name, farm

    def identified(self, stack: Any) -> bool:
        return self.name == "local" or stack.name in self.farm.images

    def runtime(self, stack: Any) -> str:
        if self.name in self.farm.broken:
            raise EnginefarmError(Reason.PYTHON_MISSING, f"{self.name} has no Python for {stack.name}")
        return self.name

    def prepare(self, stack: Any, log: Path) -> None:
        self.farm.prepared.append(f"{self.name} {stack.name}")
        if self.farm.trouble is not None:
            raise self.farm.trouble
        self.farm.images.add(stack.name)


class FakeModels:
    """Every model is exported and known."""

    def __init__(self, *, stacks: Mapping[str, Any], **_: object) -> None:
        self.stacks = stacks

    def exports(self, recipe: object) -> bool:
        return True

    def identity(self, recipe: object) -> Mapping[str, str]:
        return {"model.onnx": "1" * 64}

    def export_stack(self) -> Any:
        return self.stacks["export"]


class Farm:
    """A farm whose store has what `stored` says: pairs of executor and recipe."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stored: set[tuple[str, str]] = set()
        self.images: set[str] = set()
        self.broken: set[str] = set()
        self.trouble: EnginefarmError | None = None
        self.answers = True
        self.asked = 0
        self.prepared: list[str] = []
        self.looked: list[str] = []
        self.made: list[tuple[str, str]] = []
        self.events: list[Event] = []

    def docker_answers(self) -> bool:
        self.asked += 1
        return self.answers

    def make_keys(self, job: Job, recipe: object, onnx: object, runtime: str, tuned: object) -> tuple[str, str]:
        self.looked.append(runtime)
        return runtime, job.recipe

    def find_proved(self, store: object, keys: tuple[str, str], *, verify: bool) -> tuple[str, str] | None:
        assert verify
        return keys if keys in self.stored else None

    def run(self, executor: str = AUTO, sealed: Path | None = None) -> list[str]:
        """Run both jobs; return how each ended."""
        execution = Execution(
            plan=Plan(jobs=JOBS, refusals=()),
            recipes=dict.fromkeys((job.recipe for job in JOBS), None),  # type: ignore[arg-type]
            project=Project(root=ROOT),
            home=Home(root=self.root / "home"),
            settings=Settings(executor=executor, sealed=sealed),
            listen=self.events.append,
            cancel=threading.Event(),
        )
        return [outcome.status.value for outcome in execution.run()]

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


@pytest.fixture
def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Farm:
    """Make a farm without anything."""
    made = Farm(tmp_path)

    def make(execution: Execution, jobs: list[Job]) -> None:
        executor: Any = execution.executor
        for job in jobs:
            made.made.append((executor.name, job.recipe))
            execution.outcomes[job.id] = JobOutcome(job=job.id, status=Status.BUILT, seconds=1.0)

    names = ("local", "docker")
    executors = {name: (lambda context, name=name: FakeExecutor(name, made)) for name in names}
    monkeypatch.setattr(runner, "EXECUTORS", executors)
    monkeypatch.setattr(runner, "Models", FakeModels)
    monkeypatch.setattr(runner, "docker_answers", made.docker_answers)
    monkeypatch.setattr(runner, "make_keys", made.make_keys)
    monkeypatch.setattr(runner, "find_proved", made.find_proved)
    monkeypatch.setattr(runner, "read_manifest", lambda store, entry: manifest(entry[1]))
    monkeypatch.setattr(Execution, "_make", make)
    return made


def test_a_run_with_nothing_to_make_asks_for_no_docker_and_no_image(farm: Farm) -> None:
    farm.stored = {("local", job.recipe) for job in JOBS}
    assert farm.run() == ["reused", "reused"]
    assert (farm.asked, farm.prepared, farm.notes) == (0, [], [])
    assert farm.looked == ["local", "local"]


def test_one_job_to_make_is_reason_enough_for_images(farm: Farm) -> None:
    farm.stored = {("local", "tiny")}
    assert farm.run() == ["built", "built"]
    assert farm.prepared == ["docker export", f"docker {STACK}"]
    assert farm.made == [("docker", "tiny"), ("docker", "vocos")]


def test_what_containers_made_is_reused(farm: Farm) -> None:
    farm.stored = {("docker", job.recipe) for job in JOBS}
    farm.images = {"export", STACK}
    assert farm.run() == ["reused", "reused"]
    assert (farm.asked, farm.prepared, farm.made) == (1, [], [])


@pytest.mark.parametrize(
    "reason", [Reason.TOOL_MISSING, Reason.BASE_UNAVAILABLE, Reason.IMAGE_BUILD_FAILED, Reason.DOCKER_UNAVAILABLE]
)
def test_without_images_only_what_is_missing_is_made_outside_containers(farm: Farm, reason: Reason) -> None:
    farm.stored, farm.trouble = {("local", "vocos")}, EnginefarmError(reason, "no such thing")
    assert farm.run() == ["built", "reused"]
    assert farm.made == [("local", "tiny")]
    assert farm.notes == ["no such thing; stages run without containers"]


def test_other_trouble_with_images_ends_the_run(farm: Farm) -> None:
    farm.trouble = EnginefarmError(Reason.DISK_FULL, "no room")
    assert refusal(farm.run).reason is Reason.DISK_FULL
    assert farm.made == []


def test_where_no_docker_answers_the_rest_is_made_without(farm: Farm) -> None:
    farm.answers, farm.stored = False, {("local", "tiny")}
    assert farm.run() == ["reused", "built"]
    assert (farm.made, farm.prepared, farm.notes) == ([("local", "vocos")], [], [])
    # each job is looked up once
    assert farm.looked == ["local", "local"]


def test_a_machine_without_a_fitting_python_takes_containers(farm: Farm) -> None:
    farm.broken = {"local"}
    assert farm.run() == ["built", "built"]
    assert farm.made == [("docker", "tiny"), ("docker", "vocos")]


@pytest.mark.parametrize(("executor", "other"), [("docker", "local"), ("local", "docker")])
def test_an_executor_asked_for_is_the_only_one(farm: Farm, executor: str, other: str) -> None:
    farm.stored = {(other, job.recipe) for job in JOBS}
    assert farm.run(executor) == ["built", "built"]
    assert farm.asked == 0
    assert set(farm.looked) == {executor}


def test_docker_asked_for_by_name_has_no_other_to_fall_back_on(farm: Farm) -> None:
    farm.trouble = EnginefarmError(Reason.IMAGE_BUILD_FAILED, "no image")
    assert refusal(lambda: farm.run("docker")).reason is Reason.IMAGE_BUILD_FAILED


def test_a_seal_that_no_job_reads_is_refused(farm: Farm) -> None:
    error = refusal(lambda: farm.run(sealed=farm.root / "timing.cache"))
    assert error.reason is Reason.OPTION_UNSUPPORTED
    assert STACK in error.what
    assert "--sealed" in (error.fix or "")
    assert not farm.made
