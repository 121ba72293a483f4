"""Benches without a GPU: players that answer turns from a script, and results that were never measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from builder.bench_players import Player
from builder.bench_result import (
    BaselineFacts,
    BenchCase,
    BenchPart,
    EngineCost,
    GpuConditions,
    GpuState,
    Ratio,
    Series,
    Timing,
)
from builder.errors import EnginefarmError, Reason
from builder.gpu import Gpu, GpuProcess, GpuSample
from builder.stage import StageRequest, StageResult
from builder.worker.turn_files import END, Turns

GPU = Gpu(uuid="GPU-1", index=0, name="NVIDIA H200", sm="9.0", driver="580.159.04", memory_bytes=150 << 30, mig=False)
CASES = [{"name": "default/opt", "shapes": {"x": [4, 3, 32, 32]}}]
ENGINE_FACTS: dict[str, Any] = {
    "tensorrt": "8.6.0",
    "cases": CASES,
    "load_seconds": 0.31,
    "context_bytes": 12 << 20,
    "loaded_bytes": 60 << 20,
    "used_bytes": 80 << 20,
    "layers": 42,
    "graph": True,
    "no_graph": "",
}
Answer = Callable[[int, dict[str, Any]], dict[str, Any] | None]


def look(clock: int | None = 1980, **changes: Any) -> GpuSample:
    """Make a look at a GPU that is doing well."""
    values: dict[str, Any] = {
        "sm_clock_mhz": clock,
        "memory_clock_mhz": 3201,
        "temperature_c": 41,
        "power_w": 180.0,
        "throttle": (),
        "memory_used_bytes": 1 << 30,
        "utilisation": 90,
    }
    return GpuSample(**{**values, **changes})


class FakeGauge:
    """Sees what it is told to see."""

    def __init__(self) -> None:
        self.next = look()
        self.others: list[GpuProcess] = []
        self.samples = 0

    def sample(self) -> GpuSample:
        self.samples += 1
        return self.next

    def strangers(self) -> list[GpuProcess]:
        return self.others


class _Stop(threading.Event):
    """Ends a thread that waits for its turn, as a signal ends a process."""

    def __init__(self, end: Path) -> None:
        super().__init__()
        self._end = end

    def set(self) -> None:
        super().set()
        if self._end.parent.is_dir():
            self._end.touch()


def fake_player(
    folder: Path,
    name: str,
    facts: Mapping[str, Any],
    answer: Answer,
    *,
    cancel: threading.Event | None = None,
    log: list[str] | None = None,
) -> Player:
    """Make a player whose stage is a thread; `answer` gets the number of the turn, and null makes it hang."""
    stop = _Stop(folder / name / "turn" / END)
    request = StageRequest(
        job="tiny", stage=name, inputs={}, params={}, folder=folder / name, timeout_s=60.0, gpu=GPU.uuid
    )

    def run() -> StageResult:
        turns = Turns(str(request.folder / "turn"))
        turns.ready(dict(facts))
        for number, wish in enumerate(turns.requests()):
            if log is not None:
                log.append(f"{name} {wish['do']}")
            reply = answer(number, wish)
            if reply is None:
                while not stop.wait(0.01):
                    pass
                raise EnginefarmError(Reason.INTERRUPTED, "killed")
            turns.answer(reply)
        return StageResult(outputs={}, data={}, seconds=1.0, max_rss_bytes=900 << 20)

    return Player(name, request, run, stop, cancel or threading.Event())


def engine_answer(times: list[float], compared: dict[str, Any] | None = None) -> Answer:
    """Answer each turn with the same times; copies take a tenth longer."""

    def answer(number: int, wish: dict[str, Any]) -> dict[str, Any]:
        if wish["do"] == "compare":
            return compared or {}
        both = {"wall": times, "gpu": [value * 0.9 for value in times]}
        copies = {"wall": [value * 1.1 for value in times]}
        return {"series": {"graph": both, "engine": both, "copies": copies}, "warmup_runs": 20}

    return answer


def baseline_answer(times: list[float], fails_at: int | None = None, hangs_at: int | None = None) -> Answer:
    """Answer each turn with the same times, fail in one, or hang in one."""

    def answer(number: int, wish: dict[str, Any]) -> dict[str, Any] | None:
        if number == fails_at:
            raise EnginefarmError(Reason.WORKER_DIED, "stage baseline was killed by signal 9", why="some log\nKilled")
        if number == hangs_at:
            return None
        return {"series": {"baseline": {"wall": times, "gpu": times}}, "warmup_runs": 20}

    return answer


def baseline_facts(kind: str) -> dict[str, Any]:
    """Say what a baseline says when it is ready."""
    return {
        "name": f"{kind}-cuda",
        "library": "torch",
        "version": "2.11.0",
        "device": "NVIDIA H200",
        "precision": "fp16",
        "settings": ["cudnn.benchmark"],
    }


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def series(median: float, *, spread: float = 0.02, drift: float = 0.004) -> Series:
    """Make figures around a median."""
    return Series(
        runs=200,
        median_ms=median,
        p5_ms=median * (1 - spread / 2),
        p95_ms=median * (1 + spread / 2),
        mean_ms=median,
        spread=spread,
        block_medians_ms=[median, median * (1 + drift)],
        drift=drift,
    )


def timing(name: str, median: float, ratio: float | None = None, **changes: Any) -> Timing:
    """Make a row; with a ratio it is a baseline's."""
    metrics = {"max_abs": 0.0021, "max_rel": 0.01, "mse": 1.2e-6, "cosine": 0.99999, "nonfinite": 0}
    values: dict[str, Any] = {
        "name": name,
        "role": "engine" if ratio is None else "baseline",
        "wall": series(median),
        "gpu": series(median * 0.9),
        "ratio": None if ratio is None else Ratio(median=ratio, low=ratio - 0.01, high=ratio + 0.02),
        "gpu_ratio": None,
        "noise": [],
        "difference": None if ratio is None else {"real": metrics},
    }
    return Timing(**{**values, **changes})


