"""What the doctor says of Docker, buildx and NVIDIA's container runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from builder.doctor_checks import (
    Verdict,
    buildx_check,
    docker_check,
    docker_disk_check,
    docker_info,
    runtime_check,
)
from tests.unit.test_doctor import ENGINE, GIB, ran


def test_docker() -> None:
    output = (
        'WARNING: no swap limit\n{"ServerVersion": "26.1.5", "DriverStatus": [["x", "io.containerd.snapshotter.v1"]]}'
    )
    info = docker_info(ran(output))
    assert info is not None
    assert docker_check(ran(output), info, "26").found == "Docker Engine 26.1.5, containerd image store on"


@pytest.mark.parametrize(
    ("output", "found", "fix"),
    [
        (
            '{"ServerVersion": "", "ServerErrors": ["Cannot connect to the Docker daemon at unix:///x.sock."]}',
            "Cannot connect to the Docker daemon",
            "systemctl start docker",
        ),
        (
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock",
            "permission denied",
            "usermod",
        ),
        ('{"host": {"arch": "amd64"}, "version": {}}', "Podman", "docker info"),
        ("{broken", "Podman", "docker info"),
        ("", "says nothing", "docker info"),
    ],
)
def test_docker_that_does_not_answer(output: str, found: str, fix: str) -> None:
    assert docker_info(ran(output)) is None
    check = docker_check(ran(output, 1), None, "26")
    assert check.status is Verdict.WARN
    assert found in check.found
    assert fix in check.fix


def test_docker_that_hangs() -> None:
    assert docker_check(ran("", None), None, "26").found == "docker info does not answer"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"ServerVersion": "20.10.17"}, "Docker Engine 20.10.17, older than 26"),
        ({"DriverStatus": [["Backing Filesystem", "extfs"]]}, "Docker Engine 26.1.5+dfsg1, containerd image store off"),
    ],
)
def test_docker_too_plain(changes: dict[str, Any], found: str) -> None:
    check = docker_check(ran(""), {**ENGINE, **changes}, "26")
    assert (check.status, check.found) == (Verdict.WARN, found)


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ("github.com/docker/buildx 0.13.1+ds1 0.13.1+ds1-3", "ok"),
        ("github.com/docker/buildx v0.12.1 30feaa1", "warn"),
        ("github.com/docker/buildx v0.30.0-desktop.1 abc", "ok"),
        ("unknown command", "absent"),
    ],
)
def test_buildx(output: str, status: str) -> None:
    assert buildx_check(ran(output), "0.13").status.value == status
    assert buildx_check(ran(output, 1), "0.13").status is Verdict.ABSENT


@pytest.mark.parametrize(
    ("info", "toolkit", "cdi", "gpu", "status"),
    [
        ({**ENGINE, "Runtimes": {"nvidia": {}, "runc": {}}}, True, False, True, "ok"),
        ({**ENGINE, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]}, False, False, True, "ok"),
        (ENGINE, True, True, True, "ok"),
        (ENGINE, True, False, True, "warn"),
        (ENGINE, False, False, True, "warn"),
        (ENGINE, False, False, False, "absent"),
        (None, True, True, True, "absent"),
    ],
)
def test_nvidia_runtime(info: Mapping[str, Any] | None, toolkit: bool, cdi: bool, gpu: bool, status: str) -> None:
    assert runtime_check(info, toolkit=toolkit, cdi=cdi, gpu=gpu).status.value == status


def test_docker_disk() -> None:
    assert docker_disk_check(Path("/var/lib/docker"), 21 * GIB, 20).status is Verdict.OK
    assert docker_disk_check(Path("/var/lib/docker"), 19 * GIB, 20).status is Verdict.WARN
