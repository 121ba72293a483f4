"""Loops that time one piece of work over and over, by the host's clock and by the GPU's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from .inputs import Case

if TYPE_CHECKING:
    from collections.abc import Callable

    from .protocol import Profile, Shape

# A GPU at rest takes a while to reach its clock; so does a processor. The farm looks at the clock meanwhile: the driver
# holds launches up for milliseconds when it is asked.
WARM_UP_S = 0.3
# Slow work must not hold a turn for hours: fewer runs are timed then, never fewer than these.
LONGEST_WARM_UP_S, LONGEST_S = 3.0, 8.0
FEWEST = 3


class Block(NamedTuple):
    """How much to do in one turn: runs before the clock, and runs timed per series."""

    warmup: int
    iterations: int


class GpuClock(Protocol):
    """Stamps on the stream that the work goes to."""

    def mark(self) -> Any:
        """Let the stream stamp the time when it gets there."""

    def wait(self) -> None:
        """Wait until the stream has nothing left to do."""

    def elapsed_ms(self, start: Any, stop: Any) -> float:
        """Return the milliseconds between two stamps that have happened."""


def read_block(request: dict[str, Any]) -> Block:
    """Read a turn's request."""
    return Block(int(request["warmup"]), int(request["iterations"]))


def warm_up(run: Callable[[], None], wait: Callable[[], None], block: Block) -> int:
    """Run without timing until the asked number of runs is done and the clocks had time to rise; return the runs."""
    started = time.perf_counter()
    runs = 0
    while True:
        run()
        # without waiting, a second's worth of work could pile up in the stream
        wait()
        runs += 1
        passed = time.perf_counter() - started
        if passed >= LONGEST_WARM_UP_S or (runs >= block.warmup and passed >= WARM_UP_S):
            return runs


def wall_times(run: Callable[[], None], wait: Callable[[], None], block: Block) -> list[float]:
    """Time each run by the host's clock, waiting for its end, in milliseconds."""
    times: list[float] = []
    begun = time.perf_counter_ns()
    while len(times) < block.iterations:
        start = time.perf_counter_ns()
        run()
        wait()
        stop = time.perf_counter_ns()
        times.append((stop - start) / 1e6)
        if len(times) >= FEWEST and (stop - begun) / 1e9 >= LONGEST_S:
            break
    return times


def gpu_times(run: Callable[[], None], clock: GpuClock, block: Block, each_ms: float) -> list[float]:
    """Time each run by the GPU's clock, in milliseconds. Runs follow one another without a wait by the host.

    `each_ms`: about how long one takes, to stay within the limit of a turn.
    """
    fits = int(LONGEST_S * 1000 / each_ms) if each_ms > 0 else block.iterations
    runs = max(min(block.iterations, fits), min(FEWEST, block.iterations))
    marks = []
    for _ in range(runs):
        start = clock.mark()
        run()
        marks.append((start, clock.mark()))
    clock.wait()
    return [clock.elapsed_ms(start, stop) for start, stop in marks]


def timed_cases(profiles: list[Profile], points: list[str]) -> list[Case]:
    """List the shapes to time: the points of each shape profile in the order given; equal shapes appear once."""
    found: list[Case] = []
    for profile in profiles:
        seen: list[dict[str, Shape]] = []
        for point in points:
            shapes: dict[str, Shape] = {name: getattr(ranges, point) for name, ranges in profile.inputs.items()}
            if shapes not in seen:
                seen.append(shapes)
                found.append(Case(profile.name, point, shapes))
    return found
