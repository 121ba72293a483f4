"""`enginefarm sign` and `keys` as people use them, and both ways against model-signing's own command."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from builder.export_dir import export_engine
from builder.project import Home
from builder.query import find_engine
from builder.store import Store
from tests.engines import add_engine, job_id
from tests.integration.farm import ROOT
from tests.signing import Authority, authority

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "import sys; from builder.cli import main; sys.exit(main())"]
MODEL_SIGNING = [sys.executable, "-m", "model_signing"]
JOB = job_id()
RIGHT, WRONG = ({"ENGINEFARM_KEY_PASSPHRASE": text} for text in ("correct horse", "battery"))


@dataclass(frozen=True)
class Desk:
    """A home with an engine in its store, and the engine as a folder."""

    home: Path
    folder: Path

    def run(self, *arguments: object, code: int = 0, environ: Mapping[str, str] | None = None) -> str:
        """Run `enginefarm`, which must end so, and return what it says."""
        dropped = {"ENGINEFARM_POLICY", "COLUMNS", "FORCE_COLOR"}
        kept = {name: value for name, value in os.environ.items() if name not in dropped}
        env = {**kept, "ENGINEFARM_HOME": str(self.home), "PYTHONPATH": str(ROOT), **(environ or {})}
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=env,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr if code else done.stdout

    def json(self, *arguments: object) -> Any:
        """Run `enginefarm --json`."""
        return json.loads(self.run(*arguments, "--json"))

    def trust(self, name: str = "release", *, more: str = "") -> None:
        """Trust the current key of a name, besides those trusted already."""
        path = self.home / "policy.toml"
        rule = self.run("keys", "export", name, "--policy")
        if path.exists():
            # one more key for the same rule
            rule = path.read_text(encoding="utf-8") + rule[rule.index("[[rules.keys]]") :]
        path.write_text(f"{more}\n{rule}", encoding="utf-8")

    def key(self, name: str = "release") -> dict[str, Any]:
        """Find the current key of a name."""
        return next(one for one in self.json("keys", "list") if one["name"] == name)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """Make a home with a key and an engine."""
    home = Home(root=tmp_path / "home")
    store = Store(home.store)
    add_engine(store)
    exported = export_engine(store, find_engine(store, JOB), tmp_path / "out")
    desk = Desk(home=home.root, folder=exported.folder)
    desk.run("keys", "generate", "release")
    return desk


def model_signing(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command of model-signing."""
    return subprocess.run([*MODEL_SIGNING, *map(str, arguments)], capture_output=True, text=True, check=False)


def signature(folder: Path) -> Path:
    """Find the only signature in a folder."""
    (found,) = folder.glob("*.sigstore.json")
    return found


def test_folder_is_signed_checked_and_found_out(desk: Desk) -> None:
    """From a key to a refusal."""
    assert "EF-218" in desk.run("sign", "--check", desk.folder, code=9)
    (signed,) = desk.json("sign", desk.folder, "--key", "release")
    assert signed["signature"] == str(signature(desk.folder))
    assert "EF-712" in desk.run("sign", "--check", desk.folder, code=9)
    desk.trust()
    checked = desk.json("sign", "--check", desk.folder)
    expected = {"model": "tiny", "signed": True, "signer": "release", "signed_at": None, "host_code": False}
    assert checked == {**expected, "key_id": desk.key()["id"]}
    assert "EF-707" in desk.run("sign", "--check", desk.folder, "--model", "other", code=9)
    engine = desk.folder / "model.plan"
    content = engine.read_bytes()
    engine.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "model.plan was changed" in desk.run("sign", "--check", desk.folder, code=9)


def test_signed_folder_travels_with_its_signature(desk: Desk, tmp_path: Path) -> None:
    """A copy elsewhere, under another name, with a note of some pull beside it, is as good."""
    desk.run("sign", desk.folder, "--key", desk.key()["private"])
    desk.trust()
    shutil.copytree(desk.folder, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "trust.json").write_text("{}", encoding="utf-8")
    assert desk.json("sign", "--check", tmp_path / "elsewhere")["signer"] == "release"


