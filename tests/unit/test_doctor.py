"""The judgement over this machine: what fails, what warns, what may be absent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from builder import doctor
from builder.doctor import (
    Ready,
    check_machine,
    clock_check,
    disk_check,
    examine,
    network_checks,
    python_check,
    registry_hosts,
)
from builder.doctor_checks import (
    Check,
    Verdict,
    gpu_check,
    gpu_memory_check,
    stack_check,
)
from builder.doctor_facts import Answer, Facts, Gpus, Ran
from builder.environments import BasePython
from builder.errors import EnginefarmError, Reason
from builder.gpu import Gpu
from builder.project import Home
from builder.stacks import Stack, load_stacks

GIB = 1 << 30
IMAGES = Path(__file__).parents[2] / "images"
RTX = load_stacks(IMAGES)["trtrtx1.7-cuda13"]
DRIVERS = {"12": "525.60.13", "13": "580.65.06"}
ADA = Gpu(
    uuid="GPU-9196782c",
    index=0,
    name="NVIDIA GeForce RTX 4090",
    sm="8.9",
    driver="580.95.05",
    memory_bytes=24564 << 20,
    mig=False,
)
ENGINE: Mapping[str, Any] = {
    "ServerVersion": "26.1.5+dfsg1",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "Runtimes": {"runc": {}},
}


def ran(output: str, exit_code: int | None = 0) -> Ran:
    """Stand in for a program."""
    return Ran(output=output, exit_code=exit_code)


def stack(**changes: Any) -> Stack:
    """Change the TensorRT-RTX stack."""
    return replace(RTX, spec=RTX.build.model_copy(update=changes))


def ready(python: BasePython | EnginefarmError | None = None, *, installed: bool = True, **changes: Any) -> Ready:
    """Make a stack with its interpreter."""
    found = python or BasePython(path=Path("/usr/bin/python3.11"), version="3.11")
    return Ready(stack=stack(**changes), python=found, installed=installed)


def facts(**changes: Any) -> Facts:
    """Make a machine without GPU and Docker, online, all well."""
    plain = Facts(
        docker=None,
        buildx=None,
        gpus=Gpus(),
        nvidia_toolkit=False,
        cdi=False,
        index=(Answer(address="https://pypi.org/simple", clock_ahead_s=-1.2),),
        registries=(),
        offline=False,
        platform=RTX.spec.platform,
        now=datetime(2026, 11, 21, 7, 0, tzinfo=timezone.utc),
        home_free_bytes=100 * GIB,
    )
    return replace(plain, **changes)


def verdicts(checks: list[Check]) -> dict[str, str]:
    """Keep names and verdicts."""
    return {check.name: check.status.value for check in checks}


def test_a_plain_machine_is_fine(tmp_path: Path) -> None:
    checks = examine(facts(), [ready()], Home(root=tmp_path))
    assert verdicts(checks) == {
        f"python:{RTX.name}": "ok",
        "disk:home": "ok",
        "index": "ok",
        "clock": "ok",
        "gpu": "absent",
        f"stack:{RTX.name}": "ok",
        "docker": "absent",
        "buildx": "absent",
        "nvidia-runtime": "absent",
    }
    assert all((check.status is Verdict.OK) == (not check.means and not check.fix) for check in checks)


def test_stacks_of_other_machines_are_left_out(tmp_path: Path) -> None:
    checks = examine(facts(), [ready(platform="linux/riscv64")], Home(root=tmp_path))
    assert not [check for check in checks if RTX.name in check.name]


@pytest.mark.parametrize(("default", "status"), [(True, Verdict.FAIL), (False, Verdict.WARN)])
def test_python_missing(default: bool, status: Verdict) -> None:
    error = EnginefarmError(Reason.PYTHON_MISSING, "none", fix="install python3.13")
    check = python_check(ready(error, default=default))
    assert (check.status, check.fix) == (status, "install python3.13")


def test_disk_too_small(tmp_path: Path) -> None:
    check = disk_check(Home(root=tmp_path), GIB // 2, [ready(installed=False)])
    assert check.status is Verdict.FAIL
    assert "ENGINEFARM_HOME" in check.fix
    assert disk_check(Home(root=tmp_path), GIB, [ready(installed=True)]).status is Verdict.OK


def unreachable(address: str = "https://mirror.example") -> Answer:
    """Make an address that is not reached."""
    return Answer(address=address, problem="timed out")


@pytest.mark.parametrize(
    ("index", "needed", "status"),
    [
        ((), True, Verdict.OK),
        ((unreachable(),), True, Verdict.FAIL),
        ((unreachable(),), False, Verdict.WARN),
        ((Answer(address="https://pypi.org/simple"), unreachable()), True, Verdict.WARN),
    ],
)
def test_index(index: tuple[Answer, ...], needed: bool, status: Verdict) -> None:
    (check,) = network_checks(facts(index=index), needed=needed)
    assert check.status is status
    assert ("mirror.example: timed out" in check.found) == (status is not Verdict.OK)


def test_registries() -> None:
    answers = (Answer(address="https://nvcr.io/v2/"), unreachable("https://registry-1.docker.io/v2/"))
    _, good, bad = network_checks(facts(registries=answers), needed=True)
    assert verdicts([good, bad]) == {"registry:nvcr.io": "ok", "registry:registry-1.docker.io": "warn"}


def test_offline_says_nothing_about_the_network() -> None:
    assert list(network_checks(facts(offline=True, index=()), needed=True)) == []


@pytest.mark.parametrize(
    ("ahead", "year", "status"),
    [(0.4, 2026, "ok"), (None, 2026, "ok"), (301.0, 2026, "warn"), (-4000.0, 2026, "warn"), (None, 1970, "warn")],
)
def test_clock(ahead: float | None, year: int, status: str) -> None:
    index = (unreachable(), Answer(address="https://pypi.org/simple", clock_ahead_s=ahead))
    check = clock_check(facts(index=index, now=datetime(year, 1, 1, tzinfo=timezone.utc)))
    assert check.status.value == status


def seen(*gpus: Gpu, **changes: Any) -> Gpus:
    """Make what is seen of GPUs, all of them visible."""
    return replace(Gpus(found=gpus, visible=gpus, free={one.uuid: one.memory_bytes for one in gpus}), **changes)


T4 = replace(ADA, uuid="GPU-1", index=2, name="NVIDIA T4", sm="7.5", memory_bytes=15 * GIB)


def test_gpus() -> None:
    check = gpu_check(seen(ADA, replace(ADA, uuid="GPU-2", index=1), T4))
    assert (check.status, check.found) == (
        Verdict.OK,
        "2 x NVIDIA GeForce RTX 4090 (SM 8.9, 24 GiB); NVIDIA T4 (SM 7.5, 15 GiB); driver 580.95.05",
    )


def test_gpus_that_are_hidden() -> None:
    some = gpu_check(seen(ADA, T4, visible=(T4,), asked="2"))
    hidden = "CUDA_VISIBLE_DEVICES=2 hides NVIDIA GeForce RTX 4090 (SM 8.9, 24 GiB)"
    assert (some.status, some.found) == (Verdict.OK, f"NVIDIA T4 (SM 7.5, 15 GiB); driver 580.95.05; {hidden}")
    none = gpu_check(seen(T4, visible=(), asked=""))
    assert (none.status, none.found) == (Verdict.WARN, "NVIDIA T4 (SM 7.5, 15 GiB), hidden by CUDA_VISIBLE_DEVICES=")


def test_no_gpu_and_a_gpu_without_a_driver() -> None:
    assert gpu_check(Gpus()).status is Verdict.ABSENT
    check = gpu_check(Gpus(plugged=True))
    assert (check.status, "install NVIDIA's driver" in check.fix) == (Verdict.WARN, True)


def test_a_driver_in_trouble() -> None:
    trouble = EnginefarmError(Reason.GPU_UNREADABLE, "NVIDIA's driver does not answer", why="GPU is lost", fix="reboot")
    check = gpu_check(Gpus(plugged=True, trouble=trouble))
    assert (check.status, check.found, check.fix) == (Verdict.WARN, "GPU is lost", "reboot")


def test_memory_that_others_hold(tmp_path: Path) -> None:
    assert gpu_memory_check(seen(ADA, T4, free={ADA.uuid: 13 * GIB, T4.uuid: 8 * GIB})) is None
    gpus = seen(ADA, T4, free={ADA.uuid: 13 * GIB, T4.uuid: 7 * GIB})
    check = gpu_memory_check(gpus)
    assert check is not None
    assert (check.status, check.found) == (Verdict.WARN, "GPU 2 (NVIDIA T4): 7 of 15 GiB free")
    assert verdicts(examine(facts(gpus=gpus), [ready()], Home(root=tmp_path)))["gpu-memory"] == "warn"


@pytest.mark.parametrize(
    ("gpu", "changes", "status", "found"),
    [
        (None, {}, "ok", "builds for SM 7.5, 8.0, 8.6, 8.9, 12.0, without a GPU"),
        (None, {"needs_gpu": True}, "absent", "no GPU"),
        (ADA, {}, "ok", "builds and runs for SM 8.9"),
        (replace(ADA, driver="575.57.08"), {}, "warn", "driver 575.57.08, older than 580.65.06"),
        (replace(ADA, driver="575.57.08"), {"cuda": "12.9"}, "ok", "builds and runs for SM 8.9"),
        (replace(ADA, driver="470.1"), {"cuda": "11.8"}, "ok", "builds and runs for SM 8.9"),
        (replace(ADA, sm="9.0"), {}, "warn", "not for this GPU: SM 9.0"),
        (replace(ADA, sm="9.0"), {"needs_gpu": True}, "warn", "not for this GPU: SM 9.0"),
    ],
)
def test_stack(gpu: Gpu | None, changes: dict[str, Any], status: str, found: str) -> None:
    gpus = () if gpu is None else (gpu,)
    check = stack_check(stack(sms=["7.5", "8.0", "8.6", "8.9", "12.0"], **changes), gpus, DRIVERS)
    assert (check.status.value, check.found) == (status, found)
    assert ("cannot build here" in check.means) == (status == "warn" and bool(changes.get("needs_gpu")))


def test_several_gpus_with_one_that_fits() -> None:
    gpus = (ADA, replace(ADA, sm="9.0"))
    assert stack_check(stack(sms=["8.9"]), gpus, DRIVERS).found == "builds and runs for SM 8.9"


def test_registry_hosts(tmp_path: Path) -> None:
    bases = tmp_path / "bases.toml"
    assert registry_hosts(bases) == ()
    bases.write_text(
        'a.ref = "nvcr.io/nvidia/cuda:13"\nb = [{ref = "ubuntu:24.04"}, {ref = "docker.io/library/python:3"}]\n'
        'c.ref = "localhost:5000/x"\nd.ref = 3\n',
        encoding="utf-8",
    )
    assert registry_hosts(bases) == ("localhost:5000", "nvcr.io", "registry-1.docker.io")
    bases.write_text("ref =", encoding="utf-8")
    with pytest.raises(EnginefarmError) as caught:
        registry_hosts(bases)
    assert caught.value.reason is Reason.STACK_INVALID


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Answer every question about the machine; remember the registries asked for."""
    registries: list[tuple[str, ...]] = []

    def gather(home: Home, hosts: tuple[str, ...], *, offline: bool) -> Facts:
        registries.append(hosts)
        return facts(offline=offline)

    monkeypatch.setattr(doctor, "gather", gather)
    return registries


