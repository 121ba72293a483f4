"""House rules of the GitHub workflows, beyond what zizmor and the schema hold."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from builder.targets import load_targets

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
HOSTED = {"ubuntu-24.04", "ubuntu-24.04-arm"}
PINNED = re.compile(r"uses: [a-z0-9-]+/[a-z0-9/-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+")
# events that only people with write access to this repository cause
TRUSTED = (
    "!github.event.repository.fork && (github.event_name == 'workflow_dispatch' || "
    "github.event_name == 'push' || github.event_name == 'schedule')"
)

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def load(path: Path) -> dict[str, Any]:
    """Read a workflow; YAML takes its key `on` for a boolean."""
    document: dict[Any, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {"on" if key is True else key: value for key, value in document.items()}


def jobs(path: Path) -> dict[str, dict[str, Any]]:
    """Return the jobs of a workflow."""
    found: dict[str, dict[str, Any]] = load(path)["jobs"]
    return found


def steps(path: Path) -> Iterator[dict[str, Any]]:
    """List the steps of all jobs."""
    for job in jobs(path).values():
        yield from job["steps"]


def own_machine(job: dict[str, Any]) -> bool:
    """Say whether a job may reach a self-hosted runner; one chosen by an expression may."""
    return job["runs-on"] not in HOSTED


def test_all_workflows_are_there() -> None:
    assert {path.name for path in FILES} >= {"test.yml", "images.yml", "build-engines.yml"}


@each_file
def test_nothing_is_permitted_but_by_a_job(path: Path) -> None:
    assert load(path)["permissions"] == {}
    assert all("permissions" in job for job in jobs(path).values())


@each_file
def test_shell_fails_for_every_part_of_a_pipe(path: Path) -> None:
    assert load(path)["defaults"] == {"run": {"shell": "bash"}}
    assert [step for step in steps(path) if "shell" in step] == []


@each_file
def test_runs_are_limited(path: Path) -> None:
    assert "group" in load(path)["concurrency"]
    assert all(isinstance(job["timeout-minutes"], int) for job in jobs(path).values())


@each_file
def test_actions_are_pinned_by_commit(path: Path) -> None:
    lines = [line.strip(" -") for line in path.read_text(encoding="utf-8").splitlines() if "uses:" in line]
    assert [line for line in lines if not PINNED.fullmatch(line)] == []
    assert len(lines) == sum("uses" in step for step in steps(path))


@each_file
def test_commands_hold_no_expression(path: Path) -> None:
    assert [step["run"] for step in steps(path) if "${{" in step.get("run", "")] == []


@each_file
def test_token_is_not_left_in_the_checkout(path: Path) -> None:
    checkouts = [step for step in steps(path) if "actions/checkout@" in step.get("uses", "")]
    assert [step for step in checkouts if step["with"]["persist-credentials"] is not False] == []


@each_file
def test_pull_requests_and_forks_reach_no_machine_of_ours(path: Path) -> None:
    assert "pull_request_target" not in load(path)["on"]
    assert [name for name, job in jobs(path).items() if own_machine(job) and job.get("if") != TRUSTED] == []


@each_file
def test_machines_of_ours_are_cleaned_last(path: Path) -> None:
    last = {name: job["steps"][-1] for name, job in jobs(path).items() if own_machine(job)}
    assert [name for name, step in last.items() if step.get("if") != "always()" or "run" not in step] == []


def test_rules_meet_a_self_hosted_job() -> None:
    assert any(own_machine(job) for path in FILES for job in jobs(path).values())


def test_all_targets_can_be_chosen() -> None:
    inputs = load(ROOT / ".github" / "workflows" / "build-engines.yml")["on"]["workflow_dispatch"]["inputs"]
    assert inputs["target"]["options"] == list(load_targets())


def test_inputs_are_the_same_by_hand_and_by_call() -> None:
    on = load(ROOT / ".github" / "workflows" / "build-engines.yml")["on"]
    by_hand, by_call = on["workflow_dispatch"]["inputs"], on["workflow_call"]["inputs"]
    assert {key: value["description"] for key, value in by_hand.items()} == {
        key: value["description"] for key, value in by_call.items()
    }
