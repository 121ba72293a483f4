"""A Dockerfile without the farm: plain `docker build` fetches by itself, from an index, by the same hashes."""

from __future__ import annotations

import shutil
import subprocess
import threading
import uuid
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from builder.base_images import Choice, ObtainedBase
from builder.bases import load_bases
from builder.docker_engine import DockerEngine
from builder.fetch import Fetcher
from builder.images import ImageBuilder, ImageSettings
from builder.project import Project
from builder.stacks import Requirement, load_stacks
from builder.wheels import Index, fetch_wheels, find_wheels
from tests.integration.farm import ROOT, shared_home

pytestmark = pytest.mark.integration

STACK, PLATFORM = "trtrtx1.7-cuda13", "linux/amd64"
# the stack in small: what its lock says about one package
PACKAGE = "packaging"
# as in the images of Python, pip is there already
PIP_BASE = """FROM standin
COPY pip /opt/pip
ENV PYTHONPATH=/opt/pip PIP_INDEX_URL={index} PIP_RETRIES=0
"""


@dataclass(frozen=True)
class Trial:
    """A Dockerfile's folder with a small lock, a base with pip, and the folder of an index."""

    folder: Path
    base: str
    asked: list[str]

    def build(self, tag: str) -> subprocess.CompletedProcess[str]:
        """Build as somebody would who has only the folder."""
        command = ["docker", "build", "--progress=plain", "--no-cache", "--network=host", "--tag", tag]
        command += ["--build-arg", f"BASE={self.base}", str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def tag(docker_engine: DockerEngine) -> Iterator[str]:
    """A name for the image, which is removed in the end."""
    name = f"enginefarm-plain:{uuid.uuid4().hex}"
    yield name
    if docker_engine.image(name) is not None:
        docker_engine.client.images.remove(name)


@pytest.fixture
def trial(docker_engine: DockerEngine, tmp_path: Path) -> Iterator[Trial]:
    """All that a plain build needs, none of it from outside."""
    if shutil.which("docker") is None:
        pytest.skip("needs the program docker with its plugin buildx")
    base, wanted, wheels = _parts(docker_engine, tmp_path)
    folder = tmp_path / STACK
    shutil.copytree(ROOT / "images" / STACK, folder)
    hashes = " ".join(f"--hash=sha256:{digest}" for digest in wanted.hashes)
    (folder / "requirements.lock").write_text(f"{wanted.pin} {hashes}\n", encoding="utf-8")
    pip = next(path for name, path in wheels.items() if name.startswith("pip-"))
    _index({name: path for name, path in wheels.items() if path != pip}, tmp_path / "index")
    asked: list[str] = []
    server = _serve(tmp_path / "index", asked)
    name = f"enginefarm-plain-base:{uuid.uuid4().hex}"
    try:
        _base_with_pip(base, pip, f"http://127.0.0.1:{server.server_port}/", tmp_path / "base", name)
        yield Trial(folder=folder, base=name, asked=asked)
    finally:
        server.shutdown()
        server.server_close()
        if docker_engine.image(name) is not None:
            docker_engine.client.images.remove(name)


def _parts(engine: DockerEngine, folder: Path) -> tuple[ObtainedBase, Requirement, dict[str, Path]]:
    project, home, cancel = Project(root=ROOT), shared_home(), threading.Event()
    builder = ImageBuilder(
        project=project,
        home=home,
        bases=load_bases(project.images),
        engine=engine,
        listen=lambda _: None,
        cancel=cancel,
        settings=ImageSettings(base=Choice.STANDIN),
    )
    stack = load_stacks(project.images)[STACK]
    base = builder._base_images().obtain(stack.spec.image.base, PLATFORM, Choice.STANDIN, folder / "base.log")
    wanted = next(one for one in stack.requirements(base.python) if one.pin.startswith(f"{PACKAGE}=="))
    wheels = find_wheels([wanted, builder._pip()], base.python, PLATFORM, Index(), cancel)
    return base, wanted, fetch_wheels(wheels, Fetcher(home, cancel))


def _index(wheels: dict[str, Path], folder: Path) -> None:
    """Lay wheels out so that a listing of the folders is a package index."""
    for name, path in wheels.items():
        project = folder / name.split("-")[0].replace("_", "-").lower()
        project.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, project / name)


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: object, asked: list[str], directory: str) -> None:
        self.asked = asked
        super().__init__(*arguments, directory=directory)  # type: ignore[arg-type]

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        self.asked.append(self.path)


def _serve(folder: Path, asked: list[str]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, asked=asked, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _base_with_pip(base: ObtainedBase, pip: Path, index: str, folder: Path, tag: str) -> None:
    with zipfile.ZipFile(pip) as archive:
        archive.extractall(folder / "pip")
    (folder / "Dockerfile").write_text(PIP_BASE.format(index=index), encoding="utf-8")
    context = f"--build-context=standin=oci-layout://{base.layout.folder}@{base.digest}"
    command = ["docker", "buildx", "build", "--load", "--tag", tag, context, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_index_stands_in_for_wheels_that_nobody_hands_in(
    trial: Trial, tag: str, docker_engine: DockerEngine
) -> None:
    done = trial.build(tag)
    assert done.returncode == 0, done.stderr
    assert any(path.startswith(f"/{PACKAGE}/") and path.endswith(".whl") for path in trial.asked)
    # PYTHONPATH is the image's own again: the package, and not the trial's pip
    program = f"import {PACKAGE}, importlib.util as u; print({PACKAGE}.__path__[0], u.find_spec('pip'))"
    said = docker_engine.client.containers.run(tag, ["python3", "-c", program], network_mode="none", remove=True)
    assert said.decode().split() == [f"/opt/stack/{PACKAGE}", "None"]


def test_another_hash_is_refused(trial: Trial, tag: str) -> None:
    lock = trial.folder / "requirements.lock"
    pin = lock.read_text(encoding="utf-8").split(" ")[0]
    lock.write_text(f"{pin} --hash=sha256:{'0' * 64}\n", encoding="utf-8")
    done = trial.build(tag)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