def test_engine_of_the_store_is_signed(desk: Desk) -> None:
    """The signature lies beside it, counts for exactly it, and is replaced rather than heaped up."""
    desk.trust()
    assert "EF-218" in desk.run("sign", "--check", JOB, code=9)
    for _ in range(2):
        assert desk.json("sign", JOB, "--key", "release")[0]["name"] == JOB
    assert desk.json("sign", "--check", JOB)["signer"] == "release"
    assert "1 signature; 0 problems" in desk.run("verify-store")
    add_engine(Store(desk.home / "store"), variant=1)
    assert "EF-218" in desk.run("sign", "--check", JOB, code=9)


def test_rotation_and_revocation(desk: Desk) -> None:
    """Old and new key sign for a while; then the old one is revoked and only the new one counts."""
    old = desk.key()
    desk.trust()
    desk.run("sign", desk.folder, "--key", "release")
    desk.run("keys", "rotate", "release", "--days", "30")
    desk.trust()
    assert [one["state"] for one in desk.json("keys", "list")] == ["current", "replaced"]
    desk.run("keys", "revoke", old["id"][:12], "--why", "left in a train")
    said = desk.run("sign", "--check", desk.folder, code=9)
    assert "EF-714" in said
    assert "left in a train" in said
    assert "EF-714" in desk.run("sign", desk.folder, "--key", old["private"], code=9)
    desk.run("sign", desk.folder, "--key", "release")
    assert len(list(desk.folder.glob("*.sigstore.json"))) == 2
    assert desk.json("sign", "--check", desk.folder)["key_id"] == desk.key()["id"]


def test_passphrase_comes_from_the_environment_or_a_terminal(desk: Desk) -> None:
    """Never from the command line; without one nothing hangs."""
    assert "ENGINEFARM_KEY_PASSPHRASE" in desk.run("keys", "generate", "covered", "--passphrase", code=2)
    desk.run("keys", "generate", "covered", "--passphrase", environ=RIGHT)
    assert b"ENCRYPTED" in Path(desk.key("covered")["private"]).read_bytes()
    assert "none was given" in desk.run("sign", desk.folder, "--key", "covered", code=3)
    wrong = desk.run("sign", desk.folder, "--key", "covered", code=3, environ=WRONG)
    assert "the passphrase is wrong" in wrong
    desk.run("sign", desk.folder, "--key", "covered", environ=RIGHT)
    desk.trust("covered")
    assert desk.json("sign", "--check", desk.folder)["signer"] == "covered"