def state(clock: int) -> GpuState:
    """Make a look for a manifest."""
    return GpuState(
        sm_clock_mhz=clock,
        memory_clock_mhz=3201,
        temperature_c=35,
        power_w=120.0,
        throttle=[],
        memory_used_bytes=1 << 30,
    )


def conditions(**changes: Any) -> GpuConditions:
    """Make a GPU that is doing well."""
    values: dict[str, Any] = {
        "name": GPU.name,
        "uuid": GPU.uuid,
        "sm": GPU.sm,
        "driver": GPU.driver,
        "before": state(345),
        "after": state(1980),
        "round_clocks_mhz": [1980, 1980],
        "temperature_c": 41,
        "power_w": 181.6,
        "throttle": [],
        "strangers": [],
    }
    return GpuConditions(**{**values, **changes})


def result(**changes: Any) -> BenchPart:
    """Make a result: an engine, PyTorch twice, and ONNX Runtime that could not."""
    timings = [
        timing("engine (graph)", 0.2264),
        timing("engine", 0.2571),
        timing("engine + copies", 0.3412, gpu=None),
        timing("eager-cuda", 1.204, 5.32),
        timing("compile-cuda", 0.4127, 1.82),
    ]
    torch: dict[str, Any] = {"library": "torch", "version": "2.11.0", "device": "NVIDIA H200", "precision": "fp16"}
    torch["dropped"] = None
    facts = [
        BaselineFacts(name="eager-cuda", kind="eager", settings=["cudnn.benchmark"], **torch),
        BaselineFacts(
            name="compile-cuda", kind="compile", settings=["torch.compile mode=reduce-overhead dynamic=False"], **torch
        ),
        BaselineFacts(
            name="onnxruntime",
            kind="onnxruntime",
            library="",
            version="",
            device="",
            precision="",
            settings=[],
            dropped="the baseline's Python lacks a package: No module named 'onnxruntime'",
        ),
    ]
    values: dict[str, Any] = {
        "measured_at": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
        "verdict": "ok",
        "noise": [],
        "notes": [],
        "rounds": 5,
        "warmup": 20,
        "iterations": 200,
        "engine": EngineCost(
            **{name: value for name, value in ENGINE_FACTS.items() if name != "cases"}, max_rss_bytes=900 << 20
        ),
        "baselines": facts,
        "cases": [BenchCase(name="frames/opt", shapes={"mel": [1, 100, 256]}, timings=timings)],
        "gpu": conditions(),
    }
    return BenchPart(**{**values, **changes})
