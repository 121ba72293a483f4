"""Pushing an image to a real registry: the digest stays, and what belongs to the image can be found beside it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from builder import image_push, oci
from builder.artifact import PROVENANCE_TYPE, SBOM_TYPE
from builder.bases import Bases, load_bases
from builder.docker_engine import DockerEngine
from builder.errors import EnginefarmError, Reason
from builder.events import Event, StepFinished, StepStarted
from builder.image_inputs import EXPORT
from builder.image_layout import ImageLayout
from builder.image_push import PushedImage, push_image
from builder.image_record import ImageRecord, layer_sizes
from builder.images import ImageBuilder
from builder.project import Home, Project
from builder.registry import Registry
from builder.registry_session import Answer
from builder.sbom import bill_of_materials, provenance_statement
from builder.stacks import Stack, load_stacks
from tests.integration.farm import ROOT

pytestmark = pytest.mark.integration

TAG = "enginefarm/toy:0123456789abcdef"
# of the password "secret"
HTPASSWD = "somebody:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"
FOREIGN = "application/vnd.example.scan"


@dataclass(frozen=True)
class Toy:
    """A tiny image in a Docker Engine, and a builder that takes it for that of a stack."""

    builder: ImageBuilder
    stack: Stack
    record: ImageRecord
    bases: Bases
    heard: list[Event]

    def push(self, registry: str) -> PushedImage:
        return push_image(self.builder, self.stack, f"{registry}/farm/toy")


class ModernRegistry(ThreadingHTTPServer):
    """A registry as far as referrers need one: it lists them itself, and gives tokens for one scope at a time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Modern)
        self.address = f"127.0.0.1:{self.server_port}"
        self.content: dict[str, tuple[str, bytes]] = {}
        self.scopes: dict[str, str] = {}
        self.calls: list[str] = []


class _Modern(BaseHTTPRequestHandler):
    server: ModernRegistry

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, code: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def allowed(self, scope: str) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if scope in self.server.scopes.get(token, ""):
            return True
        realm = f'Bearer realm="http://{self.server.address}/token",service="toys",scope="repository:farm/toy:{scope}"'
        self.answer(401, WWW_Authenticate=realm)
        return False

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/token":
            token = uuid.uuid4().hex
            self.server.scopes[token] = parse_qs(url.query)["scope"][0]
            self.answer(200, json.dumps({"token": token}).encode())
        elif url.path.startswith("/v2/farm/toy/referrers/"):
            if self.allowed("pull"):
                self.answer(200, self.referrers(url.path.rpartition("/")[2]), Content_Type=oci.INDEX_TYPE)
        elif self.allowed("pull"):
            kind, body = self.server.content.get(url.path, ("", b""))
            self.answer(200 if kind else 404, body, Content_Type=kind)

    do_HEAD = do_GET  # noqa: N815

    def referrers(self, digest: str) -> bytes:
        found = {}
        for kind, body in self.server.content.values():
            document = json.loads(body) if kind == oci.MANIFEST_TYPE else {}
            if document.get("subject", {}).get("digest") == digest:
                one = oci.descriptor(kind, oci.digest_of(body), len(body))
                found[one["digest"]] = one | {"artifactType": document["artifactType"]}
        index = {"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": list(found.values())}
        return json.dumps(index).encode()

    def do_POST(self) -> None:
        if self.allowed("pull,push"):
            self.answer(202, Location="/upload?state=1")

    def do_PUT(self) -> None:
        body, url = self.rfile.read(int(self.headers["Content-Length"])), urlsplit(self.path)
        if not self.allowed("pull,push"):
            return
        if url.path == "/upload":
            digest = parse_qs(url.query)["digest"][0]
            self.server.content[f"/v2/farm/toy/blobs/{digest}"] = ("application/octet-stream", body)
            self.answer(201)
        else:
            self.server.calls.append(url.path)
            self.server.content[url.path] = (self.headers["Content-Type"], body)
            self.answer(201, OCI_Subject=json.loads(body)["subject"]["digest"])


