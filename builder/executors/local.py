"""Runs stages as processes of this machine, each in its stack's own Python environment."""

from __future__ import annotations

import os
from pathlib import Path

import builder
from builder import environments, process
from builder.environments import Environment
from builder.errors import EnginefarmError, Reason
from builder.executors.context import ExecutorContext, gpu_environment
from builder.executors.processors import Processors
from builder.key import Runtime
from builder.stacks import Stack
from builder.stage import StageRequest, StageResult, collect, lay_out
from builder.worker.addresses import ENVIRONMENT

_SOURCE = Path(builder.__file__).parent.parent
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "TZ")


class LocalExecutor:
    """One environment per stack, made on first use unless installing is off."""

    def __init__(self, context: ExecutorContext) -> None:
        self._home = context.home
        self._install = context.install
        self._cancel = context.cancel
        self._located: dict[str, Environment] = {}
        self._processors = Processors()

    def identified(self, stack: Stack) -> bool:  # noqa: ARG002  # a lock says all
        """Say whether keys can be made before anything is installed."""
        return True

    def runtime(self, stack: Stack) -> Runtime:
        """Name the stack's packages for the Python that its environment would have."""
        return Runtime(stack=stack, python=self._environment(stack).base.version)

    def ready(self, stack: Stack) -> bool:
        """Say whether the environment is installed."""
        return self._environment(stack).installed

    def prepare(self, stack: Stack, log: Path) -> None:
        """Install the stack's environment.

        Raises:
            EnginefarmError: ENVIRONMENT_MISSING when installing is off, INSTALL_FAILED.

        """
        environment = self._environment(stack)
        if environment.installed:
            return
        if not self._install:
            raise EnginefarmError(Reason.ENVIRONMENT_MISSING, f"stack {stack.name} is not installed")
        environments.install(environment, self._home, log, self._cancel)

    def run(self, stack: Stack, request: StageRequest) -> StageResult:
        """Run one stage as a process; its folder is the working folder, its own HOME and TMPDIR lie inside."""
        lay_out(request)
        scratch = request.folder / "tmp"
        scratch.mkdir()
        env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        env |= {"PYTHONPATH": str(_SOURCE), "PYTHONHASHSEED": "0", "PYTHONNOUSERSITE": "1", "PYTHONUNBUFFERED": "1"}
        env |= {"HOME": str(scratch), "TMPDIR": str(scratch)}
        # always as long: where the stack begins depends on the length of all variables
        env["ENGINEFARM_FARM"] = f"{os.getpid():010}"
        env |= gpu_environment(request)
        # a list of its own, also an empty one: what is set for the farm counts other GPUs
        env["CUDA_VISIBLE_DEVICES"] = request.gpu or ""
        if request.stage == "build":
            env |= ENVIRONMENT
        argv = [str(self._environment(stack).python), "-m", "builder.worker", str(request.folder)]
        with self._processors.lend() as processor:
            env["ENGINEFARM_CPU"] = str(processor)
            outcome = process.run(
                argv, cwd=request.folder, env=env, log=request.log, timeout_s=request.timeout_s, cancel=self._cancel
            )
        return collect(request, outcome)

    def _environment(self, stack: Stack) -> Environment:
        if stack.name not in self._located:
            self._located[stack.name] = environments.locate(stack, self._home)
            self._located[stack.name].touch()
        return self._located[stack.name]
