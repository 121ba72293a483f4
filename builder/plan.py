"""The plan: which jobs a selection means. Pure: no clock, network, docker or GPU; same input, same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from builder.errors import EnginefarmError, Reason
from builder.features import COMPATIBILITY_FLOORS, load_features, option_features, precision_features
from builder.recipe import BuildOptions, Precision, Recipe
from builder.stacks import Stack
from builder.targets import Target, sm_number, suggestion

PLAN_VERSION = 1

# Why a combination is refused: reason, what, fix.
_Problem = tuple[Reason, str, str]
# What a job's id ends with, by hardware compatibility.
_SUFFIXES = {"none": "", "ampere_plus": "-ampere-plus", "same_compute_capability": "-same-cc"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One engine to build: recipe x precision x stack x SMs of a target.

    `compatibility`: on which other GPUs it runs, a value of the recipe's build.hardware_compatibility.
    """

    recipe: str
    precision: str
    stack: str
    target: str
    sms: tuple[str, ...]
    compatibility: str = "none"

    @property
    def id(self) -> str:
        """Readable id: selector, log heading, folder and matrix key in one."""
        sms = "-".join(f"sm{sm.replace('.', '')}" for sm in self.sms)
        return f"{self.recipe}-{self.precision}-{self.stack}-{sms}{_SUFFIXES[self.compatibility]}"

    def as_json(self) -> dict[str, object]:
        """Return plain data for `plan --json`."""
        return {
            "id": self.id,
            "recipe": self.recipe,
            "precision": self.precision,
            "stack": self.stack,
            "target": self.target,
            "sms": list(self.sms),
            "compatibility": self.compatibility,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A combination that was asked for and cannot be built."""

    recipe: str
    precision: str
    stack: str
    target: str
    reason: Reason
    what: str
    fix: str

    def as_json(self) -> dict[str, object]:
        """Return plain data for `plan --json`."""
        return {
            "recipe": self.recipe,
            "precision": self.precision,
            "stack": self.stack,
            "target": self.target,
            "code": self.reason.value.code,
            "reason": self.reason.value.slug,
            "what": self.what,
            "fix": self.fix,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Jobs in a stable order (recipe, precision, stack, target) and what had to be refused.

    `left_out`: what nobody asked for by name, of precisions that a recipe has for other targets only.
    """

    jobs: tuple[Job, ...]
    refusals: tuple[Refusal, ...]
    left_out: tuple[Refusal, ...] = ()

    def to_json(self) -> str:
        """Serialise: canonical, so equal plans are equal text."""
        document = {
            "plan_version": PLAN_VERSION,
            "jobs": [job.as_json() for job in self.jobs],
            "refusals": [refusal.as_json() for refusal in self.refusals],
            "left_out": [refusal.as_json() for refusal in self.left_out],
        }
        return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Everything planning may choose from. `stacks` are the chosen ones, `all_stacks` serve the refusals' advice."""

    recipes: Mapping[str, Recipe]
    stacks: tuple[Stack, ...]
    targets: tuple[Target, ...]
    all_stacks: tuple[Stack, ...]
    precision_floors: Mapping[str, tuple[int, int]]


def make_plan(catalogue: Catalogue, precisions: Iterable[str] = (), compatibility: str | None = None) -> Plan:
    """Cross recipes, precisions, stacks and targets; keep what can be built, refuse the rest with a reason.

    Without `precisions` a target's jobs are those of the precisions that the recipes have for it; the others are left
    out and not refused. `compatibility` stands above the recipes' own build.hardware_compatibility.
    """
    wanted = frozenset(precisions)
    jobs: list[Job] = []
    refusals: list[Refusal] = []
    left_out: list[Refusal] = []
    for name in sorted(catalogue.recipes):
        recipe = _with_compatibility(catalogue.recipes[name], compatibility)
        for precision in (p for p in Precision if p in recipe.precisions and (not wanted or p.value in wanted)):
            for stack in catalogue.stacks:
                for target in catalogue.targets:
                    against = refusals if wanted or _offers(recipe, precision, target) else left_out
                    for item in _combine(catalogue, recipe, precision.value, stack, target):
                        if isinstance(item, Job):
                            jobs.append(item)
                        else:
                            against.append(item)
    return Plan(jobs=tuple(jobs), refusals=tuple(refusals), left_out=tuple(left_out))


def require_jobs(plan: Plan) -> Plan:
    """Give the plan back if it holds a job.

    Raises:
        EnginefarmError: the first refusal's reason, or NOTHING_TO_DO where nothing was refused either.

    """
    if plan.jobs:
        return plan
    refusals = plan.refusals or plan.left_out
    if not refusals:
        raise EnginefarmError(Reason.NOTHING_TO_DO, "no recipe has the precision asked for")
    first = refusals[0]
    others = {refusal.what: None for refusal in refusals if refusal.what != first.what}
    why = "\n".join(["refused as well:", *(f"  {what}" for what in others)]) if others else None
    raise EnginefarmError(first.reason, first.what, why=why, fix=first.fix)


def select_jobs(plan: Plan, patterns: tuple[str, ...]) -> Plan:
    """Keep the jobs whose id matches one of the globs; no glob means all. What was refused is left out then.

    Raises:
        EnginefarmError: NOTHING_TO_DO for a glob that matches no job.

    """
    if not patterns:
        return plan
    for pattern in patterns:
        if not any(fnmatchcase(job.id, pattern) for job in plan.jobs):
            fix = suggestion(pattern, [job.id for job in plan.jobs], "jobs")
            raise EnginefarmError(Reason.NOTHING_TO_DO, f"no job of the plan matches {pattern!r}", fix=fix)
    kept = tuple(job for job in plan.jobs if any(fnmatchcase(job.id, pattern) for pattern in patterns))
    return Plan(jobs=kept, refusals=())


def select_recipes(recipes: Mapping[str, Recipe], patterns: tuple[str, ...]) -> dict[str, Recipe]:
    """Pick recipes whose name matches one of the globs; no glob means all.

    Raises:
        EnginefarmError: RECIPE_UNKNOWN for a glob that matches nothing.

    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in recipes):
            raise EnginefarmError(
                Reason.RECIPE_UNKNOWN,
                f"no recipe matches {pattern!r}",
                fix=suggestion(pattern, sorted(recipes), "recipes"),
            )
    return {
        name: recipe
        for name, recipe in recipes.items()
        if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _combine(
    catalogue: Catalogue, recipe: Recipe, precision: str, stack: Stack, target: Target
) -> Iterator[Job | Refusal]:
    def refuse(problem: _Problem) -> Refusal:
        reason, what, fix = problem
        return Refusal(
            recipe=recipe.name,
            precision=precision,
            stack=stack.name,
            target=target.name,
            reason=reason,
            what=what,
            fix=fix,
        )

    floor = catalogue.precision_floors[precision]
    able = tuple(sm for sm in target.sms if sm_number(sm) >= floor)
    against = _against_recipe(recipe, precision, stack, target) or _against_stack(catalogue, recipe, precision, stack)
    if against is not None:
        yield refuse(against)
        return
    if not able:
        what = f"{target.name} (SM {', '.join(target.sms)}) has no {precision} in hardware"
        yield refuse((Reason.PRECISION_UNSUPPORTED, what, f"{precision} starts at SM {floor[0]}.{floor[1]}"))
        return
    buildable = []
    for sm in able:
        problem = _against_sm(catalogue, recipe, stack, target, sm)
        if problem is not None:
            yield refuse(problem)
        else:
            buildable.append(sm)
    for sms in _groups(stack, tuple(buildable)):
        yield Job(
            recipe=recipe.name,
            precision=precision,
            stack=stack.name,
            target=target.name,
            sms=sms,
            compatibility=recipe.build.hardware_compatibility,
        )


def _offers(recipe: Recipe, precision: Precision, target: Target) -> bool:
    limited = recipe.precisions[precision].targets
    return limited is None or target.name in limited


def _against_recipe(recipe: Recipe, precision: str, stack: Stack, target: Target) -> _Problem | None:
    limited = recipe.precisions[Precision(precision)].targets
    checks = (
        (f"stack {stack.name}", stack.name, recipe.stacks, "stacks"),
        (f"target {target.name}", target.name, recipe.targets, "targets"),
        (f"target {target.name} for {precision}", target.name, limited, f"targets for {precision}"),
    )
    for asked, name, allowed, kind in checks:
        if allowed is not None and name not in allowed:
            what = f"recipe {recipe.name} does not list {asked}"
            return Reason.NOT_ALLOWED_BY_RECIPE, what, f"the recipe's {kind}: {', '.join(allowed)}"
    return None


def _against_stack(catalogue: Catalogue, recipe: Recipe, precision: str, stack: Stack) -> _Problem | None:
    if precision not in stack.build.precisions:
        return _no_precision(catalogue, precision, stack)
    for need in option_features(recipe.build):
        if need.feature not in stack.build.features:
            having = [s.name for s in catalogue.all_stacks if need.feature in s.build.features]
            absent = load_features()[need.feature].absence(stack.build.family, stack.build.tensorrt)
            what = f"stack {stack.name} has no build option {need.option}"
            fix = f"stacks that have it: {', '.join(having) or 'none'}; or drop it from the recipe"
            return Reason.OPTION_UNSUPPORTED, f"{what}: {absent}" if absent else what, fix
    if precision == Precision.INT8.value and recipe.build.weight_streaming:
        what = "weight_streaming wants a strongly typed network, and int8 is calibrated on a weakly typed one"
        return Reason.OPTION_UNSUPPORTED, what, "drop it from the recipe, or choose another precision"
    return None


def _no_precision(catalogue: Catalogue, precision: str, stack: Stack) -> _Problem:
    having = [s.name for s in catalogue.all_stacks if precision in s.build.precisions]
    needed = [load_features()[name] for name in precision_features(precision)]
    absences = [feature.absence(stack.build.family, stack.build.tensorrt) for feature in needed]
    what = f"stack {stack.name} has no {precision}"
    if absences and None not in absences:
        what += f" ({needed[0].name}: {absences[0]})"
    fix = f"stacks that have it: {', '.join(having) or 'none'}; this one has {', '.join(stack.build.precisions)}"
    return Reason.PRECISION_UNSUPPORTED, what, fix


def _against_sm(catalogue: Catalogue, recipe: Recipe, stack: Stack, target: Target, sm: str) -> _Problem | None:
    if sm not in stack.build.sms:
        having = [s.name for s in catalogue.all_stacks if sm in s.build.sms]
        fix = f"stacks for SM {sm}: {', '.join(having) or 'none yet'}; {stack.name} has {', '.join(stack.build.sms)}"
        return Reason.SM_MISMATCH, f"stack {stack.name} cannot build for SM {sm} ({target.name})", fix
    level = recipe.build.hardware_compatibility
    if level != "none" and sm_number(sm) < COMPATIBILITY_FLOORS[level]:
        floor = ".".join(map(str, COMPATIBILITY_FLOORS[level]))
        what = f"an engine with hardware_compatibility: {level} does not run on SM {sm} ({target.name})"
        return Reason.OPTION_UNSUPPORTED, what, f"choose a target from SM {floor} on, or drop it from the recipe"
    return None


def _with_compatibility(recipe: Recipe, compatibility: str | None) -> Recipe:
    if compatibility is None:
        return recipe
    build = BuildOptions.model_validate({**recipe.build.model_dump(), "hardware_compatibility": compatibility})
    return recipe.model_copy(update={"build": build})


def _groups(stack: Stack, sms: tuple[str, ...]) -> list[tuple[str, ...]]:
    if stack.build.grouping == "each":
        return [(sm,) for sm in sms]
    together = tuple(sm for sm in sms if sm not in stack.build.alone)
    return [*((sm,) for sm in sms if sm in stack.build.alone), *([together] if together else [])]
