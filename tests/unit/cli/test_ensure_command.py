"""`enginefarm ensure` as far as it goes without building: an engine that fits, and one that does not."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import pytest

from builder.cli import main
from builder.cli.ensure import _ask
from builder.cli.interrupt import stop_on_signals
from builder.errors import ExitCode
from builder.facts_file import facts_json
from builder.pull import PULLED
from builder.store import Store
from builder.terminal import open_terminal
from tests.headed import A100, Built, machine

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a home whose store has an engine for a T4, and facts of two machines."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ENGINEFARM_REGISTRY", raising=False)
    monkeypatch.chdir(tmp_path)
    Built().add(Store(tmp_path / "home" / "store"))
    (tmp_path / "t4.json").write_text(facts_json(machine()), encoding="utf-8")
    (tmp_path / "a100.json").write_text(facts_json(machine(gpu=A100)), encoding="utf-8")
    return tmp_path / "home"


def test_an_engine_that_fits_is_put_where_applications_load_it(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensure", "yolo", "--facts", "t4.json", "--json"]) == ExitCode.OK
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert (model["action"], model["job"], model["fit"]) == ("reused", Built().job, "exact-device")
    folder = home / "engines" / "yolo"
    assert (folder / "model.plan").read_bytes() == Built().content
    trust = json.loads((folder / "trust.json").read_text(encoding="utf-8"))
    assert (trust["reference"], trust["signer"]) == ("built here", None)
    before = folder.resolve()
    assert main(["ensure", "yolo", "--facts", "t4.json"]) == ExitCode.OK
    assert folder.resolve() == before


def test_without_a_recipe_and_a_registry_nothing_can_be_done(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ensure", "yolo", "--facts", "a100.json", "--json"]) == ExitCode.REFUSED
    shown = capsys.readouterr()
    assert json.loads(shown.out)["error"]["code"] == "EF-221"
    assert "EF-108 no recipes/ and images/" in shown.err
    assert main(["ensure", "yolo", "--facts", "a100.json", "--project", str(ROOT), "--auto"]) == ExitCode.BAD_INPUT
    assert "no recipe matches 'yolo'" in capsys.readouterr().err


def test_what_it_would_do_is_said(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Built(recipe="resnet18").add(Store(home / "store"))
    (home.parent / "rtx.json").write_text(
        facts_json(machine(gpu=A100, tensorrt=None, driver="580.95.05", driver_cuda="13.0", cuda="13.0")),
        encoding="utf-8",
    )
    arguments = ["ensure", "resnet18", "--facts", "rtx.json", "--project", str(ROOT)]
    assert main([*arguments, "--registry", "localhost:5000/engines"]) == ExitCode.REFUSED
    text = " ".join(capsys.readouterr().err.split())
    way = "build resnet18-fp16-trtrtx1.7-cuda13-sm80-sm86"
    assert f"would pull the engine that fits from localhost:5000/engines/resnet18, else {way}" in text


def test_a_pulled_engine_that_made_room_is_placed_again_if_it_is_trusted(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Built(recipe="sam").add(Store(home / "store"), annotations={PULLED: "localhost:5000/sam@sha256:0"})
    policy = home.parent / "policy.toml"
    policy.write_text('unsigned = "refuse"\n', encoding="utf-8")
    arguments = ["ensure", "sam", "--facts", "t4.json", "--policy", str(policy)]
    assert main(arguments) == ExitCode.UNTRUSTED
    assert not (home / "engines").exists()
    policy.write_text('unsigned = "allow"\n', encoding="utf-8")
    assert main(arguments) == ExitCode.OK
    trust = json.loads((home / "engines" / "sam" / "trust.json").read_text(encoding="utf-8"))
    assert (trust["reference"], trust["signer"]) == ("localhost:5000/sam@sha256:0", None)
    # another precision was pulled since
    Built(recipe="sam", precision="fp32").add(Store(home / "store"), annotations={PULLED: "localhost:5000/sam"})
    assert main([*arguments, "--precision", "fp32"]) == ExitCode.OK
    assert main([*arguments, "--precision", "fp16"]) == ExitCode.OK
    assert (home / "engines" / "sam" / "model.plan").read_bytes() == Built(recipe="sam").content


def test_ctrl_c_at_a_question_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it asks what runs to stop; a question would go on waiting for its answer."""
    cancel = threading.Event()
    monkeypatch.setattr("click.confirm", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with (
        stop_on_signals(cancel, lambda: None, open_terminal(sys.stderr, {})),
        pytest.raises(KeyboardInterrupt),
    ):
        _ask("pull yolo?")
    assert not cancel.is_set()
