"""What the command line asks for, read from a project: recipes, stacks and targets by name."""

from __future__ import annotations

from dataclasses import dataclass

from builder.plan import Catalogue, select_recipes
from builder.project import Project
from builder.recipe_file import load_recipes
from builder.stacks import build_stacks, choose_stacks, load_stacks
from builder.targets import choose_targets, load_precision_floors, load_targets


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Names as given; none means all, for stacks the default ones. `recipes` are globs."""

    targets: tuple[str, ...] = ()
    recipes: tuple[str, ...] = ()
    stacks: tuple[str, ...] = ()


def load_catalogue(project: Project, selection: Selection) -> Catalogue:
    """Read the project's files and keep what is asked for.

    Raises:
        EnginefarmError: TARGET_UNKNOWN, STACK_UNKNOWN or RECIPE_UNKNOWN with the valid names; STACK_INVALID or
            RECIPE_INVALID with every problem.

    """
    known_targets = load_targets()
    targets = choose_targets(known_targets, selection.targets)
    stacks = load_stacks(project.images)
    chosen = choose_stacks(stacks, selection.stacks)
    return Catalogue(
        recipes=select_recipes(load_recipes(project.recipes, build_stacks(stacks), known_targets), selection.recipes),
        stacks=chosen,
        targets=targets,
        all_stacks=tuple(build_stacks(stacks).values()),
        precision_floors=load_precision_floors(),
    )
