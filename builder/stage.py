"""A stage's folder: what the farm puts in, what the worker leaves, and what a bad end means."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import host, process
from builder.errors import EnginefarmError, Reason

PROTOCOL = 1
_LEAST_FREE = 1 << 20
_WEIGHTS = {"external": "model.onnx.data", "lowered_external": "lowered.onnx.data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRequest:
    """One stage to run. `inputs` maps a name to a file or folder; `folder` is made for this stage alone.

    `gpu`: UUID of the device that the stage may use; null for none.
    """

    job: str
    stage: str
    inputs: Mapping[str, Path]
    params: Mapping[str, Any]
    folder: Path
    timeout_s: float
    gpu: str | None = None

    @property
    def log(self) -> Path:
        """Where the worker's output goes."""
        return self.folder / "log.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What a stage made. `outputs` are existing files; `seconds` is wall time as the farm saw it."""

    outputs: Mapping[str, Path]
    data: Mapping[str, Any]
    seconds: float
    max_rss_bytes: int


def lay_out(request: StageRequest) -> None:
    """Make the folder: job.json, in/ with links or copies of the inputs, an empty out/."""
    shutil.rmtree(request.folder, ignore_errors=True)
    (request.folder / "in").mkdir(parents=True)
    (request.folder / "out").mkdir()
    inputs: dict[str, str] = {}
    for name, source in request.inputs.items():
        inside = Path("in") / (name if source.is_dir() else _file_name(name, source))
        _place(source, request.folder / inside)
        inputs[name] = inside.as_posix()
    document = {
        "protocol": PROTOCOL,
        "stage": request.stage,
        "job": request.job,
        "inputs": inputs,
        "params": dict(request.params),
    }
    (request.folder / "job.json").write_text(json.dumps(document, indent=1, sort_keys=True), encoding="utf-8")


def collect(request: StageRequest, outcome: process.Outcome) -> StageResult:
    """Read what the worker left.

    Raises:
        EnginefarmError: the worker's own reason, or WORKER_DIED, OUT_OF_MEMORY, DISK_FULL, STAGE_TIMEOUT, INTERRUPTED,
            STAGE_CONTRACT.

    """
    if outcome.cancelled:
        raise EnginefarmError(Reason.INTERRUPTED, f"stage {request.stage} was stopped")
    if outcome.timed_out:
        what = f"stage {request.stage} was still running after {request.timeout_s:.0f} s"
        raise EnginefarmError(Reason.STAGE_TIMEOUT, what, why=process.tail(request.log) or None)
    result = request.folder / "result.json"
    if outcome.exit_code != 0 or not result.is_file():
        raise _died(request, outcome)
    try:
        document = json.loads(result.read_text(encoding="utf-8"))
        if document["protocol"] != PROTOCOL or document["stage"] != request.stage:
            raise _contract(request, "another protocol or stage")
        if document["status"] != "ok":
            raise _failure(document["error"])
        outputs = {name: _inside(request.folder, path) for name, path in document["outputs"].items()}
        data = dict(document["data"])
        rss = max(outcome.max_rss_bytes, int(document.get("max_rss_bytes", 0)))
    except (ValueError, KeyError, TypeError) as error:
        raise _contract(request, repr(error)) from error
    for name, path in outputs.items():
        if not path.is_file():
            raise _contract(request, f"output {name} is missing")
    return StageResult(outputs=outputs, data=data, seconds=outcome.duration_s, max_rss_bytes=rss)


def _file_name(name: str, source: Path) -> str:
    # a model finds its weights beside it, under the name that the ONNX file mentions
    return _WEIGHTS.get(name, f"{name}{source.suffix}")


def _place(source: Path, destination: Path) -> None:
    if source.is_dir():
        ignore = shutil.ignore_patterns("__pycache__", ".*")
        shutil.copytree(source, destination, ignore=ignore)
        return
    try:
        os.link(source, destination)
    except OSError:
        shutil.copyfile(source, destination)


def _inside(folder: Path, relative: str) -> Path:
    path = (folder / relative).resolve()
    if not path.is_relative_to(folder.resolve() / "out"):
        msg = f"output outside out/: {relative}"
        raise ValueError(msg)
    return path


def _failure(error: Mapping[str, Any]) -> EnginefarmError:
    reason = Reason.from_slug(error["reason"])
    return EnginefarmError(reason, error["message"], why=error.get("why"), fix=error.get("fix"))


def _died(request: StageRequest, outcome: process.Outcome) -> EnginefarmError:
    if outcome.signal is not None:
        how = f"was killed by signal {outcome.signal}"
        fix = (
            "signal 9 without a person behind it is the kernel out of memory: lower -j" if outcome.signal == 9 else None
        )
    else:
        how, fix = f"ended with exit code {outcome.exit_code} and no result", None
    tail = process.tail(request.log)
    # a worker without room for its result often has none for its last words
    if outcome.signal is None and host.free_disk_bytes(request.folder) < _LEAST_FREE:
        what = f"the disk is full: stage {request.stage} could not write its result"
        return EnginefarmError(Reason.DISK_FULL, what, where=str(request.folder), why=tail or None)
    if "MemoryError" in tail or "bad_alloc" in tail:
        return EnginefarmError(Reason.OUT_OF_MEMORY, f"stage {request.stage} {how}", why=tail)
    return EnginefarmError(Reason.WORKER_DIED, f"stage {request.stage} {how}", why=tail or None, fix=fix)


def _contract(request: StageRequest, why: str) -> EnginefarmError:
    return EnginefarmError(Reason.STAGE_CONTRACT, f"stage {request.stage} left an unreadable result", why=why)
