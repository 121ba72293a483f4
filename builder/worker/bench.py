"""Stage `bench`: an engine takes turns with its baselines; in each it is timed for one block of runs.

Times go back raw, in milliseconds: what they mean is decided where those of all processes are together.
"""

from __future__ import annotations

import importlib
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from .cuda import Cuda
from .inputs import make_all
from .metrics import compare
from .protocol import Outcome, StageFailure
from .refitted import loadable
from .timing import gpu_times, read_block, timed_cases, wall_times, warm_up
from .trt import adapter, read_request
from .turn_files import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from .inputs import Case
    from .protocol import Job
    from .timing import Block

Arrays = dict[str, np.ndarray]
# Untimed runs between two series: another way of running has caches of its own.
BETWEEN = 5
COMPARE = "compare"


def run(job: Job) -> Outcome:
    """Load the engine, then measure whenever it is its turn.

    Raises:
        StageFailure: gpu-needed, engine-invalid, engine-version, sm-mismatch, library-missing, out-of-memory or
            profile-invalid.

    """
    turns = Turns()
    bench = EngineBench(job, Cuda())
    turns.ready(bench.facts)
    for request in turns.requests():
        turns.answer(bench.compare(request["files"]) if request["do"] == COMPARE else bench.measure(request))
    return Outcome({}, bench.facts)


class CudaClock:
    """CUDA events on one stream; they are made once and used again."""

    def __init__(self, cuda: Cuda, stream: int) -> None:
        self._cuda, self._stream = cuda, stream
        self._events: list[int] = []
        self._used = 0

    def mark(self) -> int:
        """Let the stream stamp an event."""
        if self._used == len(self._events):
            self._events.append(self._cuda.event())
        event = self._events[self._used]
        self._used += 1
        self._cuda.record(event, self._stream)
        return event

    def wait(self) -> None:
        """Wait for the stream; the events may be stamped anew after their times were read."""
        self._cuda.synchronize(self._stream)
        self._used = 0

    def elapsed_ms(self, start: int, stop: int) -> float:
        """Return the time between two events."""
        return self._cuda.elapsed_ms(start, stop)


class EngineBench:
    """A loaded engine and what it costs. `facts` go to the farm before the first turn."""

    def __init__(self, job: Job, cuda: Cuda) -> None:
        self._cuda = cuda
        self._cases = {case.name: case for case in timed_cases(job.profiles, job.params["points"])}
        self._profiles = [profile.name for profile in job.profiles]
        self._feeds = {name: make_all(job.params["inputs"], case) for name, case in self._cases.items()}
        self._stream = cuda.stream()
        self._clock = CudaClock(cuda, self._stream)
        self._prepared: str | None = None
        self._graph: int | None = None
        self._no_graph = ""
        self._captured: set[str] = set()
        request = read_request(job)
        with suppress(ImportError):
            # the adapter says what is missing; what it takes to load TensorRT is not the engine's
            importlib.import_module(request.import_name)
        engine = loadable(job, request)
        free = cuda.memory()[0]
        started = time.perf_counter()
        self._engine = adapter(request.family).load(request, cuda, engine)
        loaded_s = time.perf_counter() - started
        after_load = cuda.memory()[0]
        least = after_load
        self._outputs: dict[str, Arrays] = {}
        for name in self._cases:
            self._outputs[name] = self._first_run(name)
            least = min(least, cuda.memory()[0])
        self.facts: dict[str, Any] = {
            "tensorrt": str(importlib.import_module(request.import_name).__version__),
            "device": cuda.device._asdict(),
            "cases": [_case_json(case) for case in self._cases.values()],
            "load_seconds": round(loaded_s, 6),
            "context_bytes": self._engine.device_memory_bytes,
            "loaded_bytes": max(free - after_load, 0),
            "used_bytes": max(free - least, 0),
            "layers": self._engine.num_layers,
            "graph": not self._no_graph,
            "no_graph": self._no_graph,
        }

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time one block at one case, in every way of running; times are lists of milliseconds per way and clock."""
        self._prepare(request["case"])
        block = read_block(request)
        runs = warm_up(self._best, self._wait, block)
        series: dict[str, dict[str, list[float]]] = {}
        if self._graph is not None:
            series["graph"] = self._both(self._launch, block)
        series["engine"] = self._both(self._enqueue, block)
        series["copies"] = {"wall": self._wall(self._with_copies, block)}
        return {"series": series, "warmup_runs": runs}

    def compare(self, files: dict[str, str]) -> dict[str, Any]:
        """Compare the outputs with those of each baseline: by baseline, case and output, as `metrics.compare`."""
        return {name: self._compare(path) for name, path in files.items()}

    def _compare(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                case, output = key.split("|", 1)
                if output in self._outputs.get(case, {}):
                    found.setdefault(case, {})[output] = compare(archive[key], self._outputs[case][output])
        return found

    def _first_run(self, name: str) -> Arrays:
        self._prepare(name)
        self._best()
        self._wait()
        return self._engine.fetch()

    def _prepare(self, name: str) -> None:
        """Set shapes, feed inputs and capture a graph, unless that case is in place already."""
        if self._prepared == name:
            return
        case = self._cases[name]
        self._engine.prepare(self._profiles.index(case.profile), dict(case.shapes))
        self._engine.feed(self._feeds[name])
        # the first run at new shapes does work that cannot be captured
        self._enqueue()
        self._wait()
        self._graph = self._capture(name)
        self._prepared = name

    def _capture(self, name: str) -> int | None:
        try:
            graph = self._cuda.capture(self._stream, self._enqueue)
            self._captured.add(name)
        except StageFailure as failure:
            if name in self._captured:
                # a round without it could be compared with nothing
                raise
            self._no_graph = "\n".join(text for text in (failure.message, failure.why) if text)
            return None
        return graph

    def _both(self, work: Callable[[], None], block: Block) -> dict[str, list[float]]:
        wall = self._wall(work, block)
        return {"wall": wall, "gpu": gpu_times(work, self._clock, block, min(wall))}

    def _wall(self, work: Callable[[], None], block: Block) -> list[float]:
        for _ in range(min(BETWEEN, block.warmup)):
            work()
        self._wait()
        return wall_times(work, self._wait, block)

    def _best(self) -> None:
        if self._graph is not None:
            self._launch()
        else:
            self._enqueue()

    def _launch(self) -> None:
        self._cuda.launch(self._graph or 0, self._stream)

    def _enqueue(self) -> None:
        self._engine.enqueue(self._stream)

    def _with_copies(self) -> None:
        self._engine.copy_in(self._stream)
        self._best()
        self._engine.copy_out(self._stream)

    def _wait(self) -> None:
        self._cuda.synchronize(self._stream)


def _case_json(case: Case) -> dict[str, Any]:
    return {"name": case.name, "shapes": {name: list(shape) for name, shape in case.shapes.items()}}
