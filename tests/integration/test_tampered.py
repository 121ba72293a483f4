"""Artifacts that were tampered with, in a real registry: each is refused with its own code, and never deserialized.

The spy is a TensorRT that counts. An application pulls and, if that worked, deserializes; an honest artifact shows that
the spy sees it.
"""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from builder import oci, registry_retry
from builder.artifact import make_index
from builder.errors import EnginefarmError, Reason
from builder.jobs import ENGINE
from builder.keys import KeyPair
from builder.places import Located, Place, Talk, locate
from builder.policy_rules import IndexRule, Policy
from builder.project import Home
from builder.publish import Destination, choose_packages, push_engines
from builder.publish_seal import Seal
from builder.pull import Order, Puller
from builder.store import Store
from builder.worker.trt import loading
from tests.artifacts import overwrite
from tests.integration.farm import ROOT
from tests.integration.fault_proxy import faults_before
from tests.published import (
    MODEL,
    Parcel,
    Published,
    add_parcel,
    attach,
    finish_engine,
    header,
    key_pair,
    machine,
    parcel,
    policy_for,
    publish,
    publish_engine,
    put,
    sha256,
    signer_of,
)

pytestmark = pytest.mark.integration

TEN_GB = 10 << 30


class Spy:
    """A TensorRT that counts what it is given to deserialize."""

    def __init__(self) -> None:
        self.deserialized: list[bytes] = []

    def Runtime(self, _: object) -> Spy:  # noqa: N802 - TensorRT's name
        return self

    def deserialize_cuda_engine(self, content: bytes) -> object:
        self.deserialized.append(content)
        return object()


@dataclass
class Scene:
    """A registry, an application that pulls from it and loads what it has pulled, and a spy in TensorRT's place."""

    registry: str
    storage: Path
    home: Home
    farm: KeyPair
    stranger: KeyPair
    spy: Spy

    @property
    def place(self) -> Place:
        return self.located().place

    @property
    def policy(self) -> Policy:
        return policy_for(self.farm)

    def located(self, address: str | None = None) -> Located:
        talk = Talk(cancel=threading.Event(), listen=lambda _: None)
        return locate(f"{address or self.registry}/farm/{MODEL}", talk)

    def publish(self, *parcels: Parcel, **options: Any) -> Published:
        """Publish as the farm does, signed."""
        return publish(self.place, parcels, **{"signer": signer_of(self.farm), **options})

    def run(self, address: str | None = None, **order: Any) -> None:
        """Do what an application does."""
        wanted: dict[str, Any] = {"machine": machine(), "policy": self.policy}
        puller = Puller(home=self.home, cancel=threading.Event(), listen=lambda _: None)
        pulled = puller.pull(self.located(address), Order(**wanted | order))
        loading.deserialize(self.spy, None, (pulled.folder / ENGINE).read_bytes())

    def blob(self, content: bytes) -> Path:
        """Find a blob where the registry keeps it."""
        name = sha256(content)
        return self.storage / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"


