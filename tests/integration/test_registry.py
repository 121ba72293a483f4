"""Publishing to a real registry: what arrives is what general tools read, and nothing is half there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder import artifact, oci
from builder.cli import main
from builder.errors import EnginefarmError, Reason
from builder.publish import choose_packages
from builder.registry import Registry
from builder.store import Store
from builder.titles import ENGINE, KEY, MANIFEST, PROOF
from tests.integration.farm import ROOT
from tests.integration.publishing import fill, push, read_index, repository
from tests.published import add_parcel, stripped

pytestmark = pytest.mark.integration

LARGE = 48 << 20


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store with two engines."""
    store = Store(tmp_path / "home" / "store")
    fill(store)
    return store


def run(program: str, *arguments: str, cwd: Path | None = None) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs the program {program}")
    done = subprocess.run([found, *arguments], check=False, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_oras_reads_it(store: Store, registry: str, tmp_path: Path) -> None:
    (pushed,) = push(store, registry)
    index = json.loads(run("oras", "manifest", "fetch", "--plain-http", pushed.reference))
    assert index["artifactType"] == artifact.MODEL_TYPE
    assert [one["annotations"]["org.enginefarm.job"] for one in index["manifests"]] == [e.job for e in pushed.engines]
    one = f"{registry}/engines/tiny@{pushed.engines[0].digest}"
    assert json.loads(run("oras", "manifest", "fetch", "--plain-http", one))["artifactType"] == artifact.ENGINE_TYPE
    assert json.loads(run("oras", "manifest", "fetch-config", "--plain-http", one))["job"] == pushed.engines[0].job
    (tmp_path / "out").mkdir()
    run("oras", "pull", "--plain-http", one, cwd=tmp_path / "out")
    names = {ENGINE, MANIFEST, KEY, PROOF, "timing.cache", artifact.LAYERS}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    content = (tmp_path / "out" / ENGINE).read_bytes()
    assert oci.digest_of(content) == f"sha256:{pushed.engines[0].engine_sha256}"
    beside = run("oras", "discover", "--plain-http", one)
    assert artifact.SBOM_TYPE in beside
    assert artifact.PROVENANCE_TYPE in beside


def test_skopeo_reads_it(store: Store, registry: str) -> None:
    (pushed,) = push(store, registry)
    plain = ("inspect", "--tls-verify=false")
    index = json.loads(run("skopeo", *plain, "--raw", f"docker://{pushed.reference}"))
    assert index["annotations"]["org.enginefarm.serial"] == "1"
    one = f"docker://{registry}/engines/tiny@{pushed.engines[0].digest}"
    assert json.loads(run("skopeo", *plain, "--raw", one))["config"]["mediaType"] == artifact.CONFIG_TYPE
    assert json.loads(run("skopeo", *plain, "--raw", "--config", one))["job"] == pushed.engines[0].job


def test_oras_copies_it_as_it_is(store: Store, registry: str) -> None:
    (pushed,) = push(store, registry)
    plain = ("--from-plain-http", "--to-plain-http")
    run("oras", "cp", *plain, pushed.reference, f"{registry}/copied/tiny:latest")
    copied = Registry(registry, "copied/tiny", cancel=threading.Event(), listen=lambda _: None)
    assert copied.resolve("latest", (oci.INDEX_TYPE,)) == pushed.digest
    for engine in pushed.engines:
        source = f"{registry}/engines/tiny@{engine.digest}"
        run("oras", "cp", "--recursive", *plain, source, f"{registry}/copied/tiny")
        assert {one["digest"] for one in copied.referrers(engine.digest)} == set(engine.referrers.values())


def test_pushing_again_changes_nothing(store: Store, registry: str) -> None:
    (first,) = push(store, registry)
    (second,) = push(store, registry)
    assert (second.digest, second.serial, second.changed) == (first.digest, 1, False)
    assert [one.digest for one in second.engines] == [one.digest for one in first.engines]
    assert [one.referrers for one in second.engines] == [one.referrers for one in first.engines]


def test_the_command(store: Store, registry: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(store.root.parent))
    assert main(["keys", "generate", "mine"]) == 0
    capsys.readouterr()
    assert main(["push", f"{registry}/engines", "tiny*", "--tag", "1", "--key", "mine", "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)
    assert (model["reference"], model["serial"], model["changed"]) == (f"{registry}/engines/tiny:1", 1, True)
    subjects = [model["digest"], *(one["digest"] for one in model["engines"])]
    signed = [repository(registry).referrers(digest, artifact.SIGNATURE_TYPE) for digest in subjects]
    assert [len(found) for found in signed] == [1, 1, 1]
    assert main(["push", f"{registry}/engines", "--tag", "1", "--key", "mine"]) == 0
    captured = capsys.readouterr()
    assert "unchanged" in captured.out
    assert "0 engines pushed, 2 there already" in captured.err
    assert signed == [repository(registry).referrers(digest, artifact.SIGNATURE_TYPE) for digest in subjects]


def test_blobs_are_mounted(store: Store, registry: str, tmp_path: Path) -> None:
    push(store, registry)
    package = choose_packages(store, [])[0]
    plan = package.parsed.layers[ENGINE]
    other = repository(registry, "other")
    assert not other.push(tmp_path / "never read", plan["digest"], plan["size"], mount_from="engines/tiny")
    other.fetch(plan, tmp_path / ENGINE)
    assert (tmp_path / ENGINE).stat().st_size == plan["size"]


def test_six_farms_push_at_once(tmp_path: Path, registry: str) -> None:
    stores = [Store(tmp_path / str(number)) for number in range(6)]
    jobs = {one.job for number, store in enumerate(stores) for one in fill(store, count=2, size=4096, seed=number)}
    script = (
        "import sys, threading; from pathlib import Path; from builder.store import Store\n"
        "from builder.publish import *; from builder.publish_seal import Seal\n"
        "store = Store(Path(sys.argv[1])); place = parse_destination(sys.argv[2] + '/engines', 'latest')\n"
        "seal = Seal(store=store, signer=None); packages = choose_packages(store, [])\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "push_engines(packages, place, cancel=threading.Event(), listen=lambda _: None, seal=seal)\n"
    )
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(store.root), registry],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for store in stores
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    with ThreadPoolExecutor(max_workers=6) as pool:
        list(pool.map(lambda process: process.communicate(b"\n", timeout=120), processes))
    assert [process.returncode for process in processes] == [0] * 6
    index = read_index(registry)
    assert index is not None
    assert {entry["annotations"]["org.enginefarm.job"] for entry in index.entries} == jobs


@dataclass
class Mortal:
    """A registry whose process can be killed and started again, with the same content at the same address."""

    address: str
    command: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        host, _, port = self.address.partition(":")
        for _ in range(200):
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
            except ConnectionRefusedError:
                time.sleep(0.05)
            else:
                return
        pytest.fail("the registry does not answer")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(timeout=10)
            self.process = None


@pytest.fixture
def mortal(serve_registry: Callable[..., str], tmp_path: Path) -> Iterator[Mortal]:
    """Start a registry to be killed. Its content is that of another one's folder."""
    program = shutil.which("docker-registry")
    assert program is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = tmp_path / "mortal.yml"
    lines = ["version: 0.1", "log: {level: error, accesslog: {disabled: true}}"]
    lines += [f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'mortal'}}}}}"]
    lines += [f"http: {{addr: {address}, secret: toys}}"]
    config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    registry = Mortal(address=address, command=[program, "serve", str(config)], log=tmp_path / "mortal.log")
    registry.start()
    yield registry
    registry.kill()


