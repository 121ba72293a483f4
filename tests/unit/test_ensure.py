"""`builder.ensure` around ways that only pretend: a T4's engine is opened on an A100, and what follows."""

from __future__ import annotations

import io
import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.check import ENGINE, Checked
from builder.compat import Fit, Wish
from builder.ensure import Action, Ensured, Means, Way, ensure_models, find_asker
from builder.errors import EnginefarmError, ErrorGroup, ExitCode, Reason
from builder.machine import Facts
from builder.project import Home
from builder.report.ensured import ensured_json
from builder.sessions import changes, load_session, machine_of, save_session
from builder.store import Store
from tests.artifacts import blob, overwrite, refusal
from tests.headed import A100, T4, Built, machine

ON_T4 = Built()
ON_A100 = Built(sm="8.0", device=A100.name, driver="550.54.15", cuda="12.4", stack="trt10.9-cuda12.4")
AN_A100 = machine(gpu=A100, driver="550.54.15", driver_cuda="12.4", cuda="12.4")


class Farm:
    """A home, and ways that put made engines into its store. `told`: all that was said; `asked`: all questions."""

    def __init__(self, root: Path) -> None:
        self.home = Home(root=root / "home")
        self.store = Store(self.home.store)
        self.facts: Facts = machine()
        self.auto = False
        self.answers: list[bool] | None = None
        self.published: Built | EnginefarmError | None = None
        self.buildable: Built | EnginefarmError = ON_A100
        self.told: list[str] = []
        self.asked: list[str] = []
        self.placed: list[str] = []
        self.wishes: list[Wish] = []

    def ensure(self, *models: str, **wish: Any) -> tuple[Ensured, ...]:
        means = Means(
            facts=self.facts,
            home=self.home,
            auto=self.auto,
            ask=None if self.answers is None else self._answer,
            say=self.told.append,
            pull=None if self.published is None else self._pull,
            build=self._build,
            place=lambda _, found: self.placed.append(found.subject.name),
        )
        return ensure_models(models or ("yolo",), Wish(**wish), means)

    def one(self, **wish: Any) -> Ensured:
        (only,) = self.ensure(**wish)
        return only

    def _answer(self, question: str) -> bool:
        self.asked.append(question)
        assert self.answers
        return self.answers.pop(0)

    def _pull(self, model: str, wish: Wish) -> Way:
        return Way(action=Action.PULLED, text=f"pull {model}", go=self._putting(self.published))

    def _build(self, model: str, wish: Wish) -> Way:
        self.wishes.append(wish)
        if isinstance(self.buildable, EnginefarmError):
            raise self.buildable
        return Way(action=Action.BUILT, text=f"build {self.buildable.job}", go=self._putting(self.buildable))

    def _putting(self, what: Built | EnginefarmError | None) -> Callable[[], None]:
        def go() -> None:
            if isinstance(what, EnginefarmError):
                raise what
            assert what is not None
            what.add(self.store)

        return go


@pytest.fixture
def farm(tmp_path: Path) -> Farm:
    """A home whose store has the engine that was built on a T4."""
    made = Farm(tmp_path)
    ON_T4.add(made.store)
    return made


def test_an_engine_that_fits_is_used_again(farm: Farm) -> None:
    done = farm.one()
    assert (done.action, done.job, done.changes, done.since) == (Action.REUSED, ON_T4.job, (), "the engine was built")
    assert done.path.read_bytes() == ON_T4.content
    assert farm.placed == [ON_T4.job]
    assert farm.told == [
        "yolo: the machine is as it was when the engine was built",
        f"yolo: reused {ON_T4.job}, exact-device on Tesla T4",
    ]


