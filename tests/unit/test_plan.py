"""Planning: what a selection means, and what it cannot mean, with the reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

import pytest

from builder.errors import EnginefarmError, Reason
from builder.plan import Catalogue, Plan, make_plan, require_jobs, select_jobs, select_recipes
from builder.recipe import Recipe
from builder.stacks import Stack
from builder.targets import choose_targets, load_precision_floors, load_targets, sm_number
from tests.unit.test_key import RECIPE, stack

RTX: dict[str, Any] = {
    "name": "rtx",
    "sms": ["7.5", "8.0", "8.6", "8.9", "12.0"],
    "alone": ["7.5"],
    "precisions": ["fp32", "tf32", "fp16", "bf16"],
}


def recipe(**changes: Any) -> Recipe:
    plain = {name: value for name, value in RECIPE.items() if name not in {"stacks", "targets", "build"}}
    settings = {"tolerance": {"default": {"max_abs": 1.0}}}
    return Recipe.model_validate(copy.deepcopy(plain | {"precisions": {"fp16": settings}} | changes))


def plan(*targets: str, recipes: Mapping[str, Recipe] | None = None, stacks: tuple[Stack, ...] = ()) -> Plan:
    chosen = stacks or (stack(**RTX),)
    return make_plan(
        Catalogue(
            recipes=recipes or {"model": recipe()},
            stacks=chosen,
            targets=choose_targets(load_targets(), targets),
            all_stacks=(*chosen, stack(name="classic", sms=["9.0", "10.0"], options=["version_compatible"])),
            precision_floors=load_precision_floors(),
        )
    )


def precisions(*names: str, targets: list[str] | None = None) -> dict[str, Any]:
    settings: dict[str, Any] = {"tolerance": {"default": {"max_abs": 1.0}}, "targets": targets}
    return dict.fromkeys(names, settings)


def test_sms_of_a_family_share_an_engine() -> None:
    made = plan("ampere")
    assert [job.id for job in made.jobs] == ["model-fp16-rtx-sm80-sm86"]
    assert made.jobs[0].sms == ("8.0", "8.6")
    assert made.refusals == ()


def test_turing_is_built_alone() -> None:
    family = load_targets()["ampere"]
    both = Catalogue(
        recipes={"model": recipe()},
        stacks=(stack(**RTX),),
        targets=(type(family)(name="both", title="", sms=("7.5", "8.0", "8.6"), platform="linux/amd64"),),
        all_stacks=(stack(**RTX),),
        precision_floors=load_precision_floors(),
    )
    assert [job.sms for job in make_plan(both).jobs] == [("7.5",), ("8.0", "8.6")]


def test_a_classic_stack_builds_one_engine_per_sm() -> None:
    made = plan("ampere", stacks=(stack(grouping="each", sms=["8.0", "8.6"], precisions=["fp16"]),))
    assert [job.id for job in made.jobs] == ["model-fp16-s-sm80", "model-fp16-s-sm86"]


def test_an_sm_that_the_stack_lacks_is_refused_and_the_rest_built() -> None:
    made = plan("blackwell")
    assert [job.sms for job in made.jobs] == [("12.0",)]
    assert [(refusal.reason, refusal.what) for refusal in made.refusals] == [
        (Reason.SM_MISMATCH, "stack rtx cannot build for SM 10.0 (blackwell)")
    ]
    assert "classic" in made.refusals[0].fix


def test_a_target_without_any_job_is_an_error_with_the_reason() -> None:
    with pytest.raises(EnginefarmError) as caught:
        require_jobs(plan("hopper"))
    assert caught.value.reason is Reason.SM_MISMATCH
    assert "stacks for SM 9.0: classic" in (caught.value.fix or "")


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_precisions_that_the_hardware_lacks_are_refused(precision: str) -> None:
    made = plan("turing", recipes={"model": recipe(precisions=precisions(precision))})
    assert not made.jobs
    assert [refusal.reason for refusal in made.refusals] == [Reason.PRECISION_UNSUPPORTED]
    assert "SM 8.0" in made.refusals[0].fix


def test_a_precision_may_be_limited_to_targets() -> None:
    made = plan("turing", "ampere", recipes={"model": recipe(precisions=precisions("fp32", targets=["ampere"]))})
    assert [job.target for job in made.jobs] == ["ampere"]
    assert [refusal.reason for refusal in made.refusals] == [Reason.NOT_ALLOWED_BY_RECIPE]


@pytest.mark.parametrize(("changes", "named"), [({"stacks": ["other"]}, "stack rtx"), ({"targets": ["ada"]}, "ampere")])
def test_a_recipe_may_be_limited(changes: dict[str, Any], named: str) -> None:
    made = plan("ampere", recipes={"model": recipe(**changes)})
    assert not made.jobs
    assert made.refusals[0].reason is Reason.NOT_ALLOWED_BY_RECIPE
    assert named in made.refusals[0].what


def test_a_build_option_that_the_stack_lacks_names_the_stacks_that_have_it() -> None:
    made = plan("ampere", recipes={"model": recipe(build={"version_compatible": True})})
    assert made.refusals[0].reason is Reason.OPTION_UNSUPPORTED
    assert "classic" in made.refusals[0].fix


def test_a_precision_that_the_stack_lacks() -> None:
    made = plan("ampere", stacks=(stack(sms=["8.0"], precisions=["fp32"]),))
    assert made.refusals[0].reason is Reason.PRECISION_UNSUPPORTED


def test_equal_input_gives_equal_bytes_whatever_the_order() -> None:
    models = {name: recipe(name=name) for name in ("a", "b", "c")}
    forth = plan("ampere", "ada", recipes=models)
    back = plan("ampere", "ada", recipes={name: models[name] for name in reversed(models)})
    assert forth.to_json() == back.to_json()
    document = json.loads(forth.to_json())
    assert document["plan_version"] == 1
    assert len({job["id"] for job in document["jobs"]}) == len(document["jobs"]) == 6


def test_work_grows_with_the_number_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(text: str) -> tuple[int, int]:
        calls.append(text)
        return sm_number(text)

    monkeypatch.setattr("builder.plan.sm_number", counted)
    counts = []
    for size in (10, 20, 40):
        calls.clear()
        plan("ampere", recipes={f"m{number}": recipe(name=f"m{number}") for number in range(size)})
        counts.append(len(calls))
    assert counts[1] == 2 * counts[0]
    assert counts[2] == 4 * counts[0]


def test_globs_select_recipes_and_an_empty_match_is_an_error() -> None:
    models = {name: recipe(name=name) for name in ("ocr-det", "ocr-rec", "vocos")}
    assert list(select_recipes(models, ("ocr-*",))) == ["ocr-det", "ocr-rec"]
    assert list(select_recipes(models, ())) == list(models)
    with pytest.raises(EnginefarmError) as caught:
        select_recipes(models, ("voco",))
    assert caught.value.reason is Reason.RECIPE_UNKNOWN
    assert "did you mean 'vocos'?" in (caught.value.fix or "")


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(EnginefarmError) as caught:
        choose_targets(load_targets(), ["amper"])
    assert caught.value.reason is Reason.TARGET_UNKNOWN
    assert "did you mean 'ampere'?" in (caught.value.fix or "")


def test_nothing_planned_and_nothing_refused_is_an_error() -> None:
    catalogue = Catalogue(recipes={}, stacks=(), targets=(), all_stacks=(), precision_floors={})
    with pytest.raises(EnginefarmError) as caught:
        require_jobs(make_plan(catalogue))
    assert caught.value.reason is Reason.NOTHING_TO_DO


def several() -> Plan:
    """Plan two recipes for targets of which one is refused."""
    return plan("ampere", "ada", "hopper", recipes={name: recipe(name=name) for name in ("ocr-det", "vocos")})


def test_no_glob_means_the_whole_plan() -> None:
    made = several()
    assert made.refusals
    assert select_jobs(made, ()) is made


@pytest.mark.parametrize(
    ("patterns", "kept"),
    [
        (("ocr-det-fp16-rtx-sm89",), ["ocr-det-fp16-rtx-sm89"]),
        (("vocos-*",), ["vocos-fp16-rtx-sm80-sm86", "vocos-fp16-rtx-sm89"]),
        # in the order of the plan, each once
        (("vocos-*sm89", "*-sm89"), ["ocr-det-fp16-rtx-sm89", "vocos-fp16-rtx-sm89"]),
        (("*-sm8[06]-*",), ["ocr-det-fp16-rtx-sm80-sm86", "vocos-fp16-rtx-sm80-sm86"]),
    ],
)
def test_globs_select_jobs_and_leave_out_what_was_refused(patterns: tuple[str, ...], kept: list[str]) -> None:
    chosen = select_jobs(several(), patterns)
    assert [job.id for job in chosen.jobs] == kept
    assert chosen.refusals == ()


@pytest.mark.parametrize("pattern", ["vocos-fp16-rtx-sm8", "VOCOS-*", "vocos-fp32-*"])
def test_a_glob_without_a_job_is_an_error_even_beside_others(pattern: str) -> None:
    with pytest.raises(EnginefarmError) as caught:
        select_jobs(several(), ("ocr-*", pattern))
    assert caught.value.reason is Reason.NOTHING_TO_DO
    assert repr(pattern) in caught.value.what
    assert "ocr-det-fp16-rtx-sm89" in (caught.value.fix or "")


def test_a_job_misspelt_names_the_nearest() -> None:
    with pytest.raises(EnginefarmError) as caught:
        select_jobs(several(), ("vocos-fp16-rtx-sm98",))
    assert "did you mean 'vocos-fp16-rtx-sm89'?" in (caught.value.fix or "")
