"""`enginefarm check` as a process, on engines of the real TensorRT-RTX: verdicts, imports, and how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.farm import ROOT, Farm, product, shapes

pytestmark = pytest.mark.integration

MACHINES = ROOT / "tests" / "data" / "machines"
HEAVY = {"pydantic", "numpy", "rich", "onnx", "torch", "tensorrt", "tensorrt_rtx_bindings", "requests", "docker"}
IMPORTED = "import sys; from builder.cli import main; main(sys.argv[1:]); print(*sys.modules, file=sys.stderr)"
LIMIT_S = 0.3


def facts(name: str) -> str:
    return str(MACHINES / f"{name}.json")


@pytest.fixture
def built(farm: Farm) -> str:
    """An engine for Ampere in the farm's store; its job."""
    farm.recipe("toy", product(), shapes())
    return str(farm.build()[0]["job"])


def test_a_built_engine_on_other_machines(farm: Farm, built: str) -> None:
    done = farm.run("check", "toy", "--facts", facts("rtx3090-rtx1.7"), "--json")
    assert done.returncode == 0, done.stderr
    (engine,) = json.loads(done.stdout)["engines"]
    assert (engine["engine"], engine["fit"]) == (built, "same-sm")
    refused = farm.run("check", built, "--facts", facts("rtx4090-rtx1.6"), "--json")
    assert refused.returncode == 4
    (engine,) = json.loads(refused.stdout)["engines"]
    assert [finding["code"] for finding in engine["refusals"]] == ["EF-211", "EF-201"]
    assert farm.run("check", "nobody").returncode == 3


def test_exported_files(farm: Farm, built: str, tmp_path: Path) -> None:
    assert farm.run("export", str(tmp_path / "out")).returncode == 0
    plan = tmp_path / "out" / built / "model.plan"
    for name in (plan, plan.parent, plan.parent.parent):
        assert farm.run("check", str(name), "--facts", facts("rtx3090-rtx1.7")).returncode == 0
    document = json.loads((plan.parent / "manifest.json").read_text())
    document["target"]["sms"] = ["8.9"]
    (plan.parent / "manifest.json").write_text(json.dumps(document))
    swapped = farm.run("check", str(plan), "--facts", facts("windows-rtx4090-rtx1.7"))
    assert swapped.returncode == 4
    assert "EF-716 engine-header: its header says SM 8.0, 8.6, its manifest SM 8.9" in swapped.stdout
    (plan.parent / "manifest.json").unlink()
    bare = farm.run("check", str(plan), "--facts", facts("rtx3090-rtx1.7"), "--json")
    assert bare.returncode == 0
    (engine,) = json.loads(bare.stdout)["engines"]
    assert (engine["tensorrt"], engine["sms"]) == ("1.7.1.116", ["8.0", "8.6"])


def test_this_machine_is_written_and_read(farm: Farm, built: str, tmp_path: Path) -> None:
    path = tmp_path / "here.json"
    assert farm.run("check", "--write-facts", str(path)).returncode == 0
    here = farm.run("check", built)
    assert farm.run("check", built, "--facts", str(path)).stdout == here.stdout


def test_nothing_heavy_is_imported(farm: Farm, built: str) -> None:
    command = [sys.executable, "-c", IMPORTED, "check", built, "--facts", facts("rtx3090-rtx1.7")]
    environ = {"PYTHONPATH": str(ROOT), "ENGINEFARM_HOME": str(farm.home)}
    done = subprocess.run(command, env=environ, cwd=farm.project, capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()}
    assert modules & (HEAVY | {"pynvml"}) == set()


@pytest.mark.parametrize("machine", [[], ["--facts", facts("rtx3090-rtx1.7")]], ids=["here", "file"])
def test_it_takes_less_than_a_third_of_a_second(machine: list[str], farm: Farm, built: str) -> None:
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        farm.run("check", built, *machine)
        seconds.append(time.perf_counter() - started)
    # other programs of this machine make some runs slower, none faster
    assert min(seconds) <= LIMIT_S