@pytest.fixture
def scene(
    registry: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Scene:
    monkeypatch.setattr(registry_retry, "_PAUSE_S", 0.0)
    return Scene(
        registry=registry,
        storage=tmp_path / "registry-0" / "store",
        home=Home(root=tmp_path / "home"),
        farm=key_pair(tmp_path / "farm"),
        stranger=key_pair(tmp_path / "stranger", "stranger"),
        spy=Spy(),
    )


def refused(scene: Scene, **order: Any) -> Reason:
    """Run the application; say why the pull was refused. Nothing is to be seen of it."""
    with pytest.raises(EnginefarmError) as caught:
        scene.run(**order)
    assert scene.spy.deserialized == []
    assert Store(scene.home.store).entries() == ()
    assert not (scene.home.engines / MODEL).exists()
    return caught.value.reason


def flip(content: bytes) -> bytes:
    """Flip one bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_an_honest_one_is_deserialized_once(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    scene.run()
    assert scene.spy.deserialized == [one.files[ENGINE]]


def test_there_is_one_call_that_deserializes() -> None:
    calls = [
        path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "builder").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "deserialize_cuda_engine"
    ]
    assert calls == ["builder/worker/trt/loading.py"]


# bits that flip where the registry keeps its files


@pytest.mark.parametrize("title", ["model.plan", "manifest.json", "key.json", "proof.json", "layers.json"])
def test_a_flipped_bit_in_a_file(scene: Scene, title: str) -> None:
    one = parcel()
    scene.publish(one)
    overwrite(scene.blob(one.files[title]), flip(one.files[title]))
    assert refused(scene) is Reason.DOWNLOAD_CORRUPT


def signature(scene: Scene, digest: str) -> bytes:
    """Read the signature of an artifact."""
    (listed,) = scene.place.referrers(digest)
    read = scene.place.manifest(listed["digest"], (oci.MANIFEST_TYPE,))
    assert read is not None
    blob = json.loads(read[0])["layers"][0]["digest"]
    url = f"http://{scene.registry}/v2/farm/{MODEL}/blobs/{blob}"
    return requests.get(url, timeout=10).content


def test_a_flipped_bit_in_the_signature(scene: Scene) -> None:
    published = scene.publish(parcel())
    bundle = signature(scene, published.artifacts[0])
    overwrite(scene.blob(bundle), flip(bundle))
    assert refused(scene) is Reason.DOWNLOAD_CORRUPT


def test_a_flipped_bit_in_the_artifact_s_own_manifest(scene: Scene) -> None:
    published = scene.publish(parcel())
    read = scene.place.manifest(published.artifacts[0], (oci.MANIFEST_TYPE,))
    assert read is not None
    overwrite(scene.blob(read[0]), read[0].replace(b"model.plan", b"model.plam"))
    assert refused(scene) in {Reason.DOWNLOAD_CORRUPT, Reason.ARTIFACT_MISSING}


# those who may write to the registry, and adjust every digest


@pytest.mark.parametrize("title", ["model.plan", "manifest.json", "key.json", "proof.json"])
def test_a_file_that_was_changed_after_it_was_signed(scene: Scene, title: str) -> None:
    one = parcel()
    entry = publish_engine(scene.place, one, signer_of(scene.farm))
    bundle = signature(scene, entry["digest"])
    forged = one.changed(**{title.replace(".", "_"): one.files[title] + b" "})
    if title == "model.plan":
        forged = parcel(engine=one.files[title] + b" ")
    attach(scene.place, publish_engine(scene.place, forged), bundle)
    publish(scene.place, [forged])
    assert refused(scene) is Reason.SIGNATURE_INVALID


def test_a_signature_with_a_flipped_bit(scene: Scene) -> None:
    one = parcel()
    entry = publish_engine(scene.place, one, signer_of(scene.farm))
    document = json.loads(signature(scene, entry["digest"]))
    sealed = document["dsseEnvelope"]["signatures"][0]
    sealed["sig"] = sealed["sig"][:20] + ("A" if sealed["sig"][20] != "A" else "B") + sealed["sig"][21:]
    # the same engine in an artifact of its own, to which only the bad signature is attached
    entry = unsigned_copy(scene, one)
    attach(scene.place, entry, json.dumps(document).encode())
    assert refused(scene) is Reason.SIGNATURE_INVALID


def unsigned_copy(scene: Scene, one: Parcel) -> oci.Document:
    """Publish an engine once more under another digest, as the only one of the index."""

    def mark(content: dict[str, Any]) -> None:
        content["annotations"] = {"note": "another digest"}

    return publish_changed(scene, mark, one, signed=False)


def publish_changed(
    scene: Scene, change: Callable[[dict[str, Any]], object], one: Parcel | None = None, *, signed: bool = True
) -> oci.Document:
    """Publish an engine whose OCI manifest is changed, as the only one of the index."""
    one = one or parcel()
    first = publish_engine(scene.place, one)
    content = json.loads((scene.place.manifest(first["digest"], (oci.MANIFEST_TYPE,)) or (b"",))[0])
    change(content)
    entry = finish_engine(scene.place, one, json.dumps(content).encode(), signer_of(scene.farm) if signed else None)
    scene.place.put_manifest("latest", make_index(MODEL, [entry], 1), oci.INDEX_TYPE)
    return entry


def test_the_engine_of_another_model(scene: Scene) -> None:
    # signed by the farm, and a good engine: of something else
    scene.publish(parcel("other"))
    assert refused(scene) is Reason.IDENTITY_MISMATCH


def test_another_engine_than_the_index_says(scene: Scene) -> None:
    scene.publish(parcel(variant=1).entitled(engine=sha256(b"0"), engine_size="1"))
    assert refused(scene) is Reason.IDENTITY_MISMATCH


def test_a_downgraded_index(scene: Scene) -> None:
    scene.publish(parcel(), serial=2)
    Puller(home=scene.home, cancel=threading.Event(), listen=lambda _: None)
    with pytest.raises(EnginefarmError):
        # seen, though nothing of it fits
        scene.run(machine=machine(sm="9.0"))
    scene.publish(parcel(variant=1), serial=1)
    assert refused(scene) is Reason.INDEX_ROLLED_BACK


def test_an_index_that_nobody_has_signed_where_that_is_asked_for(scene: Scene) -> None:
    scene.publish(parcel())
    assert refused(scene, policy=policy_for(scene.farm, index=IndexRule.SIGNED)) is Reason.UNSIGNED


def test_an_index_that_was_changed_after_it_was_signed(scene: Scene) -> None:
    old = scene.publish(parcel(), index_signer=signer_of(scene.farm))
    new = scene.publish(parcel(variant=1), serial=2)
    read = scene.place.manifest(new.index, (oci.INDEX_TYPE,))
    assert read is not None
    attach(scene.place, read[1], signature(scene, old.index))
    assert refused(scene, policy=policy_for(scene.farm, index=IndexRule.SIGNED)) is Reason.SIGNATURE_INVALID


def test_unsigned(scene: Scene) -> None:
    scene.publish(parcel(), signer=None)
    assert refused(scene) is Reason.UNSIGNED


def test_signed_by_a_stranger(scene: Scene) -> None:
    scene.publish(parcel(), signer=signer_of(scene.stranger))
    assert refused(scene) is Reason.SIGNER_UNKNOWN


def test_signed_by_somebody_for_other_models(scene: Scene) -> None:
    scene.publish(parcel())
    assert refused(scene, policy=policy_for(scene.farm, models="other*")) is Reason.SIGNER_UNKNOWN


def test_an_expired_key(scene: Scene) -> None:
    scene.publish(parcel())
    assert refused(scene, policy=policy_for(scene.farm, expired=True)) is Reason.KEY_EXPIRED


def test_a_revoked_key(scene: Scene) -> None:
    scene.publish(parcel())
    assert refused(scene, policy=policy_for(scene.farm, revoked={scene.farm.key_id: "lost"})) is Reason.KEY_REVOKED


# engines for other machines


def test_the_wrong_sm(scene: Scene) -> None:
    target = parcel().told.target.model_copy(update={"sms": ["9.0"]})
    scene.publish(parcel(target=target))
    assert refused(scene) is Reason.NO_ENGINE_FITS
    scene.publish(parcel(target=target).entitled(sms="8.6"), serial=2)
    assert refused(scene) is Reason.SM_MISMATCH


def test_the_wrong_tensorrt(scene: Scene) -> None:
    stack = parcel().told.stack.model_copy(update={"tensorrt": "1.8.0.1"})
    later = parcel(engine=header("1.8.0.1") + b"later", stack=stack)
    scene.publish(later)
    assert refused(scene) is Reason.NO_ENGINE_FITS
    scene.publish(later.entitled(tensorrt="1.7.1.116"), serial=2)
    assert refused(scene) is Reason.TENSORRT_VERSION
    scene.publish(parcel(engine=header("1.8.0.1") + b"later"), serial=3)
    assert refused(scene) is Reason.ENGINE_HEADER


def test_code_for_the_host_that_the_policy_does_not_allow(scene: Scene) -> None:
    one = parcel()
    told = one.told.model_copy(update={"engine": one.told.engine.model_copy(update={"needs_host_code": True})})
    carrying = replace(one, told=told).changed(manifest_json=told.to_json().encode())
    scene.publish(carrying.entitled(host_code="false"))
    assert refused(scene) is Reason.HOST_CODE_REFUSED


# names and sizes


@pytest.mark.parametrize(
    "title", ["../../../etc/cron.d/farm", "/etc/passwd", "..", "model.plan/../../x", "model.plan -> /etc/passwd", ""]
)
def test_names_that_lead_elsewhere(scene: Scene, title: str) -> None:
    def add(content: dict[str, Any]) -> None:
        digest, size = put(scene.place, b"* * * * * root id")
        content["layers"].append(oci.descriptor("application/octet-stream", digest, size, {oci.TITLE: title}))

    publish_changed(scene, add)
    assert refused(scene) is Reason.NAME_UNSAFE


def test_a_bomb_that_says_so(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    with scene.blob(one.files[ENGINE]).open("r+b") as file:
        file.truncate(TEN_GB)

    def swell(content: dict[str, Any]) -> None:
        (engine,) = [layer for layer in content["layers"] if layer["annotations"][oci.TITLE] == ENGINE]
        engine["size"] = TEN_GB

    publish_changed(scene, swell, one)
    assert refused(scene) is Reason.SIZE_REFUSED


def test_a_bomb_that_does_not_say_so(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    with scene.blob(one.files[ENGINE]).open("r+b") as file:
        file.truncate(TEN_GB)
    assert refused(scene) is Reason.SIZE_REFUSED
    kept = [path.stat().st_size for path in scene.home.pulls.rglob("*") if path.is_file()]
    assert sum(kept) < 1 << 20


class _Endless(BaseHTTPRequestHandler):
    """Passes questions on; whoever asks for an engine gets one that never ends."""

    protocol_version = "HTTP/1.1"
    upstream, engine, sent = "", "", 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.engine in self.path:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
            self.close_connection = True
            try:
                while type(self).sent < TEN_GB:
                    self.wfile.write(piece)
                    type(self).sent += 0x10000
            except OSError:
                pass
            return
        headers = {"Accept": self.headers.get("Accept", "*/*")}
        answer = requests.get(f"http://{self.upstream}{self.path}", headers=headers, timeout=10)
        self.send_response(answer.status_code)
        for name in ("Content-Type", "Docker-Content-Digest"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)


@contextmanager
def endless(upstream: str, engine: str) -> Iterator[tuple[str, type[_Endless]]]:
    """Serve a registry whose engine never ends."""
    handler = type("Endless", (_Endless,), {"upstream": upstream, "engine": engine, "sent": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def test_a_stream_without_an_end(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    with endless(scene.registry, one.told.engine.sha256) as (address, handler):
        assert refused(scene, address=address) is Reason.SIZE_REFUSED
        # what the sockets hold may be on its way, and no more
        assert handler.sent < 64 << 20


# what is too new, too short or gone


def test_a_manifest_of_a_newer_schema(scene: Scene) -> None:
    one = parcel()
    content = json.loads(one.files["manifest.json"]) | {"schema_version": 2, "novelty": True}
    scene.publish(one.changed(manifest_json=json.dumps(content).encode()))
    assert refused(scene) is Reason.ARTIFACT_TOO_NEW
    scene.publish(parcel(), schema=2, serial=2)
    assert refused(scene) is Reason.ARTIFACT_TOO_NEW

    def renew(content: dict[str, Any]) -> None:
        content["artifactType"] = "application/vnd.enginefarm.engine.v2"

    publish_changed(scene, renew)
    assert refused(scene) is Reason.ARTIFACT_TOO_NEW


def test_a_file_that_lost_its_end(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    overwrite(scene.blob(one.files[ENGINE]), one.files[ENGINE][:-100])
    assert refused(scene) is Reason.DOWNLOAD_CORRUPT


def test_a_file_that_is_gone(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    scene.blob(one.files[ENGINE]).unlink()
    assert refused(scene) is Reason.ARTIFACT_MISSING


def test_a_registry_that_goes_away_while_it_is_published_to(scene: Scene) -> None:
    source, destination = (
        Store(scene.home.root.parent / "source"),
        Destination(registry="", prefix="farm", tag="latest"),
    )
    add_parcel(source, parcel())
    packages, seal, gone = choose_packages(source, ()), Seal(store=source, signer=None), 0
    with faults_before(scene.registry) as proxy:
        destination = replace(destination, registry=proxy.address)
        for number in range(0, 100, 4):
            proxy.die_after(number)
            try:
                push_engines(packages, destination, cancel=threading.Event(), listen=lambda _: None, seal=seal)
                break
            except EnginefarmError as error:
                gone += error.reason is Reason.REGISTRY_UNREACHABLE
            assert refused(scene) is Reason.ARTIFACT_MISSING
    # once the index is there, all that it names is there: only the signature is missing
    assert gone > 3
    assert refused(scene) is Reason.UNSIGNED
