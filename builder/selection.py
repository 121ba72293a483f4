"""What the command line asks for, read from a project: recipes, stacks and targets by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from builder.errors import EnginefarmError, Reason
from builder.plan import Catalogue, select_recipes
from builder.project import Project
from builder.recipe_file import load_recipes
from builder.stacks import Stack, build_stacks, choose_stacks, load_stacks
from builder.targets import choose_targets, load_precision_floors, load_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Names as given; none means all, for stacks the default ones. `recipes` are globs; `lock` as in `take_lock`."""

    targets: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()
    lock: str | None = None


def load_catalogue(project: Project, selection: Selection) -> Catalogue:
    """Read the project's files and keep what is asked for.

    Raises:
        EnginefarmError: TARGET_UNKNOWN, STACK_UNKNOWN or RECIPE_UNKNOWN with the valid names; STACK_UNKNOWN, too, for
            a lock that no stack chosen has; STACK_INVALID or RECIPE_INVALID with every problem.

    """
    known_targets = load_targets()
    targets = choose_targets(known_targets, selection.targets)
    stacks = take_lock(load_stacks(project.images), selection.lock)
    chosen = choose_stacks(stacks, selection.stacks)
    _require_lock(chosen, stacks, selection.lock)
    return Catalogue(
        recipes=select_recipes(load_recipes(project.recipes, build_stacks(stacks), known_targets), selection.recipes),
        stacks=chosen,
        targets=targets,
        all_stacks=tuple(build_stacks(stacks).values()),
        precision_floors=load_precision_floors(),
    )


def _require_lock(chosen: tuple[Stack, ...], stacks: Mapping[str, Stack], lock: str | None) -> None:
    # without a stack that has it the option would say nothing, and what is built would be something else
    if lock is None or any(lock in stack.spec.image.locks for stack in chosen):
        return
    owners = [name for name, stack in stacks.items() if lock in stack.spec.image.locks]
    what = f"none of the stacks chosen has a lock {lock!r}: {', '.join(stack.name for stack in chosen)}"
    raise EnginefarmError(Reason.STACK_UNKNOWN, what, fix=f"add --stack {' or '.join(owners)}")


def take_lock(stacks: Mapping[str, Stack], lock: str | None) -> dict[str, Stack]:
    """Take another lock for the stacks that have it; null leaves all as they are.

    Raises:
        EnginefarmError: STACK_UNKNOWN where no stack has such a lock.

    """
    if lock is None:
        return dict(stacks)
    if not any(lock in stack.spec.image.locks for stack in stacks.values()):
        known = [f"{variant} of {name}" for name, stack in stacks.items() for variant in stack.spec.image.locks]
        fix = f"locks: {', '.join(known) or 'none'}"
        raise EnginefarmError(Reason.STACK_UNKNOWN, f"no stack has a lock {lock!r}", fix=fix)
    return {name: stack.with_lock(lock) if lock in stack.spec.image.locks else stack for name, stack in stacks.items()}
