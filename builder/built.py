"""What the manifest of an engine leads back to: job, recipe, stack, and where stages run as when it was built."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from builder.errors import EnginefarmError, Reason
from builder.events import Listener
from builder.executors import AUTO, EXECUTORS
from builder.executors.context import ExecutorContext
from builder.journal import Journal
from builder.manifest import Manifest
from builder.plan import Job
from builder.project import Home, Project
from builder.recipe import Recipe
from builder.recipe_file import load_recipe
from builder.runner import Settings
from builder.stacks import Stack
from builder.stage_runner import StageRunner
from builder.workspace import Workspace


def job_of(manifest: Manifest) -> Job:
    """Return the job that a manifest tells of."""
    return Job(
        recipe=manifest.recipe.name,
        precision=manifest.precision.requested,
        stack=manifest.stack.name,
        target=manifest.target.name,
        sms=tuple(manifest.target.sms),
        compatibility=str(manifest.build.options.get("hardware_compatibility", "none")),
    )


def recipe_of(manifest: Manifest, project: Project) -> Recipe:
    """Return the recipe that an engine was built from, as the project has it now.

    Raises:
        EnginefarmError: as `load_recipe`; INPUTS_CHANGED where it no longer has the engine's precision or shape
            profiles.

    """
    recipe = load_recipe(project.recipes / manifest.recipe.name / "recipe.yaml")
    if manifest.precision.requested not in [precision.value for precision in recipe.precisions]:
        what = f"recipe {recipe.name} no longer has {manifest.precision.requested}, the precision of {manifest.job}"
        raise EnginefarmError(Reason.INPUTS_CHANGED, what)
    now = [
        {
            "name": profile.name,
            "inputs": {n: {p: getattr(s, p) for p in ("min", "opt", "max")} for n, s in profile.inputs.items()},
        }
        for profile in recipe.profiles
    ]
    if manifest.engine.profiles != now:
        what = f"{manifest.job} was built for other shape profiles than recipe {recipe.name} now has"
        raise EnginefarmError(Reason.INPUTS_CHANGED, what)
    return recipe


def stack_of(manifest: Manifest, stacks: Mapping[str, Stack]) -> Stack:
    """Return the stack with the lock that the engine was built with: it loads under that TensorRT alone.

    Raises:
        EnginefarmError: INPUTS_CHANGED where the project no longer has it.

    """
    part = manifest.stack
    found = stacks[part.name].of_lock(part.lock_sha256) if part.name in stacks else None
    if found is None:
        what = f"the engine was built with a lock of stack {part.name} that the project no longer has"
        raise EnginefarmError(Reason.INPUTS_CHANGED, what, why=f"SHA-256 of that lock: {part.lock_sha256}")
    return found


def executor_of(manifest: Manifest, asked: str) -> str:
    """Name the executor: as asked; else an image for what an image built."""
    if asked != AUTO:
        return asked
    return "local" if manifest.stack.image is None else "docker"


def open_stages(
    executor: str,
    workspace: Workspace,
    project: Project,
    home: Home,
    settings: Settings,
    listen: Listener,
    cancel: threading.Event,
) -> StageRunner:
    """Make what runs stages with an executor, named as in `EXECUTORS`."""
    context = ExecutorContext(
        project=project,
        home=home,
        install=settings.install,
        cancel=cancel,
        listen=listen,
        keep=settings.keep_work,
        memory_bytes=settings.memory_bytes,
    )
    return StageRunner(
        executor=EXECUTORS[executor](context),
        workspace=workspace,
        journal=Journal(home.journal),
        listen=listen,
        cancel=cancel,
        timeout_s=settings.timeout_s,
    )
