"""Turn a plan into the matrix of a GitHub workflow: `enginefarm plan --json | plan-matrix.py`.

One entry per stack, recipe and group of SMs; an entry builds all its precisions. Standard library only, and tomli
before Python 3.11.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

IMAGES = Path(__file__).resolve().parent.parent / "images"
PLAN_VERSION = 1
# GitHub's limit: https://docs.github.com/en/actions/reference/limits
MOST_ENTRIES = 256
# enginefarm's code for a request that no job can fulfil
REFUSED = 4

HOSTED = {"linux/amd64": "ubuntu-24.04", "linux/arm64": "ubuntu-24.04-arm"}


class MatrixError(ValueError):
    """This plan makes no matrix."""


def make_matrix(plan: Mapping[str, Any], stacks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return `{"include": [...]}`, sorted by stack, recipe and SMs; `stacks` are the stack files by name.

    Raises:
        MatrixError: for another version of the plan, none or too many entries.

    """
    version = plan.get("plan_version")
    if version != PLAN_VERSION:
        raise MatrixError(f"the plan is of version {version}, not {PLAN_VERSION}")
    found = {(job["stack"], job["recipe"], _numbers(job["sms"]), job["compatibility"]): job for job in plan["jobs"]}
    if not found:
        raise MatrixError(f"the plan has no job ({len(plan.get('refusals', ()))} refused); choose more")
    if len(found) > MOST_ENTRIES:
        raise MatrixError(
            f"{len(found)} entries, and GitHub takes {MOST_ENTRIES}; choose fewer recipes or stacks and run more often"
        )
    return {"include": [_entry(found[key], stacks[key[0]]) for key in sorted(found)]}


def _entry(job: Mapping[str, Any], stack: Mapping[str, Any]) -> dict[str, Any]:
    # what follows the precision: stack, SMs and compatibility
    rest = job["id"].removeprefix(f"{job['recipe']}-{job['precision']}-")
    return {
        "name": f"{job['recipe']}-{rest}",
        "recipe": job["recipe"],
        "stack": job["stack"],
        "jobs": f"{job['recipe']}-*-{rest}",
        "target": job["target"],
        "runner": _runner(stack, job["sms"]),
    }


def _runner(stack: Mapping[str, Any], sms: Iterable[str]) -> list[str]:
    """Name the labels that a runner must have.

    A stack that needs a GPU times its kernels on it, so the machine must have the SM that the engine is for. Where an
    engine is for several, the oldest one is meant: its kernels run on the newer ones, not the other way round.
    """
    if not stack["needs_gpu"]:
        return [HOSTED[stack["platform"]]]
    architecture = ["arm64"] if stack["platform"] == "linux/arm64" else []
    return ["self-hosted", "linux", *architecture, "gpu", _label(min(sms, key=lambda sm: _numbers([sm])))]


def _label(sm: str) -> str:
    return f"sm{sm.replace('.', '')}"


def _numbers(sms: Iterable[str]) -> tuple[tuple[int, ...], ...]:
    """Make SMs comparable: 8.9 comes before 12.0."""
    return tuple(tuple(map(int, sm.split("."))) for sm in sms)


def read_stacks(images: Path) -> dict[str, dict[str, Any]]:
    """Read every images/<stack>/stack.toml."""
    return {path.parent.name: tomllib.loads(path.read_text(encoding="utf-8")) for path in images.glob("*/stack.toml")}


def main() -> int:
    """Read the plan from standard input, write the matrix on one line."""
    try:
        matrix = make_matrix(json.load(sys.stdin), read_stacks(IMAGES))
    except MatrixError as error:
        print(f"no matrix: {error}", file=sys.stderr)
        return REFUSED
    print(json.dumps(matrix, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
