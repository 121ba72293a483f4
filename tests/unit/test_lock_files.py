"""Lock files agree with pyproject.toml and with each other, and name no place."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-dev.lock", *sorted(ROOT.glob("images/*/requirements*.lock"))]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
# the vendor's own index, for the parts that no other one has
ADDRESS = re.compile(r"^[a-z0-9-]+ @ https://pypi\.nvidia\.com/[a-z0-9-]+/[\w.-]+\.whl(?= )", re.MULTILINE)


def requirements(lock: Path) -> list[Requirement]:
    """Read the pins of a lock; a line that continues is one with its hashes."""
    text = HASH.sub("", lock.read_text(encoding="utf-8").replace("\\\n", " "))
    return [Requirement(line) for line in text.splitlines() if line.strip()]


def pins(lock: Path, python: str) -> dict[str, str]:
    """Read the versions that a Python on Linux gets."""
    environment = {"python_version": python, "python_full_version": f"{python}.4", "sys_platform": "linux"}
    fitting = [one for one in requirements(lock) if one.marker is None or one.marker.evaluate(environment)]
    names = [canonicalize_name(one.name) for one in fitting]
    assert len(names) == len(set(names))
    return {canonicalize_name(one.name): str(one.specifier).removeprefix("==") for one in fitting}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.relative_to(ROOT).as_posix())
def test_every_pin_is_exact_and_hashed(lock: Path) -> None:
    entries = re.split(r"\n(?=\S)", lock.read_text(encoding="utf-8").strip())
    assert len(entries) > 5
    for entry in entries:
        assert re.match(r"[a-z0-9-]+==\S+", entry) or ADDRESS.match(entry)
        assert HASH.search(entry)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.relative_to(ROOT).as_posix())
def test_locks_name_no_place(lock: Path) -> None:
    text = ADDRESS.sub("", lock.read_text(encoding="utf-8"))
    assert re.findall(r"https?:|file:|(?<!\S)/|index-url|find-links", text) == []


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_locks_hold_what_pyproject_asks_for(python: str) -> None:
    run, dev = pins(ROOT / "requirements.lock", python), pins(ROOT / "requirements-dev.lock", python)
    tools = PROJECT["optional-dependencies"]["dev"]
    for lock, asked in ((run, PROJECT["dependencies"]), (dev, PROJECT["dependencies"] + tools)):
        for one in map(Requirement, asked):
            if one.marker is None or one.marker.evaluate({"python_version": python}):
                assert one.specifier.contains(lock[canonicalize_name(one.name)])
    assert run.items() <= dev.items()


def test_stacks_share_versions_so_that_graphs_are_read_as_written() -> None:
    export = pins(ROOT / "images" / "export" / "requirements.lock", "3.11")
    build = pins(ROOT / "images" / "trtrtx1.7-cuda13" / "requirements.lock", "3.11")
    assert {"onnx", "numpy", "ml-dtypes", "protobuf"} <= export.keys() & build.keys()
    assert {package: (export[package], build[package]) for package in export.keys() & build.keys()} == {
        package: (version, version) for package, version in build.items() if package in export
    }
