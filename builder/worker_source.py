"""Digest of the worker's source, per stage: only the modules that a stage really imports count."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

_RELATIVE_IMPORT = re.compile(r"^\s*from (\.+)([\w.]*) import (\([^)]*\)|[^\n#]*)", re.MULTILINE)
_NAME = re.compile(r"\w+")
WORKER = Path(__file__).parent / "worker"
ENGINE_STAGES = ("lower", "build")
PROOF_STAGES = ("examine", "verify")
EXPORT_STAGES = ("export",)


@cache
def worker_sha256(stages: tuple[str, ...], family: str | None = None, worker: Path = WORKER) -> str:
    """Hash the modules of the stages and all that they import from the worker, by relative path and content.

    `family` adds that TensorRT family's adapter, which stages import by name; other families' adapters do not count.
    """
    digest = hashlib.sha256()
    start = [worker / f"{stage}.py" for stage in stages]
    if family is not None:
        start.append(worker / "trt" / f"{family}.py")
    for path in sorted(_closure(start, worker)):
        name, content = path.relative_to(worker).as_posix(), path.read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def _closure(start: list[Path], worker: Path) -> set[Path]:
    seen: set[Path] = set()
    queue = list(start)
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        queue += _imports(path, worker)
    return seen


def _imports(path: Path, worker: Path) -> list[Path]:
    found: list[Path] = []
    # a pattern, not a parser: this runs at the start of every command, and a false hit only names a file that exists
    for dots, module, names in _RELATIVE_IMPORT.findall(path.read_text(encoding="utf-8")):
        base = path.parents[len(dots) - 1]
        folder = base.joinpath(*module.split(".")) if module else base
        found += [folder.with_suffix(".py"), folder / "__init__.py"]
        for name in _NAME.findall(names):
            found += [folder / f"{name}.py", folder / name / "__init__.py"]
    return [item for item in found if item.is_file() and item.is_relative_to(worker)]
