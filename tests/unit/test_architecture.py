"""House rules that no other tool checks: who may import what, how long things are, what names say."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "builder"
WORKER = PACKAGE / "worker"
MODULES = sorted(PACKAGE.rglob("*.py"))
WORKER_MODULES = sorted(WORKER.rglob("*.py"))
FOLDERS = ("builder", "tests", "scripts", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

MODULE_LINES = 400
FUNCTION_LINES = 80
VAGUE = {"util", "utils", "helper", "helpers", "common", "misc"}
WORKER_PACKAGES = {"numpy", "onnx", "onnxruntime", "ml_dtypes", "torch", "tensorrt", "tensorrt_rtx_bindings"}
# folders that tools make
GENERATED = {"__pycache__", "build", "dist"}
# in the standard library only after 3.9, the oldest Python of a stack
TOO_NEW = {"tomllib"}


def name(path: Path) -> str:
    """Name a file as people do."""
    return path.relative_to(ROOT).as_posix()


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """Read a module's syntax tree and list its nodes."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def documented(module: ast.AST) -> bool:
    """Say whether a module begins with a docstring."""
    return isinstance(module, ast.Module) and bool(ast.get_docstring(module))


@cache
def imports(path: Path) -> frozenset[str]:
    """Return the absolute name of each imported module, wherever in the file it is imported."""
    return frozenset(_imports(path))


def _imports(path: Path) -> Iterator[str]:
    package = path.relative_to(ROOT).parent.parts
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def importers(module: str) -> set[str]:
    """Name the files of the package that import a module or a part of it."""
    return {name(path) for path in MODULES if any(f"{one}.".startswith(f"{module}.") for one in imports(path))}


def test_programs_are_started_in_one_module() -> None:
    assert importers("subprocess") == {"builder/process.py"}


@pytest.mark.parametrize("module", ["click", "builder.cli"])
def test_the_command_line_stays_in_its_folder(module: str) -> None:
    assert {path for path in importers(module) if not path.startswith("builder/cli/")} == set()


@pytest.mark.parametrize("path", WORKER_MODULES, ids=name)
def test_the_worker_imports_what_every_stack_has(path: Path) -> None:
    allowed = (sys.stdlib_module_names - TOO_NEW) | WORKER_PACKAGES
    others = {one for one in imports(path) if one.split(".")[0] not in allowed}
    assert {one for one in others if one != "builder.worker" and not one.startswith("builder.worker.")} == set()


@pytest.mark.parametrize("path", WORKER_MODULES, ids=name)
def test_the_worker_is_python_3_9(path: Path) -> None:
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))


def test_only_the_command_line_and_the_worker_print_and_exit() -> None:
    found = [
        f"{name(path)}:{node.lineno}"
        for path in MODULES
        if WORKER not in path.parents and PACKAGE / "cli" not in path.parents
        for node in nodes(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"print", "sys.exit", "exit", "os._exit"}
    ]
    assert found == []


def test_modules_are_short() -> None:
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: length for path, length in lengths.items() if length > MODULE_LINES} == {}


def test_functions_are_short() -> None:
    long = {
        f"{name(path)}:{node.name}": node.end_lineno - node.lineno + 1
        for path in SOURCES
        if "tests" not in path.relative_to(ROOT).parts  # sample data are long, not complicated
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES
    }
    assert long == {}


def test_names_say_something() -> None:
    names = [path for path in MODULES if {*path.with_suffix("").relative_to(ROOT).parts} & VAGUE]
    assert [name(path) for path in names] == []


def test_modules_say_what_they_are() -> None:
    assert [name(path) for path in MODULES if not documented(nodes(path)[0])] == []


def test_top_folders_are_explained() -> None:
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "CONTRIBUTING.md"))
    folders = {path for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    kept = {path for path in folders if path.name not in GENERATED and not (path / "README.md").is_file()}
    assert {path.name for path in kept if f"`{path.name}/" not in pages} == set()
