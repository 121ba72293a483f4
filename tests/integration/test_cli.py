"""The command as a process: what it imports, its exit codes, pipes and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-c", "import sys; from builder.cli import main; sys.exit(main())"]
IMPORTED = "import sys; from builder.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Keep the user's store out of it; no colour, no workflow."""
    dropped = {"CI", "FORCE_COLOR", "GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "ENGINEFARM_PROJECT", "COLUMNS"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "ENGINEFARM_EXECUTOR": "local", "ENGINEFARM_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}


def enginefarm(*arguments: str, environ: Mapping[str, str], folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments], cwd=folder, env=environ, capture_output=True, text=True, timeout=120, check=False
    )


def test_help_imports_nothing_heavy(environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, "--help"], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    modules = {name.split(".")[0] for name in done.stderr.split()}
    assert "click" in modules
    assert not modules & {"pydantic", "yaml", "rich", "packaging", "filelock", "tomllib", "importlib_metadata"}
    assert "builder.errors" not in done.stderr.split()


def test_listing_the_store_needs_no_rich(environ: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, "ls"], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    assert "rich" not in {name.split(".")[0] for name in done.stderr.split()}


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["build"], 2, "Targets: turing, ampere"),
        (["build", "--target", "amper"], 3, "did you mean 'ampere'?"),
        (["build", "--target", "ampere", "--stack", "trt"], 3, "EF-104 stack-unknown"),
        (["build", "--target", "ampere", "--recipe", "nothing-*"], 3, "EF-102 recipe-unknown"),
        (["build", "--target", "hopper"], 4, "EF-201 sm-mismatch"),
        (["plan", "--project", "/"], 3, "EF-108 project-missing"),
        (["show", "nothing"], 3, "the store is empty"),
    ],
)
def test_exit_codes(arguments: list[str], code: int, text: str, environ: dict[str, str]) -> None:
    done = enginefarm(*arguments, environ=environ)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr
    assert "Traceback" not in done.stderr


def test_refused_build_as_json(environ: dict[str, str]) -> None:
    done = enginefarm("build", "--target", "hopper", "--json", environ=environ)
    assert done.returncode == 4
    assert json.loads(done.stdout)["error"]["reason"] == "sm-mismatch"


def test_any_folder_of_the_checkout_will_do(environ: dict[str, str]) -> None:
    here = enginefarm("plan", "--json", environ=environ)
    below = enginefarm("plan", "--json", environ=environ, folder=ROOT / "builder" / "cli")
    assert json.loads(here.stdout)["jobs"]
    assert here.stdout == below.stdout


def test_reader_that_went_away(environ: dict[str, str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [*COMMAND, "plan"], cwd=ROOT, env=environ, stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_installing(environ: dict[str, str], tmp_path: Path, number: signal.Signals) -> None:
    arguments = ["build", "--target", "ampere", "--recipe", "tiny*", "--json"]
    with subprocess.Popen(
        [*COMMAND, *arguments], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "install begins" in line:
                break
        time.sleep(0.5)
        started = time.monotonic()
        running.send_signal(number)
        out, _ = running.communicate(timeout=60)
    assert time.monotonic() - started < 10
    assert running.returncode == 130
    document = json.loads(out)
    assert document["exit_code"] == 130
    assert {job["status"] for job in document["jobs"]} == {"cancelled"}
    assert list((tmp_path / "home" / "work").iterdir()) == []
