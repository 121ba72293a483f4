"""What is known of a built image, kept as JSON below the farm's home."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from builder import durable
from builder.bases import Bases
from builder.image_inputs import ImageInputs, image_inputs
from builder.image_layout import ImageLayout
from builder.project import Home
from builder.stacks import Stack


class LayerSize(BaseModel):
    """A layer: what made it, and its compressed size in bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    made_by: str
    digest: str
    size: int


class ImageRecord(BaseModel):
    """An image. `digest` is that of its manifest; `checked` what check.py found inside; `omit` what was left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stack: str
    variant: str | None
    tag: str
    inputs: str
    digest: str
    config_digest: str
    platform: str
    base: str
    standin: bool
    python: str
    layers: list[LayerSize]
    wheels: dict[str, str]
    checked: dict[str, Any]
    omit: list[str] = []

    @property
    def compressed_bytes(self) -> int:
        """What a pull transfers."""
        return sum(layer.size for layer in self.layers)


def save_record(home: Home, record: ImageRecord) -> None:
    """Keep a record; an older one of the same inputs goes."""
    home.images.mkdir(parents=True, exist_ok=True)
    content = record.model_dump_json(indent=2).encode() + b"\n"
    with durable.writing(str(home.images)):
        durable.write_atomically(home.images / f"{record.inputs}.json", content, home.images)


def find_record(home: Home, inputs: ImageInputs) -> ImageRecord | None:
    """Read the record of these inputs; an unreadable one counts as absent."""
    return _read(home.images / f"{inputs.sha256}.json")


def touch_record(home: Home, record: ImageRecord) -> None:
    """Note that an image is used now."""
    with suppress(OSError):
        os.utime(home.images / f"{record.inputs}.json")


def records(home: Home) -> Iterator[tuple[Path, ImageRecord]]:
    """Yield all records with their files, the one used last first."""
    for path in sorted(home.images.glob("*.json"), key=_stamp, reverse=True):
        record = _read(path)
        if record is not None:
            yield path, record


def newest_fitting(stack: Stack, bases: Bases, found: list[ImageRecord]) -> ImageRecord | None:
    """Return the record that fits the stack's files now, whichever base it was built on; Docker is not asked."""
    for record in found:
        same = (record.stack, record.variant) == (stack.name, stack.variant)
        if same and image_inputs(stack, bases, record.base, tuple(record.omit)).sha256 == record.inputs:
            return record
    return None


def layer_sizes(layout: ImageLayout) -> list[LayerSize]:
    """Pair each layer with the step of the Dockerfile that made it."""
    steps = [step.get("created_by", "") for step in layout.config()["history"] if not step.get("empty_layer")]
    return [
        LayerSize(made_by=_short(step), digest=digest, size=size)
        for step, (digest, _, size, _) in zip(steps, layout.layers(), strict=True)
    ]


def _stamp(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _short(step: str) -> str:
    return step.removesuffix(" # buildkit")[:120]


def _read(path: Path) -> ImageRecord | None:
    try:
        return ImageRecord.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None
