"""Stage `baseline`: what people would run without an engine takes turns with it, in a Python of the user's choice.

Kinds: `eager` and `compile` run the recipe's own PyTorch model in the job's precision, `onnxruntime` the ONNX model
before lowering. Where there is no GPU they run on the CPU and say so.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Callable, Protocol, cast

import numpy as np

from .protocol import Outcome, StageFailure
from .timing import gpu_times, read_block, timed_cases, wall_times, warm_up
from .turn_files import Turns

if TYPE_CHECKING:
    from .inputs import Case
    from .protocol import Job
    from .timing import GpuClock

Arrays = dict[str, np.ndarray]
OUTPUTS = "out/outputs.npz"
KINDS = {"eager": "baseline_torch", "compile": "baseline_torch", "onnxruntime": "baseline_onnx"}


class Runner(Protocol):
    """One way to run a model. Inputs of a case lie ready on its device once it is prepared."""

    clock: GpuClock | None
    facts: dict[str, Any]

    def prepare(self, case: Case) -> None:
        """Put the inputs of a case in place."""

    def run(self) -> None:
        """Begin one run."""

    def wait(self) -> None:
        """Wait until it is done."""

    def fetch(self) -> Arrays:
        """Run once and return the outputs, floating ones as float32 where NumPy lacks their type."""


def run(job: Job) -> Outcome:
    """Set the baseline up, then measure whenever it is its turn.

    Raises:
        StageFailure: library-missing where its package is not installed, model-invalid where it cannot run the model,
            out-of-memory; else as the export stage.

    """
    turns = Turns()
    cases = {case.name: case for case in timed_cases(job.profiles, job.params["points"])}
    runner = _open(job)
    outputs: Arrays = {}
    for name, case in cases.items():
        runner.prepare(case)
        outputs.update({f"{name}|{output}": values for output, values in _attempt(runner.fetch).items()})
    np.savez(OUTPUTS, **cast("dict[str, Any]", outputs))
    turns.ready(runner.facts)
    for request in turns.requests():
        runner.prepare(cases[request["case"]])
        turns.answer(_measure(runner, request))
    return Outcome({"outputs": OUTPUTS}, runner.facts)


def _open(job: Job) -> Runner:
    kind = job.params["kind"]
    try:
        module = importlib.import_module(f".{KINDS[kind]}", __package__)
        return cast("Runner", module.open_runner(job))
    except ImportError as error:
        raise StageFailure(
            "library-missing",
            f"the baseline's Python lacks a package: {error}",
            fix="install it there, or name another Python with --baseline-python",
        ) from error


def _measure(runner: Runner, request: dict[str, Any]) -> dict[str, Any]:
    block = read_block(request)
    runs = warm_up(runner.run, runner.wait, block)
    wall = wall_times(runner.run, runner.wait, block)
    series = {"wall": wall}
    if runner.clock is not None:
        series["gpu"] = gpu_times(runner.run, runner.clock, block, min(wall))
    return {"series": {"baseline": series}, "warmup_runs": runs}


def _attempt(fetch: Callable[[], Arrays]) -> Arrays:
    try:
        return fetch()
    except StageFailure:
        raise
    except Exception as error:  # compilers and runtimes share no base class of errors
        text = f"{type(error).__name__}: {error}".strip()[:2000]
        reason = "out-of-memory" if "out of memory" in text.lower() else "model-invalid"
        raise StageFailure(reason, "the baseline cannot run the model", why=text) from error