def test_a_home_that_may_only_be_read_has_engines_all_the_same(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EnginefarmError(Reason.STORE_READ_ONLY, "sessions/yolo.json cannot be written")

    monkeypatch.setattr("builder.ensure.save_session", refuse)
    assert farm.one().action is Action.REUSED
    assert farm.told[-1].startswith("yolo: note: EF-306 sessions/yolo.json cannot be written")


def test_a_t4_becomes_an_a100(farm: Farm) -> None:
    farm.one()
    farm.facts, farm.auto = AN_A100, True
    farm.told.clear()
    done = farm.one()
    assert (done.action, done.job, done.since) == (Action.BUILT, ON_A100.job, "the last session")
    assert [change.text for change in done.changes] == [
        "GPU Tesla T4 -> NVIDIA A100-SXM4-40GB",
        "driver 560.35.05 -> 550.54.15",
        "CUDA 12.6 -> 12.4",
    ]
    assert farm.told == [
        f"yolo: since the last session: {', '.join(change.text for change in done.changes)}",
        f"yolo: {ON_T4.job} does not fit: EF-201 is for SM 7.5; here: NVIDIA A100-SXM4-40GB (SM 8.0)",
        f"yolo: will build {ON_A100.job}",
        f"yolo: built {ON_A100.job}, exact-device on NVIDIA A100-SXM4-40GB",
    ]
    assert farm.one().action is Action.REUSED


def test_a_store_that_came_from_another_machine(farm: Farm) -> None:
    farm.facts, farm.auto = replace(AN_A100, tensorrt="10.16.1.11"), True
    farm.buildable = replace(ON_A100, tensorrt="10.16.1.11")
    done = farm.one()
    assert done.since == "the engine was built"
    assert [change.text for change in done.changes] == [
        "GPU Tesla T4 -> NVIDIA A100-SXM4-40GB",
        "driver 560.35.05 -> 550.54.15",
        "CUDA 12.6 -> 12.4",
        "TensorRT 10.9.0.34 -> 10.16.1.11",
    ]


def test_a_pull_comes_before_a_build(farm: Farm) -> None:
    farm.facts, farm.auto, farm.published = AN_A100, True, ON_A100
    assert farm.one().action is Action.PULLED
    assert farm.wishes == []


@pytest.mark.parametrize(
    "reason", [Reason.NO_ENGINE_FITS, Reason.ARTIFACT_MISSING, Reason.REGISTRY_UNREACHABLE, Reason.REGISTRY_REFUSED]
)
def test_a_registry_without_one_leaves_building(reason: Reason, farm: Farm) -> None:
    farm.facts, farm.auto, farm.published = AN_A100, True, EnginefarmError(reason, "there is none")
    assert farm.one().action is Action.BUILT
    assert f"yolo: {reason.value.code} there is none" in farm.told


@pytest.mark.parametrize("reason", [Reason.SIGNATURE_INVALID, Reason.UNSIGNED, Reason.DOWNLOAD_CORRUPT])
def test_what_is_not_trusted_is_not_built_over(reason: Reason, farm: Farm) -> None:
    farm.facts, farm.auto, farm.published = AN_A100, True, EnginefarmError(reason, "who made this?")
    assert refusal(farm.one).reason is reason
    assert farm.wishes == []


def test_without_a_recipe_the_registry_has_the_last_word(farm: Farm) -> None:
    farm.facts, farm.auto, farm.published = AN_A100, True, EnginefarmError(Reason.NO_ENGINE_FITS, "none fits")
    farm.buildable = EnginefarmError(Reason.PROJECT_MISSING, "no recipes/ here")
    assert refusal(farm.one).reason is Reason.NO_ENGINE_FITS
    farm.buildable = EnginefarmError(Reason.STACK_INVALID, "a stack is broken")
    assert refusal(farm.one).reason is Reason.STACK_INVALID


def test_questions(farm: Farm) -> None:
    farm.facts, farm.published, farm.answers = AN_A100, ON_A100, [False, True]
    assert farm.one().action is Action.BUILT
    assert farm.asked == ["yolo: pull yolo?", f"yolo: build {ON_A100.job}?"]
    farm.answers = [True]
    assert farm.one().action is Action.REUSED
    assert farm.answers == [True]


def test_who_says_no_gets_no_engine(farm: Farm) -> None:
    farm.facts, farm.published, farm.answers = AN_A100, ON_A100, [False, False]
    error = refusal(farm.one)
    assert error.reason is Reason.NO_ENGINE_FITS
    assert error.exit_code is ExitCode.REFUSED
    assert error.fix == f"--auto, or auto=True, would pull yolo, else build {ON_A100.job}"
    assert error.why is not None
    assert "EF-201 is for SM 7.5" in error.why
    assert load_session(farm.home, "yolo") is None


def test_without_anyone_to_ask_it_says_what_it_would_do(farm: Farm) -> None:
    farm.facts, farm.published = AN_A100, ON_A100
    error = refusal(farm.one)
    assert error.reason is Reason.NO_ENGINE_FITS
    assert error.fix == f"--auto, or auto=True, would pull yolo, else build {ON_A100.job}"
    assert len(farm.store.entries("engine")) == 1


def test_a_machine_without_a_gpu(farm: Farm) -> None:
    farm.facts, farm.auto = machine(gpus=()), True
    assert refusal(farm.one).reason is Reason.GPU_NEEDED


def test_no_way_at_all(farm: Farm) -> None:
    farm.facts, farm.buildable = AN_A100, EnginefarmError(Reason.PROJECT_MISSING, "no recipes/ here")
    error = refusal(farm.one)
    assert error.reason is Reason.NO_ENGINE_FITS
    assert error.fix == "run it in a project with the model's recipe, or name a --registry that has it"
    assert "yolo: EF-108 no recipes/ here" in farm.told
    farm.auto = True
    assert refusal(farm.one).reason is Reason.PROJECT_MISSING


def test_a_model_that_nobody_knows_yet(farm: Farm) -> None:
    farm.auto, farm.buildable = True, replace(ON_T4, recipe="new")
    (done,) = farm.ensure("new")
    assert (done.action, done.since, done.changes) == (Action.BUILT, "", ())
    assert farm.told[0] == "new: no engine yet"


def test_a_damaged_engine_is_made_again(farm: Farm) -> None:
    (entry,) = farm.store.entries("engine")
    overwrite(blob(farm.store, farm.store.files(entry)[ENGINE].digest), ON_T4.content[:-1] + b"x")
    farm.auto, farm.buildable = True, ON_T4
    assert farm.one().action is Action.BUILT
    assert list((farm.home.store / "quarantine").iterdir())
    assert f"{ON_T4.recipe}: {ON_T4.job} was damaged and is set aside" in farm.told
    assert not any("does not fit" in line for line in farm.told)


def test_what_was_built_may_not_fit_either(farm: Farm) -> None:
    farm.facts, farm.auto, farm.buildable = AN_A100, True, replace(ON_A100, sm="8.6")
    assert refusal(farm.one).reason is Reason.NO_ENGINE_FITS


def test_the_precision_of_the_last_session_stays(farm: Farm) -> None:
    Built(precision="int8").add(farm.store)
    assert farm.one().job == ON_T4.job
    assert farm.one(precision="int8").job == Built(precision="int8").job
    assert farm.one().job == Built(precision="int8").job
    farm.facts, farm.auto, farm.buildable = AN_A100, True, replace(ON_A100, precision="int8")
    assert farm.one().job == replace(ON_A100, precision="int8").job
    assert [wish.precision for wish in farm.wishes] == ["int8"]


def test_several_models(farm: Farm) -> None:
    Built(recipe="sam").add(farm.store)
    assert [done.model for done in farm.ensure("yolo", "sam", "yolo")] == ["yolo", "sam"]


def test_a_model_that_nobody_knows_does_not_stop_the_others(farm: Farm) -> None:
    Built(recipe="sam").add(farm.store)
    farm.buildable = EnginefarmError(Reason.RECIPE_UNKNOWN, "no recipe matches")
    error = refusal(lambda: farm.ensure("yolo", "yolov99", "sam"))
    assert (error.reason, farm.placed) == (Reason.NO_ENGINE_FITS, [ON_T4.job, Built(recipe="sam").job])
    assert "yolov99" in error.what
    error = refusal(lambda: farm.ensure("a", "yolo", "b"))
    assert isinstance(error, ErrorGroup)
    assert "2 of 3 models" in error.what


def test_a_trust_problem_stops_at_once(farm: Farm) -> None:
    farm.published, farm.auto = EnginefarmError(Reason.UNSIGNED, "nobody signed it"), True
    assert refusal(lambda: farm.ensure("sam", "yolo")).reason is Reason.UNSIGNED
    assert farm.placed == []


def test_who_says_no_to_pulling_and_has_no_recipe_hears_what_would_help(farm: Farm) -> None:
    farm.facts, farm.answers, farm.published = AN_A100, [False], ON_A100
    farm.buildable = EnginefarmError(Reason.PROJECT_MISSING, "no recipes/ here")
    error = refusal(farm.one)
    assert (error.reason, error.fix) == (Reason.NO_ENGINE_FITS, "--auto, or auto=True, would pull yolo")


def test_a_gpu_that_is_gone_is_a_change(farm: Farm) -> None:
    farm.one()
    farm.facts = replace(machine(), gpus=())
    assert refusal(farm.one).reason is Reason.GPU_NEEDED
    assert "yolo: since the last session: GPU Tesla T4 -> none" in farm.told


class NoInputError(NotImplementedError):
    """As `StdinNotImplementedError` of IPython, which nbconvert and papermill let `input` raise."""


@pytest.mark.parametrize(("said", "answer"), [(NoInputError(), False), (EOFError(), False), ("Yes", True), ("", False)])
def test_who_is_asked(said: str | Exception, answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def said_by(_prompt: str) -> str:
        if isinstance(said, str):
            return said
        raise said

    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setattr("builtins.input", said_by)
    ask = find_asker()
    assert ask is not None
    assert ask("pull yolo?") is answer


@pytest.mark.parametrize("closed", [True, False])
def test_services_have_nobody_to_ask(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stdin", stream if closed else None)
    assert find_asker() is None


@pytest.mark.parametrize("name", ["", "../x", "*", "a/b", ".x"])
def test_names_that_are_none(name: str, farm: Farm) -> None:
    assert refusal(lambda: farm.ensure(name)).reason is Reason.NAME_UNKNOWN


def test_a_warning_is_passed_on(farm: Farm) -> None:
    farm.facts = machine(gpu=replace(T4, name="NVIDIA GeForce RTX 2080 Ti"))
    done = farm.one()
    assert done.verdict.fit is Fit.SAME_SM
    assert any(text.startswith("yolo: note: EF-201 was tuned on Tesla T4") for text in farm.told)
    document = ensured_json(done)
    assert document["action"] == "reused"
    assert document["warnings"][0]["code"] == "EF-201"
    assert document["changes"] == [{"name": "GPU", "before": "Tesla T4", "now": "NVIDIA GeForce RTX 2080 Ti"}]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema": 9}', b'{"schema": 1, "machine": {"os": 1}}', b"\xff"]
)
def test_a_damaged_note_counts_as_none(content: bytes, farm: Farm) -> None:
    farm.one()
    (path,) = (farm.home.root / "sessions").iterdir()
    assert json.loads(path.read_text(encoding="utf-8"))["machine"]["gpus"][0]["name"] == "Tesla T4"
    path.write_bytes(content)
    assert load_session(farm.home, "yolo") is None
    assert farm.one().since == "the engine was built"


def test_the_note_is_read_back(farm: Farm) -> None:
    save_session(farm.home, "yolo", AN_A100, farm.one().verdict.candidate)
    last = load_session(farm.home, "yolo")
    assert last is not None
    assert (last.machine, last.job, last.precision) == (AN_A100, ON_T4.job, "fp16")


def test_what_is_not_known_is_no_change() -> None:
    assert changes(machine(), machine(tensorrt=None, driver=None)) == ()
    assert changes(machine(cuda="13"), machine(cuda="13.0")) == ()
    assert changes(machine(gpus=()), machine()) == ()
    assert [one.text for one in changes(machine(), machine(gpus=(T4, T4)))] == ["GPU Tesla T4 -> 2 x Tesla T4"]
    assert [one.text for one in changes(machine(cuda=None), machine(cuda="12.4"))] == ["CUDA 12.6 -> 12.4"]
    assert [one.text for one in changes(machine(cuda="12.1"), machine(cuda="12.12"))] == ["CUDA 12.1 -> 12.12"]


def test_an_ahead_of_time_engine_names_no_gpu(farm: Farm) -> None:
    rtx = Built(stack="trtrtx1.7-cuda13", tensorrt="1.7.1.116", cuda="13", device=None, recipe="rtx")
    rtx.add(farm.store)
    farm.facts = machine(tensorrt=None, tensorrt_rtx="1.7.1.116", cuda="13.0", driver="580.95.05", driver_cuda="13.0")
    (done,) = farm.ensure("rtx")
    assert machine_of(done.verdict.candidate).gpus == ()
    assert done.changes == ()


def test_placing_is_told_of_the_engine(farm: Farm) -> None:
    seen: list[Checked] = []
    means = Means(
        facts=farm.facts,
        home=farm.home,
        auto=False,
        ask=None,
        say=farm.told.append,
        pull=None,
        build=farm._build,
        place=lambda _, found: seen.append(found),
    )
    ensure_models(["yolo"], Wish(), means)
    assert [one.subject.model for one in seen] == ["yolo"]
