"""From raw times to what may be claimed. Pure: times and looks at the GPU come in, figures and reasons go out."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from builder.bench_result import BenchCase, GpuConditions, Ratio, Series, Timing

# Above these, a series says more about the machine than about the engine.
SPREAD_LIMIT = 0.25
DRIFT_LIMIT = 0.05
CLOCK_LIMIT = 0.05
# The GPU protects itself: its clocks no longer follow the work.
FATAL_THROTTLE = ("hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown")
TOLD_THROTTLE = ("sw_power_cap",)

Blocks = Sequence[Sequence[float]]


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the ascending values lie, interpolated between neighbours.

    Raises:
        ValueError: there are no values.

    """
    if not ordered:
        msg = "no values"
        raise ValueError(msg)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def summarise(blocks: Blocks) -> Series:
    """Sum up one way of running: one block of times per round.

    Raises:
        ValueError: there are no blocks, or one is empty.

    """
    ordered = sorted(value for block in blocks for value in block)
    middle = percentile(ordered, 0.5)
    low, high = percentile(ordered, 0.05), percentile(ordered, 0.95)
    medians = [median(block) for block in blocks]
    return Series(
        runs=len(ordered),
        median_ms=middle,
        p5_ms=low,
        p95_ms=high,
        mean_ms=fmean(ordered),
        spread=_share(high - low, middle),
        block_medians_ms=medians,
        drift=_share(max(medians) - min(medians), median(medians)),
    )


def compare(engine: Series, other: Series) -> Ratio:
    """Divide block medians of the same round; what changes slowly hits both alike and falls out.

    Raises:
        ValueError: they have different numbers of rounds.

    """
    pairs = zip(other.block_medians_ms, engine.block_medians_ms, strict=True)
    ratios = [_share(theirs, ours) for theirs, ours in pairs]
    return Ratio(median=median(ratios), low=min(ratios), high=max(ratios))


def series_noise(wall: Series, gpu: Series | None) -> list[str]:
    """Say why times are noise: their spread by the best clock there is, and how far their medians drift."""
    found = []
    clock, best = ("GPU", gpu) if gpu is not None else ("wall", wall)
    if best.spread > SPREAD_LIMIT:
        found.append(f"{clock} times spread by {best.spread:.0%} of the median, more than {SPREAD_LIMIT:.0%}")
    for name, series in (("wall", wall), ("GPU", gpu)):
        if series is not None and series.drift > DRIFT_LIMIT:
            found.append(
                f"medians of {name} times differ by {series.drift:.1%} from round to round, more than {DRIFT_LIMIT:.0%}"
            )
    return found


def gpu_noise(gpu: GpuConditions) -> list[str]:
    """Say why the GPU's state makes noise of all times."""
    found = []
    fatal = [name for name in gpu.throttle if name in FATAL_THROTTLE]
    if fatal:
        found.append(f"the GPU was throttled: {', '.join(fatal)}")
    clocks = gpu.round_clocks_mhz
    if clocks and max(clocks) - min(clocks) > CLOCK_LIMIT * max(clocks):
        found.append(f"the SM clock was {min(clocks)} MHz in one round and {max(clocks)} MHz in another")
    if gpu.strangers:
        found.append(f"other programs were on the GPU: {', '.join(gpu.strangers)}")
    return found


def gpu_notes(gpu: GpuConditions) -> list[str]:
    """Say what of the GPU's state should be known although it is no noise."""
    found = []
    told = [name for name in gpu.throttle if name in TOLD_THROTTLE]
    if told:
        found.append(f"the GPU held its clocks down: {', '.join(told)}")
    if not gpu.round_clocks_mhz:
        found.append("the driver does not tell this GPU's clocks: nobody looked whether they changed")
    return found


def main_timing(case: BenchCase) -> Timing:
    """Return the engine's best way of running, which others are compared with: the first."""
    return case.timings[0]


def judged(case: BenchCase, *, claim: bool) -> BenchCase:
    """Return the case with ratios, where `claim` and quiet times allow them."""
    engine = main_timing(case)
    timings = []
    for timing in case.timings:
        if timing.role == "engine" or engine.noise or not claim:
            timings.append(timing)
            continue
        if timing.noise:
            # however it varies, this much of a difference remains
            bound = _share(timing.wall.p5_ms, engine.wall.p95_ms)
            timings.append(timing.model_copy(update={"at_least": bound if bound > 1 else None}))
            continue
        both = timing.gpu is not None and engine.gpu is not None
        ratios = {
            "ratio": compare(engine.wall, timing.wall),
            "gpu_ratio": compare(engine.gpu, timing.gpu) if both and engine.gpu and timing.gpu else None,
        }
        timings.append(timing.model_copy(update=ratios))
    return case.model_copy(update={"timings": timings})


def _share(part: float, whole: float) -> float:
    # a clock too coarse for the work reads zero
    return part / whole if whole > 0 else float(part > 0)
