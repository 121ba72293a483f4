"""The image for boards with ARM processors: its steps run under emulation, on a stand-in without TensorRT."""

from __future__ import annotations

import json
import platform
import threading
from pathlib import Path
from typing import Any

import pytest

from builder.base_images import Choice
from builder.bases import load_bases
from builder.docker_engine import DockerEngine
from builder.images import ImageBuilder, ImageSettings
from builder.project import Project
from builder.stacks import load_stacks
from tests.integration.farm import ROOT, shared_home

pytestmark = pytest.mark.integration

STACK = "l4t36.4-trt10.3"
HANDLERS = Path("/proc/sys/fs/binfmt_misc")
# the start of 64-bit ARM programs; F opens the emulator at once, so that it is there in containers, too
MAGIC, FLAG = "magic 7f454c460201010000000000000000000200b700", "F"
# From the host's list of processors ONNX Runtime would conclude that /proc/cpuinfo, which is the host's as well, speaks
# of ARM, and crash.
HIDDEN = "/sys/devices/system/cpu"


@pytest.fixture
def arm64() -> None:
    """A machine that runs programs for ARM, in containers as well."""
    if platform.machine() == "aarch64":
        return
    for path in HANDLERS.glob("*"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.name not in {"register", "status"} else []
        flags = next((line for line in lines if line.startswith("flags:")), "")
        if "enabled" in lines and MAGIC in lines and FLAG in flags.removeprefix("flags:"):
            return
    pytest.skip(
        f"needs an aarch64 handler with flag F in {HANDLERS}: mount binfmt_misc, apt-get install qemu-user-static"
    )


def _check(engine: DockerEngine, tag: str) -> tuple[int, dict[str, Any]]:
    container = engine.client.containers.create(
        tag,
        network_mode="none",
        read_only=True,
        cap_drop=["ALL"],
        platform="linux/arm64",
        tmpfs={"/tmp": "", HIDDEN: ""} if platform.machine() != "aarch64" else {"/tmp": ""},
    )
    try:
        container.start()
        code = int(container.wait(timeout=120)["StatusCode"])
        said = container.logs(stdout=True, stderr=False).decode()
    finally:
        engine.remove(container)
    return code, json.loads(said.strip().splitlines()[-1])


def test_all_steps_run_and_only_tensorrt_is_missing(arm64: None, docker_engine: DockerEngine, tmp_path: Path) -> None:
    project = Project(root=ROOT)
    builder = ImageBuilder(
        project=project,
        home=shared_home(),
        bases=load_bases(project.images),
        engine=docker_engine,
        listen=lambda _: None,
        cancel=threading.Event(),
        settings=ImageSettings(base=Choice.STANDIN),
    )
    stack = load_stacks(project.images)[STACK]
    parts = builder.gather(stack)
    layout = builder.export(parts, tmp_path / "work", cache=True)
    config = json.loads(layout.blob(layout.manifest()["config"]["digest"]).read_bytes())
    assert (config["architecture"], config["config"]["User"]) == ("arm64", "65534:65534")
    present = docker_engine.image(parts.inputs.tag) is not None
    builder._load(layout, tmp_path / "image.tar")
    try:
        code, document = _check(docker_engine, parts.inputs.tag)
    finally:
        if not present:
            docker_engine.client.images.remove(parts.inputs.tag)
    assert document["problems"] == ["there is no module tensorrt"]
    assert (code, document["stack"], document["ok"]) == (1, STACK, False)
    wheels = {wheel.name.split("-")[0].replace("_", "-") for wheel in parts.wheels}
    assert wheels - {"pip"} == set(document["packages"])
