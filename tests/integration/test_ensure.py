"""`enginefarm ensure` with the real TensorRT-RTX: a session moves from a T4 to an RTX 3090."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from builder.artifact import LAYERS, layer_report
from builder.manifest import load_manifest
from builder.model_folder import ModelFolder
from builder.store import Store
from tests.integration.farm import ROOT, Farm, product, shapes, share_environments
from tests.published import Parcel, publish

pytestmark = pytest.mark.integration

MACHINES = ROOT / "tests" / "data" / "machines"
CELL = """
from pathlib import Path
from builder.ensure import ensure
from builder.facts import load_facts
(done,) = ensure("toy", auto={auto}, facts=load_facts(Path({facts!r})))
print(done.action.value, done.path)
"""


def facts(name: str) -> str:
    return str(MACHINES / f"{name}.json")


def ensure(farm: Farm, machine: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    process = farm.start("ensure", "toy", "--facts", facts(machine), *arguments)
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def ensured(farm: Farm, machine: str, *arguments: str) -> dict[str, Any]:
    done = ensure(farm, machine, "--auto", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    assert isinstance(model, dict)
    return model


def loaded_by_applications(farm: Farm) -> str:
    return hashlib.sha256((farm.home / "engines" / "toy" / "model.plan").read_bytes()).hexdigest()


def test_from_a_t4_to_another_gpu(farm: Farm) -> None:
    farm.recipe("toy", product(), shapes())
    first = ensured(farm, "t4-rtx1.7")
    assert (first["action"], first["since"]) == ("built", None)
    assert first["job"].endswith("-sm75")
    assert ensured(farm, "t4-rtx1.7")["action"] == "reused"
    refused = ensure(farm, "rtx3090-rtx1.7")
    assert refused.returncode == 4
    assert "since the last session: GPU Tesla T4 -> NVIDIA GeForce RTX 3090" in refused.stderr
    assert "--auto, or auto=True, would build toy-fp16-trtrtx1.7-cuda13-sm80-sm86" in " ".join(refused.stderr.split())
    second = ensured(farm, "rtx3090-rtx1.7")
    assert second["action"] == "built"
    assert [change["name"] for change in second["changes"]] == ["GPU"]
    assert loaded_by_applications(farm) == hashlib.sha256(Path(second["path"]).read_bytes()).hexdigest()
    back = ensured(farm, "t4-rtx1.7")
    assert (back["action"], back["job"]) == ("reused", first["job"])
    assert loaded_by_applications(farm) == hashlib.sha256(Path(first["path"]).read_bytes()).hexdigest()


def test_a_pull_saves_the_build(farm: Farm, tmp_path: Path) -> None:
    farm.recipe("toy", product(), shapes())
    ensured(farm, "rtx3090-rtx1.7")
    store = Store(farm.home / "store")
    (entry,) = store.entries("engine")
    files = {title: store.read(entry, title) for title in store.files(entry)}
    told = load_manifest(files["manifest.json"], "the store")
    published = tmp_path / "published"
    files[LAYERS] = layer_report(told)
    publish(ModelFolder(published / "toy"), [Parcel(files=files, told=told)], model="toy")
    policy = tmp_path / "policy.toml"
    policy.write_text('unsigned = "allow"\n', encoding="utf-8")
    share_environments(tmp_path / "other")
    # no recipe here: pulling is the only way
    nowhere = tmp_path / "nowhere"
    nowhere.mkdir()
    other = Farm(project=nowhere, home=tmp_path / "other")
    registry = f"oci:{published}"
    untrusted = ensure(other, "rtx3090-rtx1.7", "--auto", "--registry", registry)
    assert untrusted.returncode == 9
    assert "EF-218" in untrusted.stderr
    asked = ensure(other, "rtx3090-rtx1.7", "--registry", registry)
    assert asked.returncode == 4
    assert f"would pull the engine that fits from {registry}/toy" in " ".join(asked.stderr.split())
    assert Store(other.home / "store").entries() == ()
    done = ensured(other, "rtx3090-rtx1.7", "--registry", registry, "--policy", str(policy))
    assert done["action"] == "pulled"
    assert loaded_by_applications(other) == told.engine.sha256
    assert ensured(other, "rtx3090-rtx1.7")["action"] == "reused"
    none = ensure(other, "t4-rtx1.7", "--auto", "--registry", registry, "--policy", str(policy))
    assert none.returncode == 4
    assert "error[EF-221 no-engine-fits]: no engine of toy fits this machine" in none.stderr
    assert "EF-201 is for SM 8.0, 8.6; here: Tesla T4 (SM 7.5)" in none.stderr


def test_a_cell_of_a_notebook(farm: Farm) -> None:
    farm.recipe("toy", product(), shapes())
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "ENGINEFARM_HOME": str(farm.home), "ENGINEFARM_EXECUTOR": "local"}

    def cell(*, auto: bool) -> subprocess.CompletedProcess[str]:
        code = CELL.format(auto=auto, facts=facts("rtx3090-rtx1.7"))
        command = [sys.executable, "-c", code]
        return subprocess.run(
            command,
            cwd=farm.project,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    assert "EF-221" in cell(auto=False).stderr
    built = cell(auto=True)
    assert built.returncode == 0, built.stderr
    assert "toy: built toy-fp16-trtrtx1.7-cuda13-sm80-sm86" in built.stdout
    action, path = built.stdout.splitlines()[-1].split()
    assert action == "built"
    assert Path(path).is_file()


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 4)])
def test_a_person_is_asked(answer: str, code: int, farm: Farm) -> None:
    farm.recipe("toy", product(), shapes())
    ours, theirs = pty.openpty()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "ENGINEFARM_HOME": str(farm.home), "ENGINEFARM_EXECUTOR": "local"}
    command = [sys.executable, "-c", "import sys; from builder.cli import main; sys.exit(main())"]
    process = subprocess.Popen(
        [*command, "ensure", "toy", "--facts", facts("rtx3090-rtx1.7")],
        cwd=farm.project,
        env=environ,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    time.sleep(0.2)
    os.write(ours, f"{answer}\n".encode())
    out, err = process.communicate(timeout=300)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == code, err
    assert "toy: build toy-fp16-trtrtx1.7-cuda13-sm80-sm86? [y/N]" in err
    assert ("toy-fp16" in out) == (code == 0)