def killing(registry: Mortal, after_s: float, away_s: float | None) -> threading.Thread:
    def work() -> None:
        time.sleep(after_s)
        registry.kill()
        if away_s is not None:
            time.sleep(away_s)
            registry.start()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("after_s", [0.05, 0.15, 0.3, 0.5])
def test_a_registry_that_is_killed_and_comes_back(tmp_path: Path, mortal: Mortal, after_s: float) -> None:
    store = Store(tmp_path / "home" / "store")
    fill(store, size=LARGE)
    thread = killing(mortal, after_s, 0.5)
    (pushed,) = push(store, mortal.address)
    thread.join()
    assert {one.digest for one in pushed.engines} == {p.parsed.descriptor["digest"] for p in choose_packages(store, [])}
    whole(mortal.address, tmp_path)


def test_a_registry_that_is_gone_for_good(tmp_path: Path, mortal: Mortal) -> None:
    store = Store(tmp_path / "home" / "store")
    fill(store, size=4096)
    push(store, mortal.address)
    before = read_index(mortal.address)
    fill(store, size=LARGE, seed=1)
    thread = killing(mortal, 0.2, None)
    with pytest.raises(EnginefarmError) as caught:
        push(store, mortal.address)
    thread.join()
    assert caught.value.reason is Reason.REGISTRY_UNREACHABLE
    assert "same command again" in str(caught.value.fix)
    mortal.start()
    assert read_index(mortal.address) == before
    (pushed,) = push(store, mortal.address)
    assert (pushed.listed, pushed.serial) == (4, 2)
    whole(mortal.address, tmp_path)


