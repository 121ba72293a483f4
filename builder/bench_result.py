"""What a bench found: part of an engine's manifest, and what reports and scripts read."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Series(_Part):
    """Times of one way of running, by one clock, in milliseconds over all rounds."""

    runs: int = Field(description="Timed runs.")
    median_ms: float = Field(description="Median of all runs.")
    p5_ms: float = Field(description="Five of a hundred runs took less.")
    p95_ms: float = Field(description="Five of a hundred runs took more.")
    mean_ms: float = Field(description="Mean of all runs.")
    spread: float = Field(description="(p95 - p5) / median.")
    block_medians_ms: list[float] = Field(description="Median of each round's block, in the order of rounds.")
    drift: float = Field(description="(largest - smallest block median) / median of block medians.")


class Ratio(_Part):
    """How many times as long as the engine something takes: block medians of the same round, divided."""

    median: float = Field(description="Median over the rounds.")
    low: float = Field(description="Smallest of the rounds.")
    high: float = Field(description="Largest of the rounds.")


class Timing(_Part):
    """One way of running at one case."""

    name: str = Field(description="engine (graph), engine, engine + copies, or a baseline such as eager-cuda.")
    role: Literal["engine", "baseline"] = Field(description="Whether this is the engine or what it is compared with.")
    wall: Series = Field(description="By the host's clock, from the call until the GPU is done.")
    gpu: Series | None = Field(description="By the GPU's clock, runs back to back; null where it cannot be read.")
    ratio: Ratio | None = Field(
        description="Wall time against the engine's; null for the engine, and where noise forbids."
    )
    gpu_ratio: Ratio | None = Field(
        description="GPU time against the engine's; null for the engine, and where noise forbids."
    )
    at_least: float | None = Field(
        default=None,
        description="Of a baseline whose times alone are noise: its wall time at 5 percent over the engine's at 95 "
        "percent of the runs, where that is above 1; null otherwise.",
    )
    noise: list[str] = Field(description="Why these times say little; empty if they can be trusted.")
    difference: dict[str, dict[str, Any]] | None = Field(
        description="The engine's outputs against this baseline's, per output; null for the engine."
    )


class BenchCase(_Part):
    """One set of input shapes."""

    name: str = Field(description="Shape profile and point, such as frames/opt.")
    shapes: dict[str, list[int]] = Field(description="Shape of each input.")
    timings: list[Timing] = Field(description="The engine's first.")


class EngineCost(_Part):
    """What it takes to have the engine."""

    tensorrt: str = Field(description="TensorRT that ran it.")
    load_seconds: float = Field(description="Reading the file, deserialising it and making a context.")
    context_bytes: int = Field(description="GPU memory of one execution context, as TensorRT says.")
    loaded_bytes: int = Field(description="GPU memory that loading took, CUDA's own context left out.")
    used_bytes: int = Field(description="GPU memory at most after runs at all cases, CUDA's own context left out.")
    max_rss_bytes: int = Field(description="Host memory of the process at most.")
    layers: int = Field(description="Layers of the engine.")
    graph: bool = Field(description="True if the engine could be captured in a CUDA graph.")
    no_graph: str = Field(description="Why not; empty if it could.")


class BaselineFacts(_Part):
    """What the engine was compared with."""

    name: str = Field(description="Kind and device, such as eager-cuda.")
    kind: str = Field(description="eager, compile or onnxruntime.")
    library: str = Field(description="Package that ran it; empty where it did not get that far.")
    version: str = Field(description="Version of the package; empty where it did not get that far.")
    device: str = Field(description="Where it ran; empty where it did not get that far.")
    precision: str = Field(description="Precision it ran in; empty where it did not get that far.")
    settings: list[str] = Field(description="Settings that matter for speed.")
    dropped: str | None = Field(description="Why it has no times; null if it has.")


class GpuState(_Part):
    """One look at the GPU; null is what the driver does not say."""

    sm_clock_mhz: int | None = Field(description="Clock of the multiprocessors.")
    memory_clock_mhz: int | None = Field(description="Clock of the memory.")
    temperature_c: int | None = Field(description="Temperature.")
    power_w: float | None = Field(description="Power.")
    throttle: list[str] | None = Field(description="What held the clocks down, in nvidia-smi's words.")
    memory_used_bytes: int | None = Field(description="Memory in use by all programs.")


class GpuConditions(_Part):
    """The GPU before, after and during the timed runs."""

    name: str = Field(description="Name of the GPU.")
    uuid: str = Field(description="UUID of the GPU.")
    sm: str = Field(description="Compute capability.")
    driver: str = Field(description="Driver.")
    before: GpuState = Field(description="Before anything was loaded.")
    after: GpuState = Field(description="After the last run.")
    round_clocks_mhz: list[int] = Field(
        description="Highest SM clock seen in the engine's turns, per round; beside timed runs, not in them."
    )
    temperature_c: int | None = Field(description="Highest temperature seen.")
    power_w: float | None = Field(description="Highest power seen.")
    throttle: list[str] = Field(description="All that held the clocks down while runs were timed.")
    strangers: list[str] = Field(description="Programs of others on the GPU.")


class BenchPart(_Part):
    """How fast the engine is, what that was compared with, and whether the figures can be trusted."""

    measured_at: datetime = Field(description="When.")
    verdict: Literal["ok", "noise"] = Field(description="noise: the figures are kept, but no ratio is claimed.")
    noise: list[str] = Field(description="Why it is noise.")
    notes: list[str] = Field(description="What else should be known.")
    rounds: int = Field(description="Rounds; in each, every process has one turn per case.")
    warmup: int = Field(description="Untimed runs before each block, at least; never less than 0.3 s.")
    iterations: int = Field(description="Timed runs per way of running and case, over all rounds, at most.")
    engine: EngineCost = Field(description="What it takes to have the engine.")
    baselines: list[BaselineFacts] = Field(description="What it was compared with, dropped ones included.")
    cases: list[BenchCase] = Field(description="Times per set of input shapes.")
    gpu: GpuConditions = Field(description="The GPU and its state.")

    @property
    def quiet(self) -> bool:
        """True if neither the whole nor a single way of running is noise."""
        return self.verdict == "ok" and not any(timing.noise for case in self.cases for timing in case.timings)
