"""Executes a plan: what is in the store is reused, the rest is exported, built and proved, several at a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from builder import host, preflight
from builder.errors import EnginefarmError, Reason
from builder.events import JobFinished, JobOutcome, Listener, Note, RunStarted, Status, StepFinished, StepStarted
from builder.executors import AUTO, EXECUTORS, Executor, docker_answers
from builder.executors.context import ExecutorContext
from builder.fetch import Fetcher
from builder.gpu import visible_gpus
from builder.gpu_choice import hidden, tunable, wrong_gpu
from builder.job_stages import Tuned
from builder.jobs import JobRunner, find_proved, make_keys, read_manifest
from builder.journal import Journal
from builder.models import Models
from builder.plan import Catalogue, Job, Plan
from builder.project import Home, Project
from builder.recipe import Recipe
from builder.schedule import Task, run_tasks
from builder.selection import take_lock
from builder.stacks import Stack, build_stacks, load_stacks
from builder.stage_runner import StageRunner
from builder.store import Store
from builder.workspace import Workspace, sweep_dead_runs

_NO_IMAGE = frozenset(
    {
        Reason.BASE_UNAVAILABLE,
        Reason.TOOL_MISSING,
        Reason.IMAGE_BUILD_FAILED,
        Reason.IMAGE_MISSING,
        Reason.DOCKER_UNAVAILABLE,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to execute. `jobs` null: one per processor.

    `executor` auto: none where the store has all that was built without containers; else docker where one answers, else
    local. `memory_bytes`: limit of a stage in a container; null is what is free. `lock`: a stack's other lock to take.
    `sealed`: the timing cache that builds on a GPU must do with; `sealed_here`: it comes out of this store.
    """

    jobs: int | None = None
    install: bool = True
    verify: bool = True
    timeout_s: float = 3600.0
    keep_work: bool = False
    executor: str = AUTO
    memory_bytes: int | None = None
    lock: str | None = None
    sealed: Path | None = None
    sealed_here: bool = False

    @property
    def parallel(self) -> int:
        """Jobs at once."""
        return self.jobs if self.jobs is not None else host.processors()


def run(  # the parts of a run
    plan: Plan,
    catalogue: Catalogue,
    project: Project,
    home: Home,
    settings: Settings,
    listen: Listener,
    cancel: threading.Event,
) -> tuple[JobOutcome, ...]:
    """Execute all jobs of a plan, in plan order of outcomes. A failed job does not stop the others.

    Raises:
        EnginefarmError: what stands against starting at all: GPU_NEEDED, SM_MISMATCH, OPTION_UNSUPPORTED
            for a seal that no job reads, DISK_FULL, PYTHON_MISSING, ENVIRONMENT_MISSING, IMAGE_MISSING,
            DOCKER_UNAVAILABLE, STORE_READ_ONLY, STORE_FOREIGN.

    """
    execution = Execution(
        plan=plan,
        recipes=catalogue.recipes,
        project=project,
        home=home,
        settings=settings,
        listen=listen,
        cancel=cancel,
    )
    return execution.run()


