"""The shell steps of the GitHub workflows, run here in order in a fresh clone, as GitHub runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.farm import ROOT, share_environments

BASH = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]
FOREIGN = (
    "CI",
    "ENGINEFARM_",
    "GITHUB_",
    "HYPOTHESIS_",
    "MAKE",
    "MFLAGS",
    "PYTEST_",
    "PYTHON",
    "RUNNER_",
    "VIRTUAL_ENV",
)
TOKEN = re.compile(r"\s*('[^']*'|&&|\|\||==|!=|!|[()]|[A-Za-z_][\w-]*(?:\.[\w-]+)*)\s*")
PYTHON = {"&&": " and ", "||": " or ", "!": " not ", "==": "==", "!=": "!=", "(": "(", ")": ")"}
STATUS = re.compile(r"\b(always|cancelled|success|failure)\(\)")
NOTHING_TO_RUN = {"actions/checkout", "actions/setup-python"}
MAIN = {"ref": "refs/heads/main", "event_name": "workflow_dispatch", "event": {"repository": {"fork": False}}}


def evaluate(expression: str, contexts: Mapping[str, Any], *, failed: bool = False) -> Any:
    """Evaluate an expression of a workflow; what is not known here is an error, not an empty text."""
    functions = {
        "always": lambda: True,
        "cancelled": lambda: False,
        "success": lambda: not failed,
        "failure": lambda: failed,
        "fromJSON": json.loads,
    }
    python, position = "", 0
    while position < len(expression):
        token = TOKEN.match(expression, position)
        assert token, f"cannot read {expression!r} from {expression[position:]!r}"
        position, word = token.end(), token[1]
        if word in functions or word.startswith("'"):
            python += word
        else:
            python += PYTHON.get(word) or f"lookup({word!r})"
    names = {**functions, "lookup": lambda path: lookup(path, contexts), "__builtins__": {}}
    return eval(python.strip(), names)  # noqa: S307 - words of the project's own workflows, each known from above


def lookup(path: str, contexts: Mapping[str, Any]) -> Any:
    """Find `inputs.target` and the like."""
    value: Any = contexts
    for name in path.split("."):
        assert name in value, f"this test knows no {path}"
        value = value[name]
    return value


def resolve(text: Any, contexts: Mapping[str, Any]) -> Any:
    """Replace all expressions of a value; one that stands alone keeps its type."""
    if not isinstance(text, str):
        return text
    alone = re.fullmatch(r"\$\{\{(.*?)\}\}", text.strip())
    if alone:
        return evaluate(alone[1], contexts)
    return re.sub(r"\$\{\{(.*?)\}\}", lambda found: str(evaluate(found[1], contexts)), text)


@dataclass
class Run:
    """One run of a workflow: a clone, what GitHub would tell it, what came out."""

    clone: Path
    folder: Path
    workflow: Mapping[str, Any]
    contexts: dict[str, Any]
    environ: Mapping[str, str]
    skip: frozenset[str] = frozenset()
    outcomes: dict[str, str] = field(default_factory=dict)
    log: str = ""

    def job(self, name: str, **contexts: Any) -> dict[str, str]:
        """Run the steps of a job; return its outputs, none where it fails or does not run."""
        job = self.workflow["jobs"][name]
        runner = {"temp": str(self.folder / "temp"), "environment": "github-hosted"}
        known: dict[str, Any] = {**self.contexts, **contexts, "steps": {}, "runner": runner}
        if not evaluate(job.get("if", "success()"), known):
            return {}
        shutil.rmtree(runner["temp"], ignore_errors=True)
        Path(runner["temp"]).mkdir()
        failed = False
        for step in job["steps"]:
            outcome, outputs = self.step(step, {**job.get("env", {}), **step.get("env", {})}, known, failed)
            failed = failed or outcome == "failure"
            self.outcomes[f"{name}: {step['name']}"] = outcome
            known["steps"][step.get("id", "")] = {"outcome": outcome, "outputs": outputs}
        return {} if failed else {key: resolve(value, known) for key, value in job.get("outputs", {}).items()}

    def step(
        self, step: Mapping[str, Any], env: Mapping[str, Any], known: dict[str, Any], failed: bool
    ) -> tuple[str, dict[str, str]]:
        """Run a step or skip it."""
        condition = re.sub(r"^\$\{\{|\}\}$", "", step.get("if", "success()"))
        if not STATUS.search(condition):
            condition = f"success() && ({condition})"
        if step["name"] in self.skip or not evaluate(condition, known, failed=failed):
            return "skipped", {}
        if "uses" in step:
            self.use(step["uses"].split("@")[0], {key: resolve(value, known) for key, value in step["with"].items()})
            return "success", {}
        return self.shell(step["run"], {key: str(resolve(value, known)) for key, value in env.items()})

    def use(self, action: str, settings: Mapping[str, Any]) -> None:
        """Do what an action would do."""
        if action in NOTHING_TO_RUN:
            return
        assert action == "actions/upload-artifact", f"this test knows no {action}"
        shutil.copytree(settings["path"], self.folder / "artifacts" / settings["name"])

    def shell(self, script: str, env: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """Run a script; return its outcome and outputs."""
        assert "${{" not in script
        path, output = self.folder / "script.sh", self.folder / "output"
        path.write_text(script, encoding="utf-8")
        output.write_text("", encoding="utf-8")
        github = {
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_OUTPUT": str(output),
            "GITHUB_STEP_SUMMARY": str(self.folder / "summary.md"),
            "RUNNER_TEMP": str(self.folder / "temp"),
        }
        with (self.folder / "log").open("w+", encoding="utf-8") as log:
            done = subprocess.run(
                [*BASH, str(path)],
                cwd=self.clone,
                env={**self.environ, **github, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=900,
                check=False,
            )
            log.seek(0)
            self.log += log.read()
        lines = output.read_text(encoding="utf-8").splitlines()
        outputs = dict(line.split("=", 1) for line in lines)
        return "failure" if done.returncode else "success", outputs

    @property
    def summary(self) -> str:
        """The step summary."""
        return (self.folder / "summary.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone the checkout with the changes that are not committed."""
    folder = tmp_path_factory.mktemp("workflows") / "clone"
    subprocess.run(["git", "clone", "--quiet", "--no-local", str(ROOT), str(folder)], check=True)
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    out = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in out.split("\0")[:-1]:
        (folder / name).unlink(missing_ok=True)
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Hold what a runner has: no Docker, a home with the stacks installed, nothing of this test run."""
    shims = tmp_path / "shims"
    shims.mkdir()
    (shims / "docker").write_text("#!/bin/sh\necho no daemon >&2\nexit 1\n", encoding="utf-8")
    (shims / "docker").chmod(0o755)
    share_environments(tmp_path / "home")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)},
        "PATH": f"{shims}:{os.environ['PATH']}",
        "ENGINEFARM_HOME": str(tmp_path / "home"),
        "PYTHON": sys.executable,
    }


def start(name: str, clone: Path, environ: Mapping[str, str], folder: Path, **inputs: str) -> Run:
    """Prepare a run of a workflow."""
    workflow = yaml.safe_load((clone / ".github" / "workflows" / f"{name}.yml").read_text(encoding="utf-8"))
    assert workflow["defaults"]["run"]["shell"] == "bash"
    return Run(
        clone=clone, folder=folder, workflow=workflow, contexts={"github": MAIN, "inputs": inputs}, environ=environ
    )


def build(run: Run) -> list[dict[str, Any]]:
    """Run build-engines: the plan, then one job per entry of the matrix; return the entries."""
    outputs = run.job("plan")
    needs = {"plan": {"outputs": outputs}}
    strategy = run.workflow["jobs"]["build"]["strategy"]
    if not outputs:
        return []
    entries: list[dict[str, Any]] = resolve(strategy["matrix"], {"needs": needs})["include"]
    for entry in entries:
        run.job("build", matrix=entry, needs=needs)
    return entries


@pytest.mark.integration
@pytest.mark.timeout(1200)
def test_workflow_test(clone: Path, environ: dict[str, str], tmp_path: Path) -> None:
    run = start("test", clone, environ, tmp_path)
    commands = [step["run"] for step in run.workflow["jobs"]["test"]["steps"] if "run" in step]
    assert commands == ["make test", "make lint", "make test-integration"]
    # it would run this test again
    run.skip = frozenset({"Integration tests"})
    run.job("test")
    assert run.outcomes.pop("test: Integration tests") == "skipped"
    assert set(run.outcomes.values()) == {"success"}, run.log
    assert re.search(r"\d{3} passed", run.log)


@pytest.mark.integration
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("rtx_environment")
def test_workflow_build_engines(clone: Path, environ: dict[str, str], tmp_path: Path) -> None:
    run = start("build-engines", clone, environ, tmp_path, target="ampere", recipes="tiny-*", stacks="", registry="")
    (entry,) = build(run)
    assert entry["runner"] == ["ubuntu-24.04"]
    # nobody named a registry
    assert run.outcomes.pop("build: Publish") == "skipped"
    assert set(run.outcomes.values()) == {"success"}, run.log
    artifact = tmp_path / "artifacts" / entry["name"]
    engines = [f"tiny-mlp-{precision}-trtrtx1.7-cuda13-sm80-sm86" for precision in ("fp16", "fp32")]
    assert sorted(path.name for path in artifact.iterdir()) == engines
    for name in engines:
        assert (artifact / name / "model.plan").stat().st_size > 1000
        assert json.loads((artifact / name / "manifest.json").read_text(encoding="utf-8"))["job"] == name
        assert re.search(rf"^\|.*{re.escape(name)}.*\|$", run.summary, re.MULTILINE)
    assert list((tmp_path / "temp").glob("engines*")) == []


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_build_engines_with_nothing_to_build(clone: Path, environ: dict[str, str], tmp_path: Path) -> None:
    run = start("build-engines", clone, environ, tmp_path, target="hopper", recipes="tiny-mlp", stacks="", registry="")
    assert build(run) == []
    assert (run.outcomes["plan: Set up enginefarm"], run.outcomes["plan: Plan"]) == ("success", "failure")
    assert "EF-201 sm-mismatch" in run.log
    assert "no matrix: the plan has no job" in run.log


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_build_that_fails_keeps_nothing_and_cleans_up(clone: Path, environ: dict[str, str], tmp_path: Path) -> None:
    run = start("build-engines", clone, environ, tmp_path, registry="ghcr.io/somebody/engines")
    entry = {"name": "lost", "target": "ampere", "recipe": "lost", "stack": "trtrtx1.7-cuda13", "jobs": "lost-*"}
    assert run.job("build", matrix=entry) == {}
    assert {name: outcome for name, outcome in run.outcomes.items() if "Set up" not in name} == {
        "build: Check out": "success",
        "build: Build": "failure",
        "build: Export": "failure",
        "build: Keep engines and manifests": "skipped",
        "build: Publish": "skipped",
        "build: Clean up": "success",
    }
    assert "EF-102 recipe-unknown" in run.log
    assert "no engine was proven" in run.log


@pytest.mark.parametrize(
    ("event", "fork", "runs"),
    [
        ("workflow_dispatch", False, True),
        ("schedule", False, True),
        ("push", False, True),
        ("push", True, False),
        ("workflow_dispatch", True, False),
        ("pull_request", False, False),
        ("pull_request_target", False, False),
        ("issue_comment", False, False),
        ("workflow_run", False, False),
    ],
)
def test_events_that_reach_a_machine_of_ours(event: str, fork: bool, runs: bool) -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "build-engines.yml").read_text(encoding="utf-8"))
    github = {"event_name": event, "event": {"repository": {"fork": fork}}}
    assert evaluate(workflow["jobs"]["build"]["if"], {"github": github}) is runs


@pytest.mark.parametrize("expression", ["secrets.TOKEN", "inputs.other", "hashFiles('a')", "inputs.target + 1"])
def test_unknown_expressions_are_errors(expression: str) -> None:
    with pytest.raises(AssertionError):
        evaluate(expression, {"inputs": {"target": "ampere"}})
