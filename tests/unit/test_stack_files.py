"""The files of each stack's folder: pins with hashes and sources, what is pruned and why, Pythons that fit."""

from __future__ import annotations

import ast
import re
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from builder.bases import load_bases
from builder.stacks import Stack, build_stacks, load_stacks

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "images"
STACKS = load_stacks(IMAGES)
BASES = load_bases(IMAGES)
CHECK = IMAGES / "steps" / "check.py"
VARIANTS = [stack.with_lock(name) for stack in STACKS.values() for name in stack.spec.image.locks]
ALL = [*STACKS.values(), *VARIANTS]
CLASSIC = [stack for stack in ALL if stack.name.startswith(("trt8", "trt10", "trt11"))]
# what the worker's stages import; the export stack runs no other
WORKER = {"numpy", "onnx", "onnxruntime", "ml-dtypes"}
each = pytest.mark.parametrize("stack", ALL, ids=lambda stack: "-".join(filter(None, (stack.name, stack.variant))))


def pythons(stack: Stack) -> list[str]:
    """Name the Pythons that an image of the stack can have: its base's and the stand-in's."""
    base = BASES.get(stack.spec.image.base)
    return [base.python, *([base.standin.python] if base.standin else [])]


def versions(stack: Stack, python: str) -> dict[str, str]:
    """Map package to version, for an address to its wheel's."""
    found = {}
    for pin in stack.packages(python):
        name, address = pin.partition(" @ ")[::2]
        if address:
            found[name] = address.rsplit("/")[-1].split("-")[1]
        else:
            package, version = pin.split("==")
            found[package] = version
    return found


def test_the_matrix_has_every_stack() -> None:
    # a further minor release is a folder and a lock: no test names it
    assert STACKS.keys() >= {
        "export",
        "l4t36.4-trt10.3",
        "trt10.9-cuda12.8",
        "trt10.16-cuda13.2",
        "trt11.3-cuda13.4",
        "trt8.6-cuda12.0",
        "trtrtx1.7-cuda13",
    }
    assert [name for name, stack in build_stacks(STACKS).items() if stack.spec.default] == ["trtrtx1.7-cuda13"]


@each
def test_every_line_of_a_lock_is_hashed(stack: Stack) -> None:
    for python in stack.spec.python:
        requirements = stack.requirements(python)
        assert all(requirement.hashes for requirement in requirements)
        names = [re.split(r"==| @ ", requirement.pin)[0] for requirement in requirements]
        assert len(names) == len(set(names))


@each
def test_only_the_vendors_parts_come_from_an_address(stack: Stack) -> None:
    hosts = {url.split("/")[2] for python in stack.spec.python for r in stack.requirements(python) if (url := r.url)}
    assert hosts <= {"pypi.nvidia.com"}
    text = re.sub(r" @ https://\S+", "", stack.lock)
    assert "//" not in text


@each
def test_the_asked_for_addresses_are_in_the_lock(stack: Stack) -> None:
    asked = stack.lock_path.with_suffix(".in").read_text(encoding="utf-8")
    addresses = re.findall(r"^(\S+ @ \S+) --hash=sha256:([0-9a-f]{64})$", asked, re.MULTILINE)
    found = [(r.pin, *r.hashes) for r in stack.requirements(stack.spec.python[-1]) if r.url]
    assert found == addresses


@each
def test_every_pattern_to_prune_has_a_reason_and_stays_in_its_folder(stack: Stack) -> None:
    lines = (stack.folder / "prune.txt").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if not line.startswith("#")]
    assert "*/__pycache__" in {line.split(" # ")[0] for line in patterns}
    for line in patterns:
        pattern, reason = line.split(" # ")
        assert re.fullmatch(r"[\w*./-]+", pattern)
        assert not pattern.startswith("/")
        assert ".." not in pattern.split("/")
        assert len(reason) > 5
    # licences lie in *.dist-info, some in folders named test
    assert [line for line in patterns if "dist-info" in line or re.match(r"\*/tests?\b", line)] == []


