"""Environments and farms for the integration tests."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from builder.docker_engine import DockerEngine
from builder.errors import EnginefarmError
from builder.image_record import ImageRecord
from builder.image_unpack import unpack_image
from builder.stacks import load_stacks
from tests.integration.farm import ROOT, Farm, build_image, installed, share_environments


@pytest.fixture(scope="session")
def rtx_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with TensorRT-RTX."""
    return installed("trtrtx1.7-cuda13", tmp_path_factory.mktemp("log") / "rtx.log")


@pytest.fixture(scope="session")
def export_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with PyTorch."""
    return installed("export", tmp_path_factory.mktemp("log") / "export.log")


@pytest.fixture
def farm(tmp_path: Path, rtx_environment: Path) -> Farm:
    """An empty project beside the real stacks, with TensorRT-RTX installed."""
    assert rtx_environment.exists()
    project = tmp_path / "project"
    (project / "recipes").mkdir(parents=True)
    (project / "images").symlink_to(ROOT / "images")
    share_environments(tmp_path / "home")
    return Farm(project=project, home=tmp_path / "home")


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """A Docker Engine."""
    engine = DockerEngine()
    try:
        engine.info()
    except EnginefarmError as error:
        pytest.skip(f"needs a Docker Engine: {error.why or error.what}")
    yield engine
    engine.client.close()


@pytest.fixture(scope="session")
def rtx_image(docker_engine: DockerEngine) -> ImageRecord:
    """The image with TensorRT-RTX."""
    assert docker_engine.info().version
    return build_image("trtrtx1.7-cuda13")


@pytest.fixture(scope="session")
def roots(tmp_path_factory: pytest.TempPathFactory, docker_engine: DockerEngine, rtx_image: ImageRecord) -> Path:
    """A folder with the image of TensorRT-RTX, unpacked."""
    if os.geteuid() != 0:
        pytest.skip("needs root: unpacked images are entered by chroot")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount: a virtual machine or a privileged container")
    folder = tmp_path_factory.mktemp("roots")
    stack = load_stacks(ROOT / "images")["trtrtx1.7-cuda13"]
    unpack_image(docker_engine, stack, rtx_image, folder, threading.Event(), lambda _: None)
    return folder


@pytest.fixture
def serve_registry(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start empty registries on this machine. `htpasswd`: who may log in; `tls`: certificate and key."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("needs docker-registry: apt-get install docker-registry")
    started: list[subprocess.Popen[bytes]] = []

    def serve(htpasswd: str | None = None, tls: tuple[Path, Path] | None = None) -> str:
        folder = tmp_path / f"registry-{len(started)}"
        folder.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        lines = ["version: 0.1", "log: {level: error, accesslog: {disabled: true}}"]
        secure = "" if tls is None else f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}"
        lines += [f"storage: {{filesystem: {{rootdirectory: {folder / 'store'}}}}}"]
        lines += [f"http: {{addr: {address}, secret: toys{secure}}}"]
        if htpasswd is not None:
            (folder / "htpasswd").write_text(htpasswd + "\n", encoding="utf-8")
            lines += [f"auth: {{htpasswd: {{realm: toys, path: {folder / 'htpasswd'}}}}}"]
        (folder / "config.yml").write_text("\n".join(lines) + "\n", encoding="utf-8")
        with (folder / "log").open("wb") as log:
            command = [program, "serve", str(folder / "config.yml")]
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        started.append(process)
        _await(process, address, folder / "log")
        return address

    yield serve
    for process in started:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
def registry(serve_registry: Callable[..., str]) -> str:
    """Host and port of an empty registry."""
    return serve_registry()


def _await(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    host, _, port = address.partition(":")
    for _ in range(100):
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except ConnectionRefusedError:
            time.sleep(0.1)
        else:
            return
    pytest.fail(f"the registry does not answer: {log.read_text(encoding='utf-8')}")
