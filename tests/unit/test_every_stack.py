"""A stack is data: whatever folder lies in images/ is planned, adapted and imaged without code of its own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from builder.bases import load_bases
from builder.features import option_features
from builder.plan import Catalogue, Job, Plan, make_plan
from builder.recipe import BuildOptions, Precision, Recipe
from builder.stacks import Stack, build_stacks, load_stacks
from builder.targets import load_precision_floors, load_targets
from builder.trtexec import trtexec_command
from builder.worker.trt import ADAPTERS, adapter
from tests.surfaces import fake_tensorrt, recorded_versions
from tests.unit.test_plan import recipe

ROOT = Path(__file__).parents[2]
STACKS = build_stacks(load_stacks(ROOT / "images"))
ALL = [*STACKS.values(), *(one.with_lock(name) for one in STACKS.values() for name in one.spec.image.locks)]
CODE = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "builder").rglob("*.py")))
each = pytest.mark.parametrize("stack", ALL, ids=lambda stack: f"{stack.name}-{stack.build.tensorrt}")


def plan(stack: Stack, **build: Any) -> tuple[Recipe, Plan]:
    """Plan a recipe of all precisions on one stack for all targets."""
    settings = {"tolerance": {"default": {"max_abs": 1.0}}}
    made = recipe(precisions={precision.value: settings for precision in Precision}, build=build)
    catalogue = Catalogue(
        recipes={"model": made},
        stacks=(stack,),
        targets=tuple(load_targets().values()),
        all_stacks=tuple(STACKS.values()),
        precision_floors=load_precision_floors(),
    )
    return made, make_plan(catalogue)


@each
def test_each_stack_is_planned_for_its_sms(stack: Stack) -> None:
    _, made = plan(stack)
    of_targets = {sm for target in load_targets().values() for sm in target.sms}
    assert {sm for job in made.jobs for sm in job.sms} == set(stack.build.sms) & of_targets
    assert {job.precision for job in made.jobs} == set(stack.build.precisions)
    assert len({job.id for job in made.jobs}) == len(made.jobs)


@each
@pytest.mark.parametrize(
    "build",
    [
        {"hardware_compatibility": "ampere_plus"},
        {"hardware_compatibility": "same_compute_capability"},
        {"version_compatible": True},
        {"strip_weights": True},
        {"refit": True},
        {"weight_streaming": True},
        {"tactic_sources": ["cublas", "cudnn"]},
        {"tactic_sources": ["jit_convolutions"]},
    ],
    ids=lambda build: "-".join(f"{name}-{value}" for name, value in build.items()),
)
def test_each_option_is_planned_or_refused_by_the_table(stack: Stack, build: dict[str, Any]) -> None:
    _, made = plan(stack, **build)
    needs = option_features(BuildOptions.model_validate(build))
    has = all(need.feature in stack.build.features for need in needs)
    assert bool(made.jobs) is has
    refused = [refusal for refusal in made.refusals if "has no build option" in refusal.what]
    assert bool(refused) is not has
    having = [name for name, other in STACKS.items() if {need.feature for need in needs} <= other.build.features]
    assert having
    for refusal in refused:
        assert all(name in refusal.fix for name in having)


@each
def test_each_stack_has_an_adapter_a_record_and_a_command(stack: Stack) -> None:
    assert stack.build.family in ADAPTERS
    assert hasattr(adapter(stack.build.family), "build")
    assert stack.build.tensorrt in recorded_versions()
    assert fake_tensorrt(stack.build.tensorrt).__version__ == stack.build.tensorrt
    made, planned = plan(stack)
    for job in planned.jobs:
        building, *timing = trtexec_command(job, made, stack)
        assert building[1:3] == ["--onnx=lowered.onnx", f"--saveEngine={job.id}.plan"]
        assert len(timing) == 1


@each
def test_each_stack_has_its_generated_files_and_a_base(stack: Stack) -> None:
    for name in ("Dockerfile", "check.py", "prune.txt"):
        assert (stack.folder / name).is_file()
    assert f'enginefarm.stack="{stack.name}"' in (stack.folder / "Dockerfile").read_text(encoding="utf-8")
    base = load_bases(ROOT / "images").get(stack.spec.image.base)
    assert base.python in stack.spec.python


@pytest.mark.parametrize("stack", STACKS.values(), ids=list(STACKS))
def test_no_code_names_a_stack(stack: Stack) -> None:
    assert not re.search(rf"\b{re.escape(stack.name)}\b", re.sub(r'help="[^"]*"', "", CODE))


def test_the_jobs_of_a_family_differ_by_data_alone() -> None:
    ten = [stack for stack in STACKS.values() if stack.build.family == "trt10" and stack.build.grouping == "each"]
    assert len(ten) >= 3
    shapes = {tuple(sorted(job.as_json())) for stack in ten for job in plan(stack)[1].jobs}
    assert shapes == {tuple(sorted(Job(recipe="r", precision="p", stack="s", target="t", sms=()).as_json()))}