@pytest.fixture
def modern_registry() -> Iterator[ModernRegistry]:
    with ModernRegistry() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def layout(docker_engine: DockerEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageLayout]:
    if shutil.which("docker") is None:
        pytest.skip("needs the program docker with its plugin buildx")
    folder = tmp_path_factory.mktemp("toy")
    (folder / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n", encoding="utf-8")
    output = f"--output=type=oci,dest={folder / 'image'},tar=false,name={TAG},{EXPORT}"
    command = ["docker", "buildx", "build", "--provenance=false", "--sbom=false", output, str(folder)]
    env = os.environ | {"SOURCE_DATE_EPOCH": "1767225600", "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=env)
    with tarfile.open(folder / "image.tar", "w") as tar:
        tar.add(folder / "image", arcname=".")
    docker_engine.load(folder / "image.tar")
    yield ImageLayout(folder / "image")
    docker_engine.client.images.remove(TAG, force=True)


@pytest.fixture
def toy(
    docker_engine: DockerEngine, layout: ImageLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Toy]:
    stack, bases, heard = load_stacks(ROOT / "images")["export"], load_bases(ROOT / "images"), list[Event]()
    record = ImageRecord(
        stack=stack.name,
        variant=None,
        tag=TAG,
        inputs="0" * 64,
        digest=layout.digest,
        config_digest=layout.manifest()["config"]["digest"],
        platform=stack.spec.platform,
        base=f"sha256:{'b' * 64}",
        standin=True,
        python="3.11",
        layers=layer_sizes(layout),
        wheels={"toy-1.0-py3-none-any.whl": "a" * 64},
        checked={},
    )
    monkeypatch.setattr(ImageBuilder, "find", lambda _, __: record)
    builder = ImageBuilder(
        project=Project(root=ROOT),
        home=Home(root=tmp_path / "home"),
        bases=bases,
        engine=docker_engine,
        listen=heard.append,
        cancel=threading.Event(),
    )
    yield Toy(builder=builder, stack=stack, record=record, bases=bases, heard=heard)
    for image in docker_engine.client.images.list():
        for tag in (tag for tag in image.tags if tag.endswith("/farm/toy:0123456789abcdef")):
            docker_engine.client.images.remove(tag)


def run_oras(*arguments: str, cwd: Path | None = None) -> str:
    program = shutil.which("oras")
    if program is None:
        pytest.skip("needs the program oras")
    return subprocess.run([program, *arguments], check=True, capture_output=True, text=True, cwd=cwd).stdout


def discovered(pushed: PushedImage) -> dict[str, str]:
    """List what oras finds beside an image, as type to digest."""
    reference = f"{pushed.reference.rpartition(':')[0]}@{pushed.digest}"
    found = json.loads(run_oras("discover", "--plain-http", "--format", "json", reference))
    entries = found.get("referrers") or found.get("manifests") or []
    return {entry["artifactType"]: entry["digest"] for entry in entries}


def attach_foreign(pushed: PushedImage, folder: Path) -> None:
    (folder / "scan.txt").write_text("nothing found\n", encoding="utf-8")
    run_oras("attach", "--plain-http", "--artifact-type", FOREIGN, pushed.reference, "scan.txt", cwd=folder)


def manifest(registry: str, reference: str) -> requests.Response:
    accept = f"{oci.MANIFEST_TYPE}, {oci.INDEX_TYPE}"
    return requests.get(f"http://{registry}/v2/farm/toy/manifests/{reference}", headers={"Accept": accept}, timeout=10)


def attached(registry: str, digest: str) -> Any:
    """Fetch the document that a referrer holds."""
    (layer,) = manifest(registry, digest).json()["layers"]
    return requests.get(f"http://{registry}/v2/farm/toy/blobs/{layer['digest']}", timeout=10).json()


def test_the_image_arrives_as_it_is(toy: Toy, registry: str) -> None:
    pushed = toy.push(registry)
    assert pushed.reference == f"{registry}/farm/toy:0123456789abcdef"
    assert pushed.digest == toy.record.digest == oci.digest_of(manifest(registry, "0123456789abcdef").content)
    assert asdict(pushed)["referrers"].keys() == {"sbom", "provenance"}
    assert [type(event) for event in toy.heard if not hasattr(event, "done")] == [StepStarted, StepFinished]


def test_docker_pulls_the_same_image(toy: Toy, registry: str) -> None:
    pushed, images = toy.push(registry), toy.builder.engine.client.images
    images.remove(pushed.reference)
    assert images.pull(pushed.reference).id == toy.record.digest


def test_its_documents_are_found_beside_it(toy: Toy, registry: str) -> None:
    pushed = toy.push(registry)
    kinds = {SBOM_TYPE: pushed.referrers["sbom"], PROVENANCE_TYPE: pushed.referrers["provenance"]}
    assert discovered(pushed) == kinds
    assert attached(registry, kinds[SBOM_TYPE]) == bill_of_materials(toy.record, toy.stack, toy.bases)
    assert attached(registry, kinds[PROVENANCE_TYPE]) == provenance_statement(toy.record, toy.stack, toy.bases)


def test_a_second_push_changes_nothing_and_keeps_what_others_added(toy: Toy, registry: str, tmp_path: Path) -> None:
    pushed = toy.push(registry)
    attach_foreign(pushed, tmp_path)
    names = (pushed.digest.replace(":", "-"), "0123456789abcdef")
    before = [manifest(registry, name).content for name in names]
    assert toy.push(registry) == pushed
    assert [manifest(registry, name).content for name in names] == before
    assert discovered(pushed).keys() == {FOREIGN, SBOM_TYPE, PROVENANCE_TYPE}


def test_documents_are_added_to_what_others_put_first(toy: Toy, registry: str, tmp_path: Path) -> None:
    reference = f"{registry}/farm/toy:0123456789abcdef"
    client = toy.builder.engine.client
    client.api.tag(TAG, reference)
    client.api.push(reference)
    attach_foreign(PushedImage(reference=reference, digest=toy.record.digest, referrers={}), tmp_path)
    assert discovered(toy.push(registry)).keys() == {FOREIGN, SBOM_TYPE, PROVENANCE_TYPE}


def test_a_list_that_changes_meanwhile_is_written_again(
    toy: Toy, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, tag = Registry._put, toy.record.digest.replace(":", "-")
    spoiled: list[object] = []
    empty = json.dumps({"schemaVersion": 2, "mediaType": oci.INDEX_TYPE, "manifests": []}).encode()

    def spoil(self: Registry, reference: str, content: bytes, media_type: str) -> Answer:
        answer = put(self, reference, content, media_type)
        if reference == tag and not spoiled:
            spoiled.append(put(self, tag, empty, oci.INDEX_TYPE))
        return answer

    monkeypatch.setattr(Registry, "_put", spoil)
    pushed = toy.push(registry)
    assert spoiled
    assert discovered(pushed).keys() == {SBOM_TYPE, PROVENANCE_TYPE}


def test_a_tag_that_somebody_moves_is_noticed(toy: Toy, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = toy.push(registry).referrers["sbom"]
    other = manifest(registry, foreign)
    push = image_push._push

    def push_and_move(*arguments: Any) -> None:
        push(*arguments)
        url = f"http://{registry}/v2/farm/toy/manifests/0123456789abcdef"
        requests.put(url, other.content, headers={"Content-Type": oci.MANIFEST_TYPE}, timeout=10).raise_for_status()

    monkeypatch.setattr(image_push, "_push", push_and_move)
    with pytest.raises(EnginefarmError) as caught:
        toy.push(registry)
    assert caught.value.reason is Reason.PUSH_FAILED
    assert caught.value.why == f"expected {toy.record.digest}\nactual   {foreign}"


def test_docker_s_log_in_is_used(
    toy: Toy, serve_registry: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = serve_registry(HTPASSWD)
    login = {"auths": {closed: {"auth": base64.b64encode(b"somebody:secret").decode()}}}
    (tmp_path / "config.json").write_text(json.dumps(login), encoding="utf-8")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    # a client reads the log-ins when it is made
    monkeypatch.setattr(toy.builder, "engine", DockerEngine())
    pushed = toy.push(closed)
    toy.builder.engine.client.close()
    assert pushed.digest == toy.record.digest


def test_nobody_logged_in_is_told_so(
    toy: Toy, serve_registry: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(EnginefarmError) as caught:
        toy.push(serve_registry(HTPASSWD))
    assert caught.value.reason is Reason.PUSH_FAILED
    assert "docker login" in str(caught.value.fix)


def test_a_registry_that_is_not_there_is_named(toy: Toy) -> None:
    nowhere = "127.0.0.1:1"
    with pytest.raises(EnginefarmError) as caught:
        toy.push(nowhere)
    assert caught.value.reason is Reason.PUSH_FAILED
    assert nowhere in str(caught.value)


def test_a_name_that_is_none_is_refused(toy: Toy) -> None:
    with pytest.raises(EnginefarmError) as caught:
        push_image(toy.builder, toy.stack, "127.0.0.1:1/Farm")
    assert caught.value.reason is Reason.PUSH_FAILED


def test_an_image_that_is_not_built_is_missing(toy: Toy, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageBuilder, "find", lambda _, __: None)
    with pytest.raises(EnginefarmError) as caught:
        toy.push(registry)
    assert caught.value.reason is Reason.IMAGE_MISSING


def test_an_image_in_a_form_of_docker_s_own_is_refused(
    toy: Toy, registry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = toy.record.model_copy(update={"digest": f"sha256:{'1' * 64}"})
    monkeypatch.setattr(ImageBuilder, "find", lambda _, __: other)
    with pytest.raises(EnginefarmError) as caught:
        toy.push(registry)
    assert caught.value.reason is Reason.PUSH_FAILED
    assert "containerd" in str(caught.value.fix)
    assert manifest(registry, "0123456789abcdef").status_code == requests.codes.not_found


def test_a_registry_that_lists_referrers_itself_gets_no_list(
    toy: Toy, layout: ImageLayout, modern_registry: ModernRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = (oci.MANIFEST_TYPE, layout.blob(layout.digest).read_bytes())
    modern_registry.content["/v2/farm/toy/manifests/0123456789abcdef"] = image
    monkeypatch.setattr(image_push, "_push", lambda *_: None)
    pushed = toy.push(modern_registry.address)
    assert modern_registry.calls == [f"/v2/farm/toy/manifests/{one}" for one in pushed.referrers.values()]
    # one token for reading, one for writing
    assert len(modern_registry.scopes) == 2
