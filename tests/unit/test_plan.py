"""Planning: what a selection means, and what it cannot mean, with the reason."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from builder.errors import EnginefarmError, Reason
from builder.plan import Catalogue, Plan, make_plan, require_jobs, select_jobs, select_recipes
from builder.recipe import Recipe
from builder.stacks import Stack, load_stacks
from builder.targets import choose_targets, load_precision_floors, load_targets, sm_number
from tests.unit.test_key import RECIPE, stack

RTX: dict[str, Any] = {
    "name": "rtx",
    "sms": ["7.5", "8.0", "8.6", "8.9", "12.0"],
    "alone": ["7.5"],
    "precisions": ["fp32", "tf32", "fp16", "bf16"],
    "lacks": ["version_compatible", "ampere_plus"],
}
CLASSIC: dict[str, Any] = {"name": "classic", "family": "trt8", "tensorrt": "8.6.1", "grouping": "each"}
IMAGES = Path(__file__).parents[2] / "images"


def recipe(**changes: Any) -> Recipe:
    plain = {name: value for name, value in RECIPE.items() if name not in {"stacks", "targets", "build"}}
    settings = {"tolerance": {"default": {"max_abs": 1.0}}}
    return Recipe.model_validate(copy.deepcopy(plain | {"precisions": {"fp16": settings}} | changes))


def plan(
    *targets: str,
    recipes: Mapping[str, Recipe] | None = None,
    stacks: tuple[Stack, ...] = (),
    compatibility: str | None = None,
    asked: tuple[str, ...] = (),
) -> Plan:
    chosen = stacks or (stack(**RTX),)
    return make_plan(
        Catalogue(
            recipes=recipes or {"model": recipe()},
            stacks=chosen,
            targets=choose_targets(load_targets(), targets),
            all_stacks=(*chosen, stack(**CLASSIC, sms=["9.0", "10.0"])),
            precision_floors=load_precision_floors(),
        ),
        asked,
        compatibility,
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
    limited = {"model": recipe(precisions=precisions("fp16") | precisions("fp32", targets=["ampere"]))}
    made = plan("turing", "ampere", recipes=limited)
    assert [(job.target, job.precision) for job in made.jobs] == [
        ("ampere", "fp32"),
        ("turing", "fp16"),
        ("ampere", "fp16"),
    ]
    # nobody asked for it, so nobody is refused it
    assert made.refusals == ()
    assert [(one.target, one.precision, one.reason) for one in made.left_out] == [
        ("turing", "fp32", Reason.NOT_ALLOWED_BY_RECIPE)
    ]
    document = json.loads(made.to_json())
    assert document["refusals"] == []
    assert [(one["code"], one["target"], one["fix"]) for one in document["left_out"]] == [
        ("EF-205", "turing", "the recipe's targets for fp32: ampere")
    ]


def test_a_precision_asked_for_by_name_is_refused_where_the_recipe_limits_it_to_other_targets() -> None:
    limited = {"model": recipe(precisions=precisions("fp16") | precisions("fp32", targets=["ampere"]))}
    made = plan("turing", "ampere", recipes=limited, asked=("fp32",))
    assert [(job.target, job.precision) for job in made.jobs] == [("ampere", "fp32")]
    assert [(one.target, one.reason, one.what) for one in made.refusals] == [
        ("turing", Reason.NOT_ALLOWED_BY_RECIPE, "recipe model does not list target turing for fp32")
    ]
    assert made.left_out == ()


def test_a_target_for_which_everything_was_left_out_is_an_error_with_the_reason() -> None:
    with pytest.raises(EnginefarmError) as caught:
        require_jobs(plan("turing", recipes={"model": recipe(precisions=precisions("fp32", targets=["ampere"]))}))
    assert caught.value.reason is Reason.NOT_ALLOWED_BY_RECIPE
    assert caught.value.fix == "the recipe's targets for fp32: ampere"


def test_what_is_refused_is_the_error_rather_than_what_was_left_out() -> None:
    limited = precisions("fp16") | precisions("fp32", targets=["ampere"])
    with pytest.raises(EnginefarmError) as caught:
        require_jobs(plan("hopper", recipes={"model": recipe(precisions=limited)}))
    assert (caught.value.reason, caught.value.why) == (Reason.SM_MISMATCH, None)


@pytest.mark.parametrize(("changes", "named"), [({"stacks": ["other"]}, "stack rtx"), ({"targets": ["ada"]}, "ampere")])
def test_a_recipe_may_be_limited(changes: dict[str, Any], named: str) -> None:
    made = plan("ampere", recipes={"model": recipe(**changes)})
    assert not made.jobs
    assert made.refusals[0].reason is Reason.NOT_ALLOWED_BY_RECIPE
    assert named in made.refusals[0].what


@pytest.mark.parametrize(
    ("build", "what", "having"),
    [
        # the stack's own exception has no release to name
        ({"version_compatible": True}, "stack rtx has no build option version_compatible", "classic"),
        (
            {"tactic_sources": ["cudnn"]},
            "stack rtx has no build option tactic_sources: cudnn: TensorRT-RTX has none",
            "classic",
        ),
    ],
)
def test_a_build_option_that_the_stack_lacks_names_the_stacks_that_have_it(
    build: dict[str, Any], what: str, having: str
) -> None:
    made = plan("ampere", recipes={"model": recipe(build=build)})
    (refusal,) = made.refusals
    assert (made.jobs, refusal.reason, refusal.what) == ((), Reason.OPTION_UNSUPPORTED, what)
    assert refusal.fix == f"stacks that have it: {having}; or drop it from the recipe"


@pytest.mark.parametrize(
    ("stack_name", "build", "why"),
    [
        (
            "trt8.6-cuda12.0",
            {"hardware_compatibility": "same_compute_capability"},
            ": it came with TensorRT 10.9, this is 8.6.1",
        ),
        ("trt8.6-cuda12.0", {"strip_weights": True}, ": it came with TensorRT 10.0, this is 8.6.1"),
        ("trt11.3-cuda13.4", {"tactic_sources": ["cublas"]}, ": it is gone since TensorRT 11.0, this is 11.3.0.99"),
        ("trt10.9-cuda12.8", {"tactic_sources": ["cublas"]}, "tactic_sources: cublas"),
        ("trt10.9-cuda12.8", {"hardware_compatibility": "same_compute_capability"}, None),
        ("trt8.6-cuda12.0", {"hardware_compatibility": "ampere_plus", "tactic_sources": ["cudnn"]}, None),
        ("trt11.3-cuda13.4", {"weight_streaming": True, "refit": True, "version_compatible": True}, None),
        ("trtrtx1.7-cuda13", {"refit": True}, "refit"),
        ("trtrtx1.7-cuda13", {"tactic_sources": []}, "tactic_sources"),
    ],
)
def test_options_of_the_committed_stacks(stack_name: str, build: dict[str, Any], why: str | None) -> None:
    made = plan("ampere", recipes={"model": recipe(build=build)}, stacks=(load_stacks(IMAGES)[stack_name],))
    assert bool(made.jobs) is (why is None)
    assert [refusal.what.endswith(why or "") for refusal in made.refusals] == [True] * (why is not None)


def compatible(level: str) -> dict[str, Recipe]:
    return {"model": recipe(build={"hardware_compatibility": level})}


@pytest.mark.parametrize(
    ("level", "suffix"), [("none", ""), ("ampere_plus", "-ampere-plus"), ("same_compute_capability", "-same-cc")]
)
def test_jobs_say_on_which_gpus_they_run(level: str, suffix: str) -> None:
    able = stack(**CLASSIC | {"family": "trt10", "tensorrt": "10.9.0.34"}, sms=["8.9"])
    (job,) = plan("ada", recipes=compatible(level), stacks=(able,)).jobs
    assert (job.id, job.compatibility) == (f"model-fp16-classic-sm89{suffix}", level)
    assert job.as_json()["compatibility"] == level


def test_engines_for_ampere_and_later_are_not_built_on_older_gpus() -> None:
    able = (stack(**CLASSIC, sms=["7.5", "8.0", "8.6"]),)
    made = plan("turing", "ampere", recipes=compatible("ampere_plus"), stacks=able)
    assert [job.id for job in made.jobs] == [
        "model-fp16-classic-sm80-ampere-plus",
        "model-fp16-classic-sm86-ampere-plus",
    ]
    (refusal,) = made.refusals
    what = "an engine with hardware_compatibility: ampere_plus does not run on SM 7.5 (turing)"
    assert (refusal.reason, refusal.target, refusal.what) == (Reason.OPTION_UNSUPPORTED, "turing", what)
    assert refusal.fix == "choose a target from SM 8.0 on, or drop it from the recipe"


def test_turing_has_its_own_compute_capability() -> None:
    able = stack(**CLASSIC | {"family": "trt10", "tensorrt": "10.9.0.34"}, sms=["7.5"])
    made = plan("turing", recipes=compatible("same_compute_capability"), stacks=(able,))
    assert [job.id for job in made.jobs] == ["model-fp16-classic-sm75-same-cc"]


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        (None, ["model-fp16-classic-sm89-ampere-plus"]),
        ("ampere_plus", ["model-fp16-classic-sm89-ampere-plus"]),
        ("none", ["model-fp16-classic-sm89"]),
        ("same_compute_capability", []),
    ],
)
def test_the_callers_compatibility_stands_above_the_recipes(asked: str | None, ids: list[str]) -> None:
    able = (stack(**CLASSIC, sms=["8.9"]),)
    made = plan("ada", recipes=compatible("ampere_plus"), stacks=able, compatibility=asked)
    assert [job.id for job in made.jobs] == ids
    plain = plan("ada", stacks=able, compatibility="ampere_plus")
    assert [job.compatibility for job in plain.jobs] == ["ampere_plus"]


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


def test_a_precision_that_only_the_stack_lacks_has_no_release_to_blame() -> None:
    made = plan(
        "ampere",
        recipes={"model": recipe(precisions=precisions("bf16"))},
        stacks=(stack(family="trt10", tensorrt="10.9.0.34", precisions=["fp16"]),),
    )
    assert made.refusals[0].what == "stack s has no bf16"
    assert made.refusals[0].fix == "stacks that have it: none; this one has fp16"


def test_what_else_is_refused_is_told_beside_the_error() -> None:
    limited = recipe(precisions=precisions("fp32", "bf16", targets=["ampere"]))
    with pytest.raises(EnginefarmError) as caught:
        require_jobs(plan("turing", recipes={"model": limited}))
    assert caught.value.what == "recipe model does not list target turing for fp32"
    assert caught.value.why == "refused as well:\n  recipe model does not list target turing for bf16"