@each
def test_the_stack_fits_its_base_and_the_stand_in(stack: Stack) -> None:
    base = BASES.get(stack.spec.image.base)
    assert stack.spec.platform in base.platforms
    assert stack.spec.image.budget_mib > 0
    for python in pythons(stack):
        assert python in stack.spec.python
        assert WORKER - ({"onnxruntime"} if stack.spec.role == "export" else set()) <= versions(stack, python).keys()


@pytest.mark.parametrize("stack", CLASSIC, ids=lambda stack: "-".join(filter(None, (stack.name, stack.variant))))
def test_a_classic_stack_has_tensorrt_of_one_version(stack: Stack) -> None:
    for python in pythons(stack):
        found = {name: version for name, version in versions(stack, python).items() if name.startswith("tensorrt")}
        assert {version.partition(".post")[0] for version in found.values()} == {stack.build.tensorrt}
        assert any(name.endswith("bindings") for name in found) or "tensorrt" in found
        assert any(name.endswith("libs") for name in found) or "tensorrt" in found


def test_the_board_brings_its_own_tensorrt() -> None:
    board = STACKS["l4t36.4-trt10.3"]
    assert not any("nvidia" in pin or "tensorrt" in pin for pin in board.packages("3.10"))
    assert board.build.sms == ["8.7"]
    assert "ampere_plus" not in board.build.features


@pytest.mark.parametrize("python", ["3.10", "3.11"])
def test_bindings_older_than_numpy_2_get_numpy_1(python: str) -> None:
    majors = {stack.name: versions(stack, python)["numpy"][0] for stack in ALL if python in stack.spec.python}
    assert {name for name, major in majors.items() if major == "1"} == {
        "trt8.6-cuda12.0",
        "trt10.9-cuda12.8",
        "trt10.13-cuda12.9",
        "l4t36.4-trt10.3",
    }


def test_graphs_are_written_and_read_by_the_same_onnx() -> None:
    assert (
        len({versions(stack, python)["onnx"] for stack in ALL for python in stack.spec.python if python != "3.9"}) == 1
    )


@each
def test_what_is_not_confirmed_names_its_source(stack: Stack) -> None:
    text = (stack.folder / "stack.toml").read_text(encoding="utf-8")
    comments = " ".join(line[1:].strip() for line in text.splitlines() if line.startswith("#"))
    if not stack.spec.confirmed:
        assert "Sources of the pins:" in comments
        assert "ot confirmed" in comments


def test_the_check_runs_on_every_python_of_an_image() -> None:
    oldest = min(tuple(map(int, python.split("."))) for stack in ALL for python in pythons(stack))
    assert oldest == (3, 9)
    ast.parse(CHECK.read_text(encoding="utf-8"), feature_version=oldest)


@pytest.fixture
def check() -> ModuleType:
    """The module that runs inside the images."""
    spec = spec_from_file_location("check", CHECK)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@each
def test_a_python_without_a_toml_reader_finds_what_the_check_needs(
    stack: Stack, check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    found = check.read_toml(stack.folder / "stack.toml")
    spec = STACKS[stack.name].spec
    assert (found["name"], found["role"]) == (spec.name, spec.role)
    assert found["image"]["base"] == spec.image.base
    locks = {name: (other["file"], other["tensorrt"]) for name, other in found["image"].get("locks", {}).items()}
    assert locks == {name: (other.file, other.tensorrt) for name, other in spec.image.locks.items()}
    if spec.role == "build":
        build = STACKS[stack.name].build
        wanted = (build.family, build.import_name, build.tensorrt)
        assert (found["family"], found["import_name"], found["tensorrt"]) == wanted


@each
def test_the_check_reads_a_lock_as_the_farm_does(stack: Stack, check: ModuleType) -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    # the markers of a board's lock do not depend on the machine
    assert check.locked(stack.lock_path) == versions(stack, python)


def test_the_check_reads_libraries(check: ModuleType, tmp_path: Path) -> None:
    library = Path(str(import_module("numpy._core._multiarray_umath").__file__))
    needed, folders = check.dynamic(library)
    assert "libc.so.6" in needed
    assert any("numpy.libs" in folder for folder in folders)
    (tmp_path / "text.so").write_text("GROUP ( libc.so.6 )")
    assert check.dynamic(tmp_path / "text.so") is None
