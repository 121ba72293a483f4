"""Digest of the worker's source, per stage: only the modules that a stage really imports count."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path

WORKER = Path(__file__).parent / "worker"
ENGINE_STAGES = ("lower", "build")
PROOF_STAGES = ("examine", "verify")
EXPORT_STAGES = ("export",)


def worker_sha256(stages: Iterable[str], family: str | None = None, worker: Path = WORKER) -> str:
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
    for node in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(node, ast.ImportFrom) or node.level == 0:
            continue
        base = path.parents[node.level - 1]
        folder = base.joinpath(*node.module.split(".")) if node.module else base
        found += [folder.with_suffix(".py"), folder / "__init__.py"]
        for alias in node.names:
            found += [folder / f"{alias.name}.py", folder / alias.name / "__init__.py"]
    return [item for item in found if item.is_file() and item.is_relative_to(worker)]