def whole(address: str, tmp_path: Path) -> None:
    """Fetch every file that the index leads to."""
    index = read_index(address)
    assert index is not None
    remote = repository(address)
    for entry in index.entries:
        found = remote.manifest(entry["digest"], (oci.MANIFEST_TYPE,))
        assert found is not None
        for title, one in artifact.parse_artifact(found[0], address).files.items():
            remote.fetch(one, tmp_path / f"{entry['digest'][7:15]}-{title}")


def test_a_download_survives_a_killed_registry(tmp_path: Path, mortal: Mortal) -> None:
    content = os.urandom(LARGE * 2)
    described = oci.descriptor("application/octet-stream", oci.digest_of(content), len(content))
    remote = repository(mortal.address)
    (tmp_path / "file").write_bytes(content)
    remote.push(tmp_path / "file", described["digest"], described["size"])
    for number in range(3):
        thread = killing(mortal, 0.02 * (number + 1), 0.3)
        remote.fetch(described, tmp_path / f"copy-{number}")
        thread.join()
        assert (tmp_path / f"copy-{number}").read_bytes() == content


def test_ctrl_c_ends_a_push(tmp_path: Path, registry: str) -> None:
    store = Store(tmp_path / "home" / "store")
    fill(store, size=LARGE)
    cancel = threading.Event()
    timer = threading.Timer(0.1, cancel.set)
    timer.start()
    with pytest.raises(EnginefarmError) as caught:
        push(store, registry, cancel)
    timer.join()
    assert caught.value.reason is Reason.INTERRUPTED
    assert read_index(registry) is None


def digests(store: Store) -> dict[str, str]:
    """Map the jobs of a store to the digests of their engines."""
    return {entry.name: store.files(entry)[ENGINE].digest for entry in store.entries("engine")}


def test_all_engines_of_the_farm(
    tmp_path: Path, registry: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    home = os.environ.get("ENGINEFARM_TEST_ENGINES")
    if home is None:
        pytest.skip("needs engines: a farm's home in ENGINEFARM_TEST_ENGINES")
    monkeypatch.setenv("ENGINEFARM_HOME", home)
    assert main(["push", f"{registry}/engines", "--json"]) == 0
    pushed = json.loads(capsys.readouterr().out)
    for model in pushed:
        index = read_index(registry, model["model"])
        assert index is not None
        assert index.digest == model["digest"]
        assert len(index.entries) == model["listed"] == len(model["engines"])
        assert run("skopeo", "inspect", "--tls-verify=false", "--raw", f"docker://{model['reference']}")
        assert run("oras", "manifest", "fetch", "--plain-http", model["reference"])
    # and back again, each by its precision, to a machine that can run them
    facts = ROOT / "tests" / "data" / "machines" / "rtx3090-rtx1.7.json"
    before, after = Store(Path(home) / "store"), Store(tmp_path / "elsewhere" / "store")
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "elsewhere"))
    for model in pushed:
        for engine in model["engines"]:
            precision = engine["job"].removeprefix(f"{model['model']}-").partition("-")[0]
            wish = ["--facts", str(facts), "--precision", precision, "--allow-unsigned", "--json"]
            assert main(["pull", model["reference"], *wish]) == 0
            assert json.loads(capsys.readouterr().out)["job"] == engine["job"]
    assert digests(after) == digests(before)
    assert after.verify() == ()


def test_weights_of_several_sms_are_one_blob(tmp_path: Path, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, parcels = Store(tmp_path / "store"), [stripped("8.0"), stripped("8.6", variant=1)]
    uploaded: list[str] = []
    real = Registry.push

    def watched(self: Registry, content: Any, digest: str, size: int, **options: Any) -> bool:
        new = real(self, content, digest, size, **options)
        uploaded.extend([digest] * new)
        return new

    monkeypatch.setattr(Registry, "push", watched)
    sent = []
    for one in parcels:
        add_parcel(store, one)
        uploaded.clear()
        push(store, registry)
        sent.append(set(uploaded))
    weights = {oci.digest_of(one.files["weights.onnx"]) for one in parcels}
    assert len(weights) == 1
    assert (weights <= sent[0], weights & sent[1]) == (True, set())
    assert oci.digest_of(parcels[1].files[ENGINE]) in sent[1]
    file = tmp_path / "weights"
    content = parcels[0].files["weights.onnx"]
    repository(registry).fetch(artifact.layer("weights.onnx", weights.pop(), len(content)), file)
    assert file.read_bytes() == content
