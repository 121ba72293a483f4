"""Entry of a stage's process: `python -m builder.worker STAGE_DIR`."""

from __future__ import annotations

import ctypes
import importlib
import os
import resource
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from .protocol import PROTOCOL, ProtocolError, StageFailure, read_job, write_json

if TYPE_CHECKING:
    from .protocol import Job, Outcome

# Imported only when asked for: a stack has the packages of its own stages, not of the others.
STAGES = {
    "export": "export",
    "lower": "lower",
    "build": "build",
    "examine": "examine",
    "verify": "verify",
    "outputs": "outputs",
    "bench": "bench",
    "baseline": "baseline",
}
PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run one stage; return 0 when result.json was written, whatever it says."""
    started = time.monotonic()
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m builder.worker STAGE_DIR\n")
        return 2
    _die_with_the_farm()
    if os.environ.get("ENGINEFARM_LEASE") == "stdin":
        threading.Thread(target=_end_with_input, daemon=True).start()
    os.chdir(arguments[0])
    job = read_job("job.json")
    os.makedirs("out", exist_ok=True)
    result = _run(job)
    result["seconds"] = round(time.monotonic() - started, 6)
    result["max_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    write_json("result.json", result)
    return 0


def _run(job: Job) -> dict[str, Any]:
    result: dict[str, Any] = {"protocol": PROTOCOL, "stage": job.stage, "status": "ok", "error": None}
    try:
        outcome = _stage(job)
    except StageFailure as failure:
        return {**result, "status": "failed", "outputs": {}, "data": {}, "error": failure.as_json()}
    except MemoryError:
        memory = StageFailure("out-of-memory", f"stage {job.stage} ran out of memory", why="Python got no more memory")
        return {**result, "status": "failed", "outputs": {}, "data": {}, "error": memory.as_json()}
    return {**result, "outputs": outcome.outputs, "data": outcome.data}


def _stage(job: Job) -> Outcome:
    if job.stage not in STAGES:
        msg = f"unknown stage {job.stage!r}; this worker has {', '.join(STAGES)}"
        raise ProtocolError(msg)
    module = importlib.import_module(f".{STAGES[job.stage]}", __package__)
    outcome: Outcome = module.run(job)
    return outcome


def _die_with_the_farm() -> None:
    """Ask the kernel to kill this process when the farm dies, so that no orphan goes on building.

    ENGINEFARM_FARM is the farm's process number where the farm is the parent.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    farm = os.environ.get("ENGINEFARM_FARM")
    if farm is not None and os.getppid() != int(farm):
        # it died before the kernel was asked
        os._exit(1)


def _end_with_input() -> None:
    """End when nobody holds this process's input open any more: in a container the farm is no parent."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
