"""Unpacking a real image: every file as its containers see it, and nothing left where it is stopped."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from builder.docker_engine import DockerEngine
from builder.errors import EnginefarmError, Reason
from builder.events import Event
from builder.image_record import ImageRecord
from builder.image_unpack import unpack_image
from builder.stacks import load_stacks
from tests.artifacts import refusal
from tests.integration.farm import ROOT

pytestmark = pytest.mark.integration

STACK = "trtrtx1.7-cuda13"


def listing(top: str, command: list[str]) -> dict[str, str]:
    """List paths below a folder with kind, mode, owner, size and link; what Docker puts in itself left out."""
    script = f"cd {top} && find . -xdev -printf '%P\\t%y %m %U:%G %s %l\\n'"
    said = subprocess.run([*command, "sh", "-c", script], capture_output=True, text=True, check=False).stdout
    lines = [line.split("\t") for line in said.splitlines()]
    own = {"", ".dockerenv", ".enginefarm.json", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"}
    kept = [
        (path, facts) for path, facts in lines if path not in own and path.split("/")[0] not in {"dev", "proc", "sys"}
    ]
    # sizes of folders are the file system's affair
    return {path: facts if facts[0] != "d" else facts.rsplit(" ", 2)[0] for path, facts in kept}


def test_an_unpacked_image_is_what_its_containers_see(roots: Path, rtx_image: ImageRecord) -> None:
    inside = listing("/", ["docker", "run", "--rm", "--network=none", "--user=0", rtx_image.tag])
    outside = listing(str(roots / STACK), [])
    made = {"opt/enginefarm/src", "opt/enginefarm/src/builder", "opt/enginefarm/src/builder/worker", "usr/local/nvidia"}
    assert len(inside) > 3000
    assert set(outside) - set(inside) == made
    assert {path: facts for path, facts in inside.items() if outside.get(path) != facts} == {}


def test_unpacking_twice_is_refused(roots: Path, docker_engine: DockerEngine, rtx_image: ImageRecord) -> None:
    stack = load_stacks(ROOT / "images")[STACK]
    error = refusal(lambda: unpack_image(docker_engine, stack, rtx_image, roots, threading.Event(), lambda _: None))
    assert error.reason is Reason.PATH_OCCUPIED


def test_unpacking_that_is_stopped_leaves_nothing(
    tmp_path: Path, docker_engine: DockerEngine, rtx_image: ImageRecord
) -> None:
    stack, cancel = load_stacks(ROOT / "images")[STACK], threading.Event()
    before = {container.id for container in docker_engine.client.containers.list(all=True)}

    def listen(event: Event) -> None:
        if type(event).__name__ == "StepAdvanced":
            cancel.set()

    with pytest.raises(EnginefarmError) as caught:
        unpack_image(docker_engine, stack, rtx_image, tmp_path / "roots", cancel, listen)
    assert caught.value.reason is Reason.INTERRUPTED
    assert list((tmp_path / "roots").iterdir()) == []
    assert {container.id for container in docker_engine.client.containers.list(all=True)} <= before
