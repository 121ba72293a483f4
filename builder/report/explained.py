"""Why two keys differ, grouped and in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from builder.key import Document, differences
from builder.report.table import Paint
from builder.report.units import short

_LONGEST = 60
_DIGEST_LENGTH = 64

GROUPS: dict[str, tuple[str, ...]] = {
    "the model (ONNX file)": ("onnx", "entry", "files", "export", "sha256"),
    "the weights": ("weights",),
    "precision": ("precision", "keep_fp32"),
    "shape profiles": ("profiles",),
    "build options": ("options",),
    "GPU": ("sms", "device", "driver"),
    "TensorRT, CUDA and packages": ("family", "tensorrt", "cuda", "platform", "stack"),
    "calibration, plugins, timing cache": ("calibration", "plugins", "timing_cache"),
    "code of the farm's worker": ("worker_sha256",),
    "what is proved": ("tolerance", "inputs", "verified", "recipe", "job", "target"),
}
_OTHER = "other"


def explained_json(left: Document, right: Document) -> list[dict[str, Any]]:
    """List every difference with its group, its place in the document and both values; null stands for absent."""
    rows = [
        {"group": _group(path), "path": path, "a": a, "b": b}
        for path, a, b in differences(_indexed(left), _indexed(right))
        # The proof names its engine's key; that engines differ is said by their own documents.
        if path != "engine"
    ]
    order = [*GROUPS, _OTHER]
    return sorted(rows, key=lambda row: order.index(row["group"]))


def explained_lines(rows: list[dict[str, Any]], paint: Paint) -> list[str]:
    """Write the differences under their groups' headings."""
    lines: list[str] = []
    for group in dict.fromkeys(row["group"] for row in rows):
        lines.append(paint(f"{group}:", "bold"))
        for row in (row for row in rows if row["group"] == group):
            lines += _difference(row["path"], row["a"], row["b"], paint)
    return lines


def _indexed(value: Any) -> Any:
    # Lists of tables become tables by position, so that a difference names its place inside them.
    if isinstance(value, Mapping):
        return {name: _indexed(item) for name, item in value.items()}
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return {str(position): _indexed(item) for position, item in enumerate(value)}
    return value


def _difference(path: str, left: Any, right: Any, paint: Paint) -> list[str]:
    if _all_texts(left) and _all_texts(right):
        gone = [paint(f"    - {item}", "red") for item in left if item not in right]
        new = [paint(f"    + {item}", "green") for item in right if item not in left]
        return [f"  {path}", *gone, *new] if gone or new else [f"  {path}: the same values in another order"]
    return [f"  {path}: {_shown(left)} -> {_shown(right)}"]


def _all_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return short(value) if len(value) == _DIGEST_LENGTH else value
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _group(path: str) -> str:
    first = path.split(".", maxsplit=1)[0]
    return next((group for group, names in GROUPS.items() if first in names), _OTHER)
