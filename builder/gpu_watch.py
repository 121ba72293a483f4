"""Watches a GPU while a stage runs: peak memory, temperature, clocks, what slowed it down, and who else was there."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from builder.errors import EnginefarmError
from builder.gpu import GpuProcess, GpuSample, processes, sample

INTERVAL_S = 0.1
# asking for programs costs more than a look at the clocks
_PROGRAMS_EVERY = 5
_WORKER = b"builder.worker"
_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What was seen of a GPU. A figure is null where the driver said nothing, or not while something ran.

    Clocks and `throttle` (the reasons of all looks together, sorted) are those of looks at which something ran on the
    GPU; all looks where the driver does not tell. Memory counts all programs; `first_memory_bytes` was used at the
    start. `neighbours`: programs that no farm started, as far as this process can see. `problem`: why looking ended
    early.
    """

    looks: int
    first_memory_bytes: int | None
    peak_memory_bytes: int | None
    max_temperature_c: int | None
    min_sm_clock_mhz: int | None
    max_sm_clock_mhz: int | None
    throttle: tuple[str, ...]
    neighbours: tuple[GpuProcess, ...]
    problem: str | None


class Watch:
    """A context manager; `seen` says what it has seen so far. An unreadable GPU ends the watch, not the stage.

    Each look takes the driver a few milliseconds, in which launches of kernels can be late: a benchmark is better
    watched from one `sample` before and one after it.
    """

    def __init__(self, uuid: str, *, interval_s: float = INTERVAL_S) -> None:
        self._uuid = uuid
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._samples: list[GpuSample] = []
        self._programs: dict[int, GpuProcess | None] = {}
        self._problem: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, name="gpu-watch", daemon=True)

    def __enter__(self) -> Self:
        """Look once, so that there is something to compare with, and go on in a thread."""
        self._look(programs=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop looking."""
        self._end.set()
        self._thread.join()

    @property
    def seen(self) -> Watched:
        """All that was seen until now."""
        with self._lock:
            samples, programs, problem = list(self._samples), list(self._programs.values()), self._problem
        busy = [one for one in samples if one.utilisation is None or one.utilisation > 0]
        memory = [one.memory_used_bytes for one in samples if one.memory_used_bytes is not None]
        heat = [one.temperature_c for one in samples if one.temperature_c is not None]
        clocks = [one.sm_clock_mhz for one in busy if one.sm_clock_mhz is not None]
        return Watched(
            looks=len(samples),
            first_memory_bytes=samples[0].memory_used_bytes if samples else None,
            peak_memory_bytes=max(memory, default=None),
            max_temperature_c=max(heat, default=None),
            min_sm_clock_mhz=min(clocks, default=None),
            max_sm_clock_mhz=max(clocks, default=None),
            throttle=tuple(sorted({reason for one in busy for reason in one.throttle or ()})),
            neighbours=tuple(one for one in programs if one is not None),
            problem=problem,
        )

    def _work(self) -> None:
        turn = 0
        while self._problem is None and not self._end.wait(self._interval_s):
            turn += 1
            self._look(programs=turn % _PROGRAMS_EVERY == 0)

    def _look(self, *, programs: bool) -> None:
        try:
            one = sample(self._uuid)
            found = processes(self._uuid) if programs else ()
        except EnginefarmError as error:
            self._problem = error.why or error.what
            return
        with self._lock:
            self._samples.append(one)
            for program in found:
                # judged once: a program that has ended cannot be asked any more
                if program.pid not in self._programs:
                    self._programs[program.pid] = program if _foreign(program.pid) else None
                elif self._programs[program.pid] is not None:
                    self._programs[program.pid] = program


def _foreign(pid: int) -> bool:
    """Say whether a program is surely none of a farm's: the lease keeps the workers of other farms away.

    A worker is known by its command line, in a container, too. One that cannot be read, such as that of a program
    outside the container in which the farm itself runs, counts as the worker.
    """
    if pid < 1:
        return False
    # in a container the farm itself may be the first program
    while pid != os.getpid():
        if pid <= 1:
            return True
        try:
            command = (_PROC / str(pid) / "cmdline").read_bytes()
            # the name in front, in brackets, may hold anything
            parent = int((_PROC / str(pid) / "stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            return False
        # a program that is ending has no command line any more
        if not command or _WORKER in command:
            return False
        pid = parent
    return False