def test_a_project(tmp_path: Path, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    folder = tmp_path / "images" / RTX.name
    folder.mkdir(parents=True)
    for name in ("stack.toml", "requirements.lock"):
        (folder / name).write_bytes((IMAGES / RTX.name / name).read_bytes())
    (tmp_path / "images" / "bases.toml").write_text('ref = "nvcr.io/x/y"', encoding="utf-8")
    checks = check_machine(tmp_path, Home(root=tmp_path / "home"), offline=False)
    assert checks[0].found == f"{tmp_path}: 1 stack"
    assert {f"python:{RTX.name}", f"stack:{RTX.name}"} <= set(verdicts(checks))
    assert asked == [("nvcr.io",)]

    (folder / "stack.toml").write_text("name = 3", encoding="utf-8")
    broken = check_machine(tmp_path, Home(root=tmp_path / "home"), offline=False)[0]
    assert (broken.name, broken.status) == ("project", Verdict.FAIL)
    assert str(folder) in broken.found


def test_no_project(tmp_path: Path, asked: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENGINEFARM_PROJECT", raising=False)
    checks = check_machine(None, Home(root=tmp_path / "home"), offline=True)
    assert verdicts(checks)["project"] == "absent"
    with pytest.raises(EnginefarmError) as caught:
        check_machine(tmp_path, Home(root=tmp_path / "home"), offline=True)
    assert caught.value.reason is Reason.PROJECT_MISSING
