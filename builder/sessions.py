"""What a model last ran on: one small file per model, and what has changed since. Damaged files count as none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from builder import durable
from builder.compat import Candidate
from builder.facts_file import read_document
from builder.machine import Facts, GpuFacts
from builder.project import Home

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A model's last use: on which machine, with which engine, and when, in UTC."""

    model: str
    machine: Facts
    job: str
    key: str
    precision: str
    at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Something that is not as it was, such as name "CUDA", before "12.6", now "12.4"."""

    name: str
    before: str
    now: str

    @property
    def text(self) -> str:
        """`CUDA 12.6 -> 12.4`."""
        return f"{self.name} {self.before} -> {self.now}"


def load_session(home: Home, model: str) -> Session | None:
    """Return what was recorded last; null where nothing was, or nothing that can be read."""
    try:
        document = json.loads(_path(home, model).read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            return None
        texts = {field.name: str(document[field.name]) for field in fields(Session) if field.name != "machine"}
        machine = read_document(json.dumps(document["machine"]), "machine")
        return Session(machine=machine, **texts)
    except Exception:  # noqa: BLE001 - a note of convenience must never stand in the way
        return None


def save_session(home: Home, model: str, machine: Facts, engine: Candidate) -> None:
    """Record what a model is used with now.

    Raises:
        EnginefarmError: DISK_FULL, STORE_READ_ONLY.

    """
    path = _path(home, model)
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "model": model,
        "at": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
        "job": engine.job,
        "key": engine.key,
        "precision": engine.precision,
        "machine": asdict(machine),
    }
    with durable.writing(str(path)):
        path.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
        durable.write_atomically(path, content.encode(), path.parent)


def machine_of(engine: Candidate) -> Facts:
    """Name the machine that an engine was built for, as far as the engine says."""
    gpus = (GpuFacts(name=engine.device, sm=" ".join(engine.sms), memory_bytes=0),) if engine.device else ()
    return Facts(
        os=engine.os,
        architecture=engine.architecture,
        l4t=engine.l4t,
        driver=engine.driver,
        gpus=gpus,
        tensorrt=None if engine.rtx else engine.tensorrt,
        tensorrt_rtx=engine.tensorrt if engine.rtx else None,
        cuda=engine.cuda,
    )


def changes(before: Facts, now: Facts) -> tuple[Change, ...]:
    """List what differs between two machines; what either does not know is no difference. No GPU now is known."""
    shown = _shown(now)
    return tuple(_differences(_shown(before), {**shown, "GPU": shown["GPU"] or "none"}))


def _differences(before: dict[str, str | None], now: dict[str, str | None]) -> Iterator[Change]:
    for name, old in before.items():
        new = now[name]
        if old is not None and new is not None and not _same(old, new):
            yield Change(name=name, before=old, now=new)


def _shown(facts: Facts) -> dict[str, str | None]:
    counts: dict[str, int] = {}
    for gpu in facts.gpus:
        counts[gpu.name] = counts.get(gpu.name, 0) + 1
    named = ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())
    return {
        "GPU": named or None,
        "driver": facts.driver,
        "CUDA": facts.cuda or facts.driver_cuda,
        "TensorRT": facts.tensorrt,
        "TensorRT-RTX": facts.tensorrt_rtx,
        "L4T": facts.l4t,
        "platform": f"{facts.os}/{facts.architecture}",
    }


def _same(old: str, new: str) -> bool:
    # an engine says CUDA 13, or TensorRT 8.6.1, where a machine says 13.0, or 8.6.1.6
    shorter, longer = sorted((old, new), key=len)
    return longer == shorter or longer.startswith(f"{shorter}.")


def _path(home: Home, model: str) -> Path:
    return home.root / "sessions" / f"{model}.json"
