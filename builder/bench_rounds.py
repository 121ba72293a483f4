"""Times an engine and its baselines in turns: A B C, B C A, C A B; one process computes at a time, the others wait."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from typing import Any, Protocol

from builder.bench_players import Player, rotated
from builder.bench_result import (
    BaselineFacts,
    BenchCase,
    BenchPart,
    EngineCost,
    GpuConditions,
    GpuState,
    Timing,
)
from builder.bench_statistics import gpu_noise, gpu_notes, judged, main_timing, series_noise, summarise
from builder.errors import EnginefarmError, Reason
from builder.gpu import Gpu, GpuProcess, GpuSample
from builder.stage import StageResult
from builder.worker.turn_files import FOLDER

WAYS = {"graph": "engine (graph)", "engine": "engine", "copies": "engine + copies"}
OUTPUTS = "out/outputs.npz"
# Below this cosine, two outputs are not those of one model.
_UNLIKE = 0.9

Say = Callable[[str], None]
# case, then way of running, then clock: one list of times per round
Blocks = dict[str, dict[str, dict[str, list[list[float]]]]]


class Gauge(Protocol):
    """What can be seen of the GPU from outside."""

    def sample(self) -> GpuSample:
        """Look once."""
        ...

    def strangers(self) -> Sequence[GpuProcess]:
        """List the programs on the GPU that are not ours."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How much is measured. `setup_s` limits loading, compiling and a first run; `turn_s` one turn."""

    rounds: int
    warmup: int
    iterations: int
    setup_s: float = 900.0
    turn_s: float = 150.0

    @property
    def block(self) -> int:
        """Timed runs per turn and way of running."""
        return math.ceil(self.iterations / self.rounds)