@dataclass(slots=True, kw_only=True)
class Execution:
    """The state of one run."""

    plan: Plan
    recipes: Mapping[str, Recipe]
    project: Project
    home: Home
    settings: Settings
    listen: Listener
    cancel: threading.Event
    store: Store = field(init=False)
    stacks: dict[str, Stack] = field(init=False)
    executor: Executor = field(init=False)
    models: Models = field(init=False)
    journal: Journal = field(init=False)
    outcomes: dict[str, JobOutcome] = field(default_factory=dict)
    broken: dict[str, EnginefarmError] = field(default_factory=dict)
    tuned: dict[str, Tuned | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Open the parts; nothing is written yet."""
        self.store = Store(self.home.store)
        self.stacks = take_lock(load_stacks(self.project.images), self.settings.lock)
        self.journal = Journal(self.home.journal)
        self._take("local" if self.settings.executor == AUTO else self.settings.executor)

    def run(self) -> tuple[JobOutcome, ...]:
        """Reuse, then make the rest."""
        self._find_gpus()
        self.listen(RunStarted(jobs=tuple(job.id for job in self.plan.jobs), parallel=self.settings.parallel))
        for refused in self.outcomes.values():
            self.listen(JobFinished(outcome=refused))
        for outcome in self._look_up([job for job in self.plan.jobs if job.id not in self.outcomes]):
            if outcome is not None:
                self._finish(outcome)
        missing = [job for job in self.plan.jobs if job.id not in self.outcomes]
        if missing:
            self._make(missing)
        else:
            sweep_dead_runs(self.home)
        return tuple(self.outcomes[job.id] for job in self.plan.jobs)

    def _take(self, executor: str) -> None:
        context = ExecutorContext(
            project=self.project,
            home=self.home,
            install=self.settings.install,
            cancel=self.cancel,
            listen=self.listen,
            keep=self.settings.keep_work,
            memory_bytes=self.settings.memory_bytes,
        )
        self.executor = EXECUTORS[executor](context)
        self.models = Models(
            project=self.project, home=self.home, store=self.store, executor=self.executor, stacks=self.stacks
        )

    def _find_gpus(self) -> None:
        """Find the GPUs of each job that is tuned on one; a job without is refused, all without is refused at once."""
        needing = [job for job in self.plan.jobs if self.stacks[job.stack].build.needs_gpu]
        gpus = visible_gpus(os.environ) if needing else ()
        names = ", ".join(dict.fromkeys(job.stack for job in needing))
        without = [name for name, stack in build_stacks(self.stacks).items() if not stack.build.needs_gpu]
        if self.settings.sealed is not None and not needing:
            stacks = ", ".join(dict.fromkeys(job.stack for job in self.plan.jobs))
            what = f"{stacks} builds without measuring anything, so no timing cache can seal its engines"
            fix = "leave --sealed out, or name a stack that tunes on a GPU with --stack"
            raise EnginefarmError(Reason.OPTION_UNSUPPORTED, what, fix=fix)
        if needing and not gpus:
            what = f"{names} can build only on a machine with an NVIDIA GPU, and this one has none"
            fix = f"stacks that need no GPU: {', '.join(without)}"
            raise EnginefarmError(Reason.GPU_NEEDED, what, why=hidden(os.environ), fix=fix)
        refused: list[JobOutcome] = []
        for job in needing:
            sms = self.stacks[job.stack].build.sms
            fitting = tunable(job, gpus, sms)
            if fitting:
                self.tuned[job.id] = Tuned(
                    gpus=fitting, sealed=self.settings.sealed, same_device=self.settings.sealed_here
                )
            else:
                error = wrong_gpu(job, gpus, sms)
                refused.append(JobOutcome(job=job.id, status=Status.FAILED, seconds=0.0, error=error))
        if refused and len(refused) == len(self.plan.jobs):
            raise refused[0].error or AssertionError
        self.outcomes.update((outcome.job, outcome) for outcome in refused)

    def _look_up(self, jobs: list[Job]) -> list[JobOutcome | None]:
        """Choose the executor and find what the store has already, in the order of the jobs."""
        if self.settings.executor != AUTO:
            self._identify(jobs)
            return self._reuse_all(jobs)
        # what was made without containers is as good: where all of it is here, neither Docker nor images are needed
        found = self._reuse_all(jobs)
        done = all(outcome is not None and outcome.status is Status.REUSED for outcome in found)
        return found if done or not docker_answers() or not self._contain(jobs) else self._reuse_all(jobs)

    def _contain(self, jobs: list[Job]) -> bool:
        """Take docker; where the images cannot be had, stay without containers and say so."""
        self._take("docker")
        try:
            self._identify(jobs)
        except EnginefarmError as error:
            if error.reason not in _NO_IMAGE:
                raise
            self.listen(Note(subject="images", text=f"{error.what}; stages run without containers"))
            self._take("local")
            return False
        return True

    def _identify(self, jobs: list[Job]) -> None:
        """Prepare the stacks whose software is unknown before it is there, such as images: keys depend on it."""
        stacks = [self.stacks[name] for name in dict.fromkeys(job.stack for job in jobs)]
        if any(self.models.exports(self.recipes[job.recipe]) for job in jobs):
            stacks.insert(0, self.models.export_stack())
        for stack in stacks:
            if not self.executor.identified(stack):
                self.executor.prepare(stack, self.home.logs / f"install-{stack.name}.log")

    def _reuse_all(self, jobs: list[Job]) -> list[JobOutcome | None]:
        with ThreadPoolExecutor(max_workers=host.processors()) as pool:
            return list(pool.map(self._reuse, jobs))

    def _reuse(self, job: Job) -> JobOutcome | None:
        started = time.monotonic()
        recipe = self.recipes[job.recipe]
        try:
            onnx = self.models.identity(recipe)
            if onnx is None:
                return None
            keys = make_keys(job, recipe, onnx, self.executor.runtime(self.stacks[job.stack]), self.tuned.get(job.id))
            entry = find_proved(self.store, keys, verify=self.settings.verify)
            if entry is None:
                return None
            manifest = read_manifest(self.store, entry)
        except EnginefarmError as error:
            if error.reason is Reason.MANIFEST_INVALID:
                return None
            return JobOutcome(job=job.id, status=Status.FAILED, seconds=time.monotonic() - started, error=error)
        return JobOutcome(job=job.id, status=Status.REUSED, seconds=time.monotonic() - started, manifest=manifest)

    def _make(self, jobs: list[Job]) -> None:
        self._check_disk(jobs)
        self.store.ensure_writable()
        with Workspace(self.home, keep=self.settings.keep_work) as workspace:
            if self.settings.keep_work:
                self.listen(Note(subject="work", text=f"the folders of all stages are kept in {workspace.folder}"))
            stages = StageRunner(
                executor=self.executor,
                workspace=workspace,
                journal=self.journal,
                listen=self.listen,
                cancel=self.cancel,
                timeout_s=self.settings.timeout_s,
                threads=max(1, host.processors() // self.settings.parallel),
            )
            runner = JobRunner(
                store=self.store,
                models=self.models,
                fetcher=Fetcher(self.home, self.cancel),
                stages=stages,
                verify=self.settings.verify,
            )
            run_tasks(self._tasks(jobs, runner), self.settings.parallel, host.available_memory_bytes(), self.cancel)
        for job in jobs:
            if job.id not in self.outcomes:
                error = EnginefarmError(Reason.INTERRUPTED, "stopped before it began")
                self._finish(JobOutcome(job=job.id, status=Status.CANCELLED, seconds=0.0, error=error))

    def _tasks(self, jobs: list[Job], runner: JobRunner) -> list[Task]:
        recipes = [self.recipes[name] for name in dict.fromkeys(job.recipe for job in jobs)]
        exported = [recipe for recipe in recipes if self._to_export(recipe)]
        stacks = [self.stacks[name] for name in dict.fromkeys(job.stack for job in jobs)]
        if exported:
            stacks.insert(0, self.models.export_stack())
        unready = {stack.name for stack in stacks if not self.executor.ready(stack)}
        tasks = [self._prepare_task(stack) for stack in stacks if stack.name in unready]
        tasks += [self._model_task(recipe, runner, unready) for recipe in exported]
        # longest first, as far as the journal knows: no long one is left running alone at the end
        jobs = sorted(jobs, key=self._expected_seconds, reverse=True)
        return tasks + [self._job_task(job, runner, unready, {recipe.name for recipe in exported}) for job in jobs]

    def _expected_seconds(self, job: Job) -> float:
        stages = ("lower", "build", "examine", "verify")
        known = (self.journal.expected_seconds(job.recipe, job.precision, job.stack, stage) for stage in stages)
        return sum(seconds or 0.0 for seconds in known)

    def _prepare_task(self, stack: Stack) -> Task:
        def prepare() -> None:
            subject = f"stack {stack.name}"
            expected = self.journal.expected_seconds("-", "-", stack.name, "install")
            self.listen(StepStarted(subject=subject, step="install", expected_s=expected))
            started = time.monotonic()
            try:
                self.executor.prepare(stack, self.home.logs / f"install-{stack.name}.log")
            except EnginefarmError as error:
                self.broken[subject] = error
            finally:
                seconds = time.monotonic() - started
                self.listen(
                    StepFinished(subject=subject, step="install", seconds=seconds, ok=subject not in self.broken)
                )

        return Task(name=f"stack {stack.name}", needs=frozenset(), memory_bytes=0, run=prepare)

    def _model_task(self, recipe: Recipe, runner: JobRunner, unready: set[str]) -> Task:
        stack = self.models.export_stack()

        def make() -> None:
            try:
                self._raise_broken(f"stack {stack.name}")
                self.models.obtain(recipe, runner.fetcher, runner.stages)
            except EnginefarmError as error:
                self.broken[f"export {recipe.name}"] = error

        memory = preflight.export_memory_bytes(self.journal.expected_rss(recipe.name, "-", stack.name, "export"))
        needs = frozenset({f"stack {stack.name}"} if stack.name in unready else ())
        return Task(name=f"export {recipe.name}", needs=needs, memory_bytes=memory, run=make)

    def _job_task(self, job: Job, runner: JobRunner, unready: set[str], exported: set[str]) -> Task:
        stack = self.stacks[job.stack]
        needed = [f"stack {job.stack}"] if job.stack in unready else []
        needed += [f"export {job.recipe}"] if job.recipe in exported else []

        def make() -> None:
            try:
                for name in needed:
                    self._raise_broken(name)
            except EnginefarmError as error:
                status = Status.CANCELLED if error.reason is Reason.INTERRUPTED else Status.FAILED
                self._finish(JobOutcome(job=job.id, status=status, seconds=0.0, error=error, log=error.log))
                return
            runtime = self.executor.runtime(stack)
            self._finish(runner.run(job, self.recipes[job.recipe], runtime, self.tuned.get(job.id)))

        seen = [self.journal.expected_rss(job.recipe, job.precision, job.stack, stage) for stage in ("build", "verify")]
        memory = preflight.job_memory_bytes(self._model_bytes(job), max((rss or 0 for rss in seen), default=0))
        return Task(name=job.id, needs=frozenset(needed), memory_bytes=memory, run=make)

    def _raise_broken(self, name: str) -> None:
        if name in self.broken:
            raise self.broken[name]

    def _finish(self, outcome: JobOutcome) -> None:
        self.outcomes[outcome.job] = outcome
        self.listen(JobFinished(outcome=outcome))

    def _to_export(self, recipe: Recipe) -> bool:
        return self.models.exports(recipe) and self.models.identity(recipe) is None

    def _model_bytes(self, job: Job) -> int | None:
        entries = self.store.find("onnx", self.models.key(self.recipes[job.recipe]).sha256)
        return sum(blob.size for blob in self.store.files(entries[0]).values()) if entries else None

    def _check_disk(self, jobs: list[Job]) -> None:
        exporting = any(self._to_export(self.recipes[job.recipe]) for job in jobs)
        names = dict.fromkeys([*(["export"] if exporting else []), *(job.stack for job in jobs)])
        install = [
            self.stacks[name].spec.installed_mib * preflight.MIB
            for name in names
            if not self.executor.ready(self.stacks[name])
        ]
        needed = preflight.disk_bytes([self._model_bytes(job) for job in jobs], install)
        preflight.check_disk(needed, host.free_disk_bytes(self.home.root), self.home.root)
