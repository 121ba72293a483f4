"""Engines of TensorRT-RTX through real registries and folders, by the commands that people use."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.facts_file import facts_json
from builder.store import Store
from tests.artifacts import document
from tests.integration.farm import Farm, product, shapes
from tests.published import machine

pytestmark = pytest.mark.integration

PRECISIONS = {name: {"tolerance": {"default": {"max_abs": 0.05}}} for name in ("fp16", "fp32")}


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    """Describe a machine with an RTX 3090."""
    path = tmp_path / "facts.json"
    path.write_text(facts_json(machine().facts), encoding="utf-8")
    return path


@pytest.fixture
def toys(farm: Farm) -> Farm:
    """Build two engines of one model."""
    farm.recipe("toy", product(64), shapes(width=64), precisions=PRECISIONS)
    assert len(farm.build()) == 2
    return farm


@pytest.fixture
def other(farm: Farm, tmp_path: Path) -> Farm:
    """Return another machine, which has no project and trusts nobody yet."""
    (tmp_path / "elsewhere").mkdir()
    return replace(farm, project=tmp_path / "elsewhere", home=tmp_path / "other")


def run(farm: Farm, *arguments: str, code: int = 0, registry: str = "") -> Any:
    """Run a command with --json and return what it says."""
    process = farm.start(*arguments, "--json", ENGINEFARM_REGISTRY=registry)
    out, err = process.communicate(timeout=600)
    assert process.returncode == code, err
    said = json.loads(out)
    return said if code == 0 else said["error"]


def engines(farm: Farm) -> dict[str, str]:
    """Map jobs to digests."""
    store = Store(farm.home / "store")
    assert store.verify() == ()
    return {entry.name: entry.digest for entry in store.entries("engine")}


def trust(farm: Farm, by: Farm) -> Path:
    """Let a machine trust the farm's key."""
    public = next((farm.home / "keys" / "farm").glob("*/public.pem"))
    by.home.mkdir(exist_ok=True)
    policy = f'[[rules]]\nmodels = ["toy"]\nkeys = [{{name = "the farm", file = "{public}"}}]\n'
    (by.home / "policy.toml").write_text(policy, encoding="utf-8")
    return public


def test_what_is_pushed_arrives(toys: Farm, other: Farm, registry: str, facts: Path) -> None:
    run(toys, "keys", "generate", "farm")
    run(toys, "push", f"{registry}/farm", "--key", "farm")
    pull, prefix = ("pull", "toy", "--facts", str(facts)), f"{registry}/farm"
    assert run(other, *pull, code=9, registry=prefix)["code"] == "EF-712"
    assert engines(other) == {}
    trust(toys, other)
    for precision in PRECISIONS:
        told = run(other, *pull, "--precision", precision, registry=prefix)
        assert (told["result"], told["signer"], told["fit"]) == ("pulled", "the farm", "same-sm")
    assert engines(other) == engines(toys)
    # without a wish the faster one, which is there already but for its layer report
    told = run(other, *pull, registry=prefix)
    assert (told["job"].split("-")[1], told["downloaded_bytes"] < 1000) == ("fp16", True)
    folder = Path(told["folder"])
    assert folder == other.home / "engines" / "toy"
    assert document(folder / "trust.json")["engine_sha256"] == told["engine_sha256"]
    manifest = document(folder / "manifest.json")
    assert manifest["engine"]["sha256"] == told["engine_sha256"]


def test_a_machine_that_none_fits_is_told_why(toys: Farm, other: Farm, registry: str, facts: Path) -> None:
    run(toys, "push", f"{registry}/farm")
    # this one has no GPU
    error = run(other, "pull", f"{registry}/farm/toy", "--allow-unsigned", code=4)
    assert (error["code"], error["why"].count("EF-206")) == ("EF-221", 2)
    found = run(other, "pull", f"{registry}/farm/toy", "--allow-unsigned", "--facts", str(facts), "--to", "here")
    assert sorted(path.name for path in Path(found["folder"]).iterdir()) == [
        "key.json",
        "manifest.json",
        "model.plan",
        "trust.json",
    ]


def test_over_an_air_gap(
    toys: Farm, other: Farm, serve_registry: Callable[..., str], facts: Path, tmp_path: Path
) -> None:
    outside, inside = serve_registry(), serve_registry()
    run(toys, "keys", "generate", "farm")
    run(toys, "push", f"{outside}/farm", "--key", "farm")
    trust(toys, other)
    out = run(toys, "mirror", f"{outside}/farm/toy", f"oci:{tmp_path}/usb/toy")
    into = run(other, "mirror", f"oci:{tmp_path}/usb/toy", f"{inside}/mirror/toy:1")
    assert (out["digest"], out["engines"]) == (into["digest"], 2)
    for place in (f"oci:{tmp_path}/usb/toy", f"{inside}/mirror/toy:1"):
        shutil.rmtree(other.home / "store", ignore_errors=True)
        told = run(other, "pull", place, "--facts", str(facts))
        assert told["signer"] == "the farm"
        assert engines(other) == {told["job"]: engines(toys)[told["job"]]}
    assert run(other, "mirror", f"oci:{tmp_path}/usb/toy", f"{inside}/mirror/toy:1")["copied_bytes"] == 0


def test_other_tools_read_the_folder(toys: Farm, registry: str, tmp_path: Path) -> None:
    if shutil.which("skopeo") is None:
        pytest.skip("needs the program skopeo")
    run(toys, "push", f"{registry}/farm")
    copied = run(toys, "mirror", f"{registry}/farm/toy", f"oci:{tmp_path}/usb/toy")
    read = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci:{tmp_path}/usb/toy:latest"], check=True, capture_output=True
    )
    index = json.loads(read.stdout)
    assert index["annotations"]["org.enginefarm.serial"] == str(copied["serial"])
    assert len(index["manifests"]) == copied["engines"] == 2


def test_where_none_fits_one_is_built(farm: Farm, registry: str, facts: Path) -> None:
    farm.recipe("toy", product(), shapes(), precisions=PRECISIONS)
    pull = ("pull", f"{registry}/farm/toy", "--facts", str(facts))
    assert run(farm, *pull, code=3)["code"] == "EF-701"
    told = run(farm, *pull, "--or-build")
    assert (told["result"], told["fit"], told["job"].split("-")[1]) == ("built", "same-sm", "fp16")
    record = document(Path(told["folder"]) / "trust.json")
    assert (record["engine_sha256"], record["signer"]) == (told["engine_sha256"], None)
    # what nobody here can build stays missing
    absent = run(farm, "pull", f"{registry}/farm/absent", "--facts", str(facts), "--or-build", code=3)
    assert absent["code"] == "EF-701"
    assert "absent is no recipe" in absent["why"]