@dataclass(slots=True, kw_only=True)
class Match:
    """One bench under way, and what it has found so far."""

    engine: Player
    baselines: Sequence[Player]
    rounds: Rounds
    gauge: Gauge
    say: Say
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    times: dict[str, Blocks] = field(default_factory=dict)
    differences: dict[str, dict[str, Any]] = field(default_factory=dict)
    looks: list[GpuSample] = field(default_factory=list)
    clocks: list[int] = field(default_factory=list)
    seen_strangers: dict[int, GpuProcess] = field(default_factory=dict)

    def play(self, gpu: Gpu) -> BenchPart:
        """Measure everything and sum it up.

        Raises:
            EnginefarmError: what fails the engine's stage, STAGE_TIMEOUT, INTERRUPTED, GPU_UNREADABLE. A baseline that
                fails or hangs is dropped.

        """
        before = self.gauge.sample()
        with ExitStack() as living:
            for player in (self.engine, *self.baselines):
                living.callback(player.abort)
            self.facts[self.engine.name] = self.engine.begin(self.rounds.setup_s)
            for baseline in self.baselines:
                self._attempt(baseline, partial(self._set_up, baseline))
            self._all_rounds()
            after = self.gauge.sample()
            self._compare()
            for baseline in self._playing():
                # it has done its part, however it ends
                with suppress(EnginefarmError):
                    baseline.end()
            result = self.engine.end()
        return self._summary(gpu, before, after, result)

    def _set_up(self, player: Player) -> None:
        self.facts[player.name] = player.begin(self.rounds.setup_s)

    def _all_rounds(self) -> None:
        cases = [str(case["name"]) for case in self.facts[self.engine.name]["cases"]]
        everybody = (self.engine, *self.baselines)
        for number in range(self.rounds.rounds):
            self._look_around()
            fastest = 0
            for case in cases:
                for player in rotated(everybody, number):
                    if player is self.engine:
                        fastest = max(fastest, self._turn(player, case))
                    elif player.name not in self.dropped:
                        self._attempt(player, partial(self._turn, player, case))
            if fastest:
                self.clocks.append(fastest)
        self._look_around()

    def _turn(self, player: Player, case: str) -> int:
        """Give one turn; return the highest SM clock seen in it, 0 where the driver does not tell."""
        looks: list[GpuSample] = []
        wish = {"do": "measure", "case": case, "warmup": self.rounds.warmup, "iterations": self.rounds.block}
        answer = player.play(wish, self.rounds.turn_s, lambda: looks.append(self.gauge.sample()))
        self.looks += looks
        ways = self.times.setdefault(player.name, {}).setdefault(case, {})
        for way, clocks in answer["series"].items():
            for clock, block in clocks.items():
                ways.setdefault(way, {}).setdefault(clock, []).append(block)
        return max((look.sm_clock_mhz or 0 for look in looks), default=0)

    def _attempt(self, player: Player, action: Callable[[], object]) -> None:
        """Do something with a baseline; one that cannot go on is dropped."""
        try:
            action()
        except EnginefarmError as error:
            if error.reason in {Reason.INTERRUPTED, Reason.GPU_UNREADABLE}:
                raise
            player.abort()
            text = error.what if not error.why else f"{error.what}: {_last_line(error.why)}"
            self.dropped[player.name] = text
            self.times.pop(player.name, None)
            self.say(f"baseline {player.name} is left out: {text}")

    def _playing(self) -> list[Player]:
        return [player for player in self.baselines if player.name not in self.dropped]

    def _look_around(self) -> None:
        for one in self.gauge.strangers():
            self.seen_strangers[one.pid] = one

    def _compare(self) -> None:
        """Hand the baselines' outputs to the engine's stage: arrays are nothing for the farm."""
        files: dict[str, str] = {}
        for player in self._playing():
            made = player.request.folder / OUTPUTS
            if made.is_file():
                files[player.name] = f"{FOLDER}/outputs.{player.name}.npz"
                shutil.copyfile(made, self.engine.request.folder / files[player.name])
        if files:
            self.differences = self.engine.play({"do": "compare", "files": files}, self.rounds.turn_s)

    def _summary(self, gpu: Gpu, before: GpuSample, after: GpuSample, result: StageResult) -> BenchPart:
        conditions = self._conditions(gpu, before, after)
        cases = [self._case(case["name"], case["shapes"]) for case in self.facts[self.engine.name]["cases"]]
        noise = gpu_noise(conditions)
        noise += [f"{case.name}: {why}" for case in cases for why in main_timing(case).noise]
        return BenchPart(
            measured_at=datetime.now(tz=timezone.utc),
            verdict="noise" if noise else "ok",
            noise=noise,
            notes=[*gpu_notes(conditions), *_notes(cases)],
            rounds=self.rounds.rounds,
            warmup=self.rounds.warmup,
            iterations=self.rounds.block * self.rounds.rounds,
            engine=self._cost(result),
            baselines=[self._baseline(player.name) for player in self.baselines],
            cases=[judged(case, claim=not noise) for case in cases],
            gpu=conditions,
        )

    def _case(self, name: str, shapes: dict[str, list[int]]) -> BenchCase:
        own = self.times[self.engine.name][name]
        timings = [_timing(title, "engine", own[way], None) for way, title in WAYS.items() if way in own]
        for player in self._playing():
            difference = self.differences.get(player.name, {}).get(name)
            title, ways = self.facts[player.name]["name"], self.times[player.name][name]
            timings += [_timing(title, "baseline", clocks, difference) for clocks in ways.values()]
        return BenchCase(name=name, shapes=shapes, timings=timings)

    def _cost(self, result: StageResult) -> EngineCost:
        facts = self.facts[self.engine.name]
        taken = (
            "tensorrt",
            "load_seconds",
            "context_bytes",
            "loaded_bytes",
            "used_bytes",
            "layers",
            "graph",
            "no_graph",
        )
        return EngineCost(**{name: facts[name] for name in taken}, max_rss_bytes=result.max_rss_bytes)

    def _baseline(self, kind: str) -> BaselineFacts:
        facts = self.facts.get(kind, {})
        texts = {name: facts.get(name, "") for name in ("library", "version", "device", "precision")}
        return BaselineFacts(
            name=facts.get("name", kind),
            kind=kind,
            settings=facts.get("settings", []),
            dropped=self.dropped.get(kind),
            **texts,
        )

    def _conditions(self, gpu: Gpu, before: GpuSample, after: GpuSample) -> GpuConditions:
        every = [*self.looks, after]
        return GpuConditions(
            name=gpu.name,
            uuid=gpu.uuid,
            sm=gpu.sm,
            driver=gpu.driver,
            before=_state(before),
            after=_state(after),
            round_clocks_mhz=self.clocks,
            temperature_c=max((look.temperature_c for look in every if look.temperature_c is not None), default=None),
            power_w=max((look.power_w for look in every if look.power_w is not None), default=None),
            throttle=sorted({reason for look in self.looks for reason in look.throttle or ()}),
            strangers=[one.text for one in self.seen_strangers.values()],
        )


def _timing(name: str, role: str, clocks: dict[str, list[list[float]]], difference: dict[str, Any] | None) -> Timing:
    wall = summarise(clocks["wall"])
    gpu = summarise(clocks["gpu"]) if "gpu" in clocks else None
    return Timing.model_validate(
        {
            "name": name,
            "role": role,
            "wall": wall,
            "gpu": gpu,
            "ratio": None,
            "gpu_ratio": None,
            "noise": series_noise(wall, gpu),
            "difference": difference,
        }
    )


def _notes(cases: Sequence[BenchCase]) -> list[str]:
    """Tell of baselines without a ratio, and of outputs that are not those of the same model."""
    found = []
    for case in cases:
        for timing in case.timings:
            if timing.role == "baseline" and timing.noise:
                found.append(f"{case.name}: no ratio to {timing.name}: {'; '.join(timing.noise)}")
            for output, metrics in (timing.difference or {}).items():
                cosine = metrics.get("cosine")
                if cosine is None or cosine < _UNLIKE:
                    found.append(f"{case.name}: output {output} is not that of {timing.name}")
    return found


def _state(look: GpuSample) -> GpuState:
    return GpuState(
        sm_clock_mhz=look.sm_clock_mhz,
        memory_clock_mhz=look.memory_clock_mhz,
        temperature_c=look.temperature_c,
        power_w=look.power_w,
        throttle=None if look.throttle is None else list(look.throttle),
        memory_used_bytes=look.memory_used_bytes,
    )


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
