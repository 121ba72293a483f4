"""The matrix of a GitHub workflow out of a plan."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RTX = {"needs_gpu": False, "platform": "linux/amd64"}
CLASSIC = {"needs_gpu": True, "platform": "linux/amd64"}
JETSON = {"needs_gpu": True, "platform": "linux/arm64"}
STACKS = {"rtx": RTX, "classic": CLASSIC, "jetson": JETSON, "jetson-rtx": {**JETSON, "needs_gpu": False}}


def load_script() -> Any:
    """Import the script, whose name is no module's."""
    spec = importlib.util.spec_from_file_location("plan_matrix", ROOT / "scripts" / "plan-matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()


def job(recipe: str = "mlp", stack: str = "rtx", sms: str = "8.0 8.6", precision: str = "fp16") -> dict[str, Any]:
    """Make a job of a plan."""
    labels = "-".join(f"sm{sm.replace('.', '')}" for sm in sms.split())
    return {
        "id": f"{recipe}-{precision}-{stack}-{labels}",
        "recipe": recipe,
        "stack": stack,
        "sms": sms.split(),
        "precision": precision,
        "target": "ampere",
        "compatibility": "none",
    }


def plan(*jobs: dict[str, Any], version: int = 1) -> dict[str, Any]:
    """Make a plan."""
    return {"jobs": list(jobs), "plan_version": version, "refusals": []}


def entries(*jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the matrix."""
    found: list[dict[str, Any]] = script.make_matrix(plan(*jobs), STACKS)["include"]
    return found


def test_precisions_of_a_model_share_an_entry() -> None:
    assert entries(job(precision="fp32"), job(precision="fp16")) == [
        {
            "name": "mlp-rtx-sm80-sm86",
            "recipe": "mlp",
            "stack": "rtx",
            "jobs": "mlp-*-rtx-sm80-sm86",
            "target": "ampere",
            "runner": ["ubuntu-24.04"],
        }
    ]


@pytest.mark.parametrize(
    ("stack", "sms", "labels"),
    [
        ("rtx", "12.0", ["ubuntu-24.04"]),
        ("jetson-rtx", "8.7", ["ubuntu-24.04-arm"]),
        ("classic", "8.6", ["self-hosted", "linux", "gpu", "sm86"]),
        ("classic", "12.0 8.9", ["self-hosted", "linux", "gpu", "sm89"]),
        ("jetson", "8.7", ["self-hosted", "linux", "arm64", "gpu", "sm87"]),
    ],
)
def test_runner(stack: str, sms: str, labels: list[str]) -> None:
    assert [entry["runner"] for entry in entries(job(stack=stack, sms=sms))] == [labels]


def test_order_does_not_depend_on_that_of_the_plan() -> None:
    jobs = [job(recipe, "classic", sms) for recipe in "ba" for sms in ("12.0", "8.9")]
    names = ["a-classic-sm89", "a-classic-sm120", "b-classic-sm89", "b-classic-sm120"]
    assert [entry["name"] for entry in entries(*jobs)] == names
    assert entries(*jobs) == entries(*reversed(jobs))


def test_no_more_entries_than_github_takes() -> None:
    jobs = [job(f"model{number}") for number in range(257)]
    assert len(entries(*jobs[:-1])) == 256
    with pytest.raises(ValueError, match="257 entries, and GitHub takes 256; choose fewer recipes or stacks"):
        entries(*jobs)


@pytest.mark.parametrize(
    ("document", "text"),
    [(plan(), "the plan has no job"), (plan(job(), version=2), "the plan is of version 2, not 1")],
)
def test_refusal(
    document: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(document)))
    assert script.main() == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert text in err


def test_one_line_for_the_real_stacks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    document = plan(job(stack="trtrtx1.7-cuda13"))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(document)))
    assert script.main() == 0
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    assert json.loads(out)["include"][0]["name"] == "mlp-trtrtx1.7-cuda13-sm80-sm86"
