"""Builds the engine that fits this machine where none can be pulled: one job, the one that the resolver prefers."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.compat import Candidate, Verdict, candidate_of_manifest, no_fit, rank, verdict
from builder.engine_folder import offer_engine
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, Note
from builder.machine import Facts
from builder.manifest import Manifest
from builder.places import Located
from builder.plan import Catalogue, Job, Plan, make_plan
from builder.project import Home, Project
from builder.pull import Order, Pulled, Puller
from builder.pull_checks import Machine
from builder.query import find_engine
from builder.runner import Settings, run
from builder.selection import Selection, load_catalogue
from builder.stacks import Stack, build_stacks, load_stacks
from builder.store import Store
from builder.targets import load_targets

# stands in trust.json where a registry's reference would: this machine built the engine
BUILT_HERE = "built here"
_TO_BE_BUILT = frozenset({Reason.NO_ENGINE_FITS, Reason.ARTIFACT_MISSING})
_FIX = "install the TensorRT of one of these stacks, or name another --stack or --precision"


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """An engine that was built for this machine, or found in its store."""

    model: str
    job: str
    manifest: Manifest
    verdict: Verdict
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What it takes to build."""

    project: Project
    home: Home
    settings: Settings
    listen: Listener
    cancel: threading.Event


def pull_or_build(puller: Puller, located: Located, order: Order, workshop: Workshop) -> Pulled | Built:
    """Pull a model's engine; where there is none that fits, build it in the workshop.

    What is refused because it is not trusted is not built over: somebody should look at it.

    Raises:
        EnginefarmError: those of `Puller.pull` and `build_here`; the former where the project has no such recipe.

    """
    try:
        return puller.pull(located, order)
    except EnginefarmError as error:
        if error.reason not in _TO_BE_BUILT:
            raise
        workshop.listen(Note(subject=located.model, text=f"{error.what}: it is built here"))
        try:
            return build_here(located.model, order.machine, workshop, order.to)
        except EnginefarmError as second:
            if second.reason is not Reason.RECIPE_UNKNOWN:
                raise
            why = f"{error.why or ''}\n{located.model} is no recipe of {workshop.project.root}".strip()
            raise EnginefarmError(error.reason, error.what, where=error.where, why=why, fix=second.fix) from error


def build_here(model: str, machine: Machine, workshop: Workshop, to: Path | None = None) -> Built:
    """Build a model's engine for this machine, prove it and put it where applications load it, or to a folder `to`.

    Raises:
        EnginefarmError: RECIPE_UNKNOWN where the project does not have the model; NO_ENGINE_FITS where no job of its
            recipe would; what the build failed of.

    """
    catalogue, job = choose_job(model, machine, workshop.project)
    plan, home, cancel = Plan(jobs=(job,), refusals=()), workshop.home, workshop.cancel
    (outcome,) = run(plan, catalogue, workshop.project, home, workshop.settings, workshop.listen, cancel)
    if outcome.manifest is None:
        raise outcome.error or EnginefarmError(Reason.INTERRUPTED, f"building {job.id} was stopped")
    judged = verdict(
        candidate_of_manifest(outcome.manifest.model_dump(mode="json")), machine.facts, machine.wish, machine.known_bad
    )
    if judged.refusals:
        raise no_fit([judged], f"engine of {model} built here")
    store = Store(home.store)
    blobs = store.files(find_engine(store, outcome.manifest.key))
    folder = offer_engine(home, model, blobs, cancel, reference=BUILT_HERE, to=to)
    return Built(model=model, job=job.id, manifest=outcome.manifest, verdict=judged, folder=folder)


def choose_job(model: str, machine: Machine, project: Project) -> tuple[Catalogue, Job]:
    """Find the job whose engine would fit this machine best: of the default stacks, else of any other.

    Raises:
        EnginefarmError: RECIPE_UNKNOWN, STACK_UNKNOWN, NO_ENGINE_FITS.

    """
    targets = _targets(machine.facts)
    if not targets:
        raise _no_target(machine.facts, model)
    every = tuple(build_stacks(load_stacks(project.images)))
    rounds = [(machine.wish.stack,)] if machine.wish.stack is not None else [(), every]
    verdicts: tuple[Verdict, ...] = ()
    for stacks in rounds:
        catalogue = load_catalogue(project, Selection(targets=targets, recipes=(model,), stacks=stacks))
        verdicts, jobs = _judge(catalogue, machine)
        if verdicts and verdicts[0].fits:
            return catalogue, jobs[verdicts[0].candidate.job]
    raise _no_job(verdicts, model)


def _no_target(facts: Facts, model: str) -> EnginefarmError:
    what = f"no engine of {model} can be built for this machine"
    if not facts.gpus:
        fix = "run this where the engine shall be used, or give that machine's --facts FILE"
        return EnginefarmError(Reason.NO_ENGINE_FITS, what, why="it has no NVIDIA GPU", fix=fix)
    here = ", ".join(dict.fromkeys(f"SM {gpu.sm} ({gpu.name})" for gpu in facts.gpus))
    fix = "targets: " + "; ".join(f"{name} {', '.join(one.sms)}" for name, one in load_targets().items())
    return EnginefarmError(Reason.NO_ENGINE_FITS, what, why=f"no target has {here}", fix=fix)


def _no_job(verdicts: Sequence[Verdict], model: str) -> EnginefarmError:
    error = no_fit(verdicts, f"engine that could be built of {model}")
    error.fix = _FIX
    return error


def _judge(catalogue: Catalogue, machine: Machine) -> tuple[tuple[Verdict, ...], Mapping[str, Job]]:
    wanted: Sequence[str] = (machine.wish.precision,) if machine.wish.precision is not None else ()
    stacks = {stack.name: stack for stack in catalogue.stacks}
    jobs = {job.id: job for job in make_plan(catalogue, wanted).jobs}
    candidates = [
        _candidate(job, stacks[job.stack], version_compatible=catalogue.recipes[job.recipe].build.version_compatible)
        for job in jobs.values()
    ]
    return rank(candidates, machine.facts, machine.wish, machine.known_bad), jobs


def _candidate(job: Job, stack: Stack, *, version_compatible: bool) -> Candidate:
    system, _, architecture = stack.spec.platform.partition("/")
    l4t = re.match(r"l4t(\d+(?:\.\d+)*)", stack.name)
    return Candidate(
        job=job.id,
        key="",
        stack=stack.name,
        tensorrt=stack.build.tensorrt,
        cuda=stack.build.cuda,
        precision=job.precision,
        sms=job.sms,
        hardware_compatibility=job.compatibility,
        version_compatible=version_compatible,
        os=system,
        architecture=architecture,
        l4t=l4t[1] if l4t else None,
        # it is about to be
        engine_verified=True,
        rtx=stack.build.family == "rtx",
    )


def _targets(facts: Facts) -> tuple[str, ...]:
    here = {gpu.sm for gpu in facts.gpus}
    return tuple(name for name, target in load_targets().items() if here & set(target.sms))
