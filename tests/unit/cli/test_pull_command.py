"""`enginefarm pull` and `enginefarm mirror`, between folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.cli import main
from builder.facts_file import facts_json
from builder.model_folder import ModelFolder
from tests.published import MODEL, key_pair, machine, parcel, publish, signer_of


@pytest.fixture
def usb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Publish a signed engine in a folder; this machine has a GPU that it fits, and trusts nobody."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ENGINEFARM_POLICY", raising=False)
    monkeypatch.setenv("ENGINEFARM_REGISTRY", f"oci:{tmp_path}/usb")
    monkeypatch.setattr("builder.cli.pull.read_facts", lambda _: machine().facts)
    pair = key_pair(tmp_path / "farm")
    publish(ModelFolder(tmp_path / "usb" / MODEL), [parcel()], signer=signer_of(pair))
    policy = f'[[rules]]\nmodels = ["{MODEL}"]\nkeys = [{{name = "the farm", file = "{pair.public}"}}]\n'
    (tmp_path / "policy.toml").write_text(policy, encoding="utf-8")
    return tmp_path / "usb"


def test_pull(usb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = usb.parent / "home"
    assert main(["pull", MODEL, "--policy", str(usb.parent / "policy.toml")]) == 0
    captured = capsys.readouterr()
    folder, job, *_ = captured.out.split()
    assert (Path(folder), job) == (home / "engines" / MODEL, parcel().told.job)
    assert "signed by the farm" in captured.err
    assert "warning: EF-219" in captured.err
    assert "fit: same-sm on NVIDIA GeForce RTX 3090" in captured.err


def test_pull_json(usb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = usb.parent / "out"
    policy = ("--policy", str(usb.parent / "policy.toml"))
    assert main(["pull", f"oci:{usb}/{MODEL}", *policy, "--to", str(out), "--max-bytes", "1MB", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["result"], told["folder"], told["signer"], told["serial"]) == ("pulled", str(out), "the farm", 1)
    assert told["engine_sha256"] == parcel().told.engine.sha256


def test_refusals_have_codes(usb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hopper = usb.parent / "facts.json"
    hopper.write_text(facts_json(machine(sm="9.0").facts), encoding="utf-8")
    policy = ("--policy", str(usb.parent / "policy.toml"))
    for code, slug, arguments in (
        (9, "signer-unknown", [MODEL]),
        (9, "size-refused", [MODEL, *policy, "--max-bytes", "1kB"]),
        (4, "no-engine-fits", [MODEL, *policy, "--facts", str(hopper)]),
        (4, "no-engine-fits", [MODEL, *policy, "--precision", "int8"]),
        (3, "artifact-missing", [f"{MODEL}:other", *policy]),
        (3, "reference-invalid", ["ghcr.io/Tiny"]),
    ):
        assert main(["pull", *arguments, "--json"]) == code
        assert json.loads(capsys.readouterr().out)["error"]["reason"] == slug
    assert not (usb.parent / "home" / "engines").exists()


def test_a_model_alone_needs_a_registry(
    usb: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ENGINEFARM_REGISTRY")
    assert main(["pull", MODEL]) == 3
    assert "ENGINEFARM_REGISTRY" in capsys.readouterr().err
    assert main(["pull", MODEL, "--registry", f"oci:{usb}", "--policy", str(usb.parent / "policy.toml")]) == 0


def test_mirror(usb: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, there = f"oci:{usb}/{MODEL}", f"oci:{usb.parent}/there/{MODEL}:1"
    assert main(["mirror", source, there]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{there}  serial 1  1 engine")
    assert "2 documents and 7 files copied" in captured.err
    assert main(["mirror", source, there]) == 0
    assert "had it all" in capsys.readouterr().err
    assert main(["mirror", source, there, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["copied_bytes"] == 0