def test_passphrase_is_asked_for(desk: Desk) -> None:
    """Twice where it is new, and it is not shown."""
    controller, terminal = pty.openpty()
    env = {**os.environ, "ENGINEFARM_HOME": str(desk.home), "PYTHONPATH": str(ROOT)}
    command = [*COMMAND, "keys", "generate", "asked", "--passphrase"]
    process = subprocess.Popen(
        command, env=env, stdin=terminal, stdout=subprocess.PIPE, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    said = b""
    for _ in range(2):
        while not said.endswith(b": "):
            said += os.read(controller, 1024)
        os.write(controller, b"correct horse\n")
        said += os.read(controller, 1)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"horse" not in said
    assert b"ENCRYPTED" in Path(desk.key("asked")["private"]).read_bytes()


def test_our_signature_holds_for_model_signing(desk: Desk) -> None:
    """Whoever does not have the farm checks with the library's command."""
    desk.run("sign", desk.folder, "--key", "release")
    bundle, public = signature(desk.folder), desk.key()["public"]
    arguments = ("verify", "key", desk.folder, "--signature", bundle, "--public_key", public)
    assert model_signing(*arguments).returncode == 0
    desk.run("keys", "generate", "other")
    assert model_signing(*arguments[:-1], desk.key("other")["public"]).returncode != 0
    (desk.folder / "extra").write_bytes(b"x")
    assert model_signing(*arguments).returncode != 0


def test_signature_of_model_signing_holds_for_us(desk: Desk) -> None:
    """And whoever has the library's command only may sign."""
    path = desk.folder / "anybody.sigstore.json"
    done = model_signing("sign", "key", desk.folder, "--signature", path, "--private_key", desk.key()["private"])
    assert done.returncode == 0, done.stderr
    assert "EF-712" in desk.run("sign", "--check", desk.folder, code=9)
    desk.trust()
    assert desk.json("sign", "--check", desk.folder)["signer"] == "release"
    # it leaves out what Git would; we do not
    (desk.folder / ".gitignore").write_bytes(b"x")
    assert (
        model_signing(
            "verify", "key", desk.folder, "--signature", path, "--public_key", desk.key()["public"]
        ).returncode
        == 0
    )
    assert "EF-706" in desk.run("sign", "--check", desk.folder, code=9)


def certified(desk: Desk, tmp_path: Path) -> Authority:
    """Trust an authority and who it certifies, from now on."""
    made = authority(tmp_path / "ca", begins=datetime.now(tz=timezone.utc).replace(microsecond=0))
    (desk.home / "ca.pem").write_bytes(made.pem)
    lines = ["[[rules]]", 'models = ["*"]', "[[rules.certificates]]", 'name = "builders"', 'ca = "ca.pem"']
    (desk.home / "policy.toml").write_text("\n".join([*lines, 'identity = "ci@example.org"']), encoding="utf-8")
    return made


def test_certificates_both_ways(desk: Desk, tmp_path: Path) -> None:
    """With a key that an authority certified, by our command and by the library's."""
    made = certified(desk, tmp_path)
    (chain,) = made.signer.chain
    made.signer.key.chmod(0o600)
    arguments = ("--key", made.signer.key, "--certificate", made.signer.certificate, "--chain", chain)
    desk.run("sign", desk.folder, *arguments)
    assert desk.json("sign", "--check", desk.folder)["signer"] == "builders"
    ours = signature(desk.folder)
    verified = model_signing(
        "verify", "certificate", desk.folder, "--signature", ours, "--certificate_chain", desk.home / "ca.pem"
    )
    assert verified.returncode == 0, verified.stderr
    ours.unlink()
    path = desk.folder / "anybody.sigstore.json"
    done = model_signing(
        "sign", "certificate", desk.folder, "--signature", path, "--private_key", made.signer.key,
        "--signing_certificate", made.signer.certificate, "--certificate_chain", chain,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert desk.json("sign", "--check", desk.folder)["signer"] == "builders"


def test_what_lies_in_a_registry_is_signed(desk: Desk, registry: str) -> None:
    """Pushed unsigned, signed later, engines and their list; what the store does not hold is not."""
    desk.run("push", f"{registry}/engines")
    place = f"{registry}/engines/tiny"
    signed = desk.json("sign", place, "--key", "release")
    assert [one["name"] for one in signed] == [JOB, "tiny"]
    again = desk.json("sign", signed[0]["signature"], "--key", "release")
    assert again[0]["sha256"] == signed[0]["sha256"]
    assert "EF-701" in desk.run("sign", f"{place}:2", "--key", "release", code=3)
    shutil.rmtree(desk.home / "store")
    assert "the store does not hold" in desk.run("sign", place, "--key", "release", code=3)


def test_usage_is_told(desk: Desk) -> None:
    """Nothing is signed by accident."""
    assert "--key FILE or NAME" in desk.run("sign", desk.folder, code=2)
    assert "--keyless signs without" in desk.run("sign", desk.folder, "--keyless", "--key", "release", code=2)
    assert "needs the --key" in desk.run("sign", desk.folder, "--certificate", desk.key()["public"], code=2)
    assert "EF-110" in desk.run("keys", "generate", "release", code=3)
    assert "EF-109" in desk.run("sign", desk.folder, "--key", "nobody", code=3)
    assert "EF-109" in desk.run("keys", "revoke", "abc", "--why", "x", code=3)
    assert not list(desk.folder.glob("*.sigstore.json"))


def test_open_private_key_is_told_of(desk: Desk) -> None:
    """It signs all the same: secrets of a cluster are mounted so."""
    path = desk.home / "open.pem"
    path.write_bytes(Path(desk.key()["private"]).read_bytes())
    path.chmod(0o644)
    env = {**os.environ, "ENGINEFARM_HOME": str(desk.home), "PYTHONPATH": str(ROOT)}
    command = [*COMMAND, "sign", str(desk.folder), "--key", str(path)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "chmod 600" in done.stderr


def test_commands_that_sign_nothing_import_nothing_for_it() -> None:
    """Signing is slow to import; listing engines and the help do not pay for it."""
    code = (
        "import sys; from builder.cli import main; main(sys.argv[1:]); "
        "print([m for m in ('model_signing', 'sigstore', 'cryptography') if m in sys.modules], file=sys.stderr)"
    )
    for arguments in (["ls"], ["--help"], ["sign", "--help"], ["keys", "--help"]):
        env = {**os.environ, "ENGINEFARM_HOME": "/nonexistent", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], env=env, capture_output=True, text=True, check=True
        )
        assert done.stderr.splitlines()[-1] == "[]"
