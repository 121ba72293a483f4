"""What farm and worker say to each other: job.json in, result.json out, failures that a stage understands."""

from __future__ import annotations

import difflib
import json
import os
from typing import Any, NamedTuple, Tuple

PROTOCOL = 1
Shape = Tuple[int, ...]  # not tuple[]: an application on Python 3.8 may import this


class ProtocolError(Exception):
    """job.json is not one that this worker can read: a bug or a mix of versions, never the model's fault."""


class StageFailure(Exception):  # noqa: N818  (a situation of the model or the recipe, not a programming error)
    """A failure that the stage understands; it ends in result.json, not in a traceback."""

    def __init__(
        self, reason: str, message: str, *, why: str = "", fix: str = "", details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.why = why
        self.fix = fix
        self.details = details or {}

    def as_json(self) -> dict[str, Any]:
        """Return the `error` object of result.json."""
        return {
            "reason": self.reason,
            "message": self.message,
            "why": self.why,
            "fix": self.fix,
            "details": self.details,
        }


class ShapeRange(NamedTuple):
    """Shapes of one input in one shape profile; `also` holds further shapes to verify."""

    min: Shape
    opt: Shape
    max: Shape
    also: tuple[Shape, ...] = ()


class Profile(NamedTuple):
    """One shape profile: input name to its shapes."""

    name: str
    inputs: dict[str, ShapeRange]


class Job(NamedTuple):
    """One stage to run. Paths are relative to the stage's folder, which is the working directory."""

    stage: str
    job: str
    inputs: dict[str, str]
    params: dict[str, Any]

    @property
    def precision(self) -> str:
        """The precision asked for: fp32, tf32, fp16, bf16 or int8."""
        return str(self.params["precision"])

    @property
    def profiles(self) -> list[Profile]:
        """The shape profiles asked for, in the recipe's order."""
        return [
            Profile(entry["name"], {name: _shape_range(shapes) for name, shapes in entry["inputs"].items()})
            for entry in self.params["profiles"]
        ]


class Outcome(NamedTuple):
    """What a stage that succeeded hands back: its files by role, and facts for the manifest."""

    outputs: dict[str, str]
    data: dict[str, Any]


def _shape_range(shapes: dict[str, Any]) -> ShapeRange:
    also = tuple(tuple(shape) for shape in shapes.get("also", ()))
    return ShapeRange(tuple(shapes["min"]), tuple(shapes["opt"]), tuple(shapes["max"]), also)


def read_job(path: str) -> Job:
    """Read job.json.

    Raises:
        ProtocolError: the file speaks another protocol version, or lacks what every job has.

    """
    with open(path, encoding="utf-8") as file:
        raw = json.load(file)
    spoken = raw.get("protocol")
    if spoken != PROTOCOL:
        msg = f"{path} speaks protocol {spoken}, this worker speaks {PROTOCOL}: run farm and worker of one version"
        raise ProtocolError(msg)
    try:
        return Job(raw["stage"], raw["job"], dict(raw["inputs"]), dict(raw["params"]))
    except (KeyError, TypeError, ValueError) as error:
        msg = f"{path} is not a job: {type(error).__name__}: {error}"
        raise ProtocolError(msg) from error


def write_json(path: str, document: dict[str, Any]) -> None:
    """Write a JSON file so that no reader ever sees half of it."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, sort_keys=True)
        file.write("\n")
    os.replace(temporary, path)


def did_you_mean(name: str, known: list[str]) -> str:
    """Return ` (did you mean x?)` for the nearest known name, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
