"""The executor of unpacked images: when it can be had, which images it knows, and what a stage is to see."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.errors import Reason
from builder.executors import EXECUTORS, enter, rootfs
from builder.executors.context import ExecutorContext
from builder.executors.enter import Mount, Spec, read_spec
from builder.executors.rootfs import DriverFiles, RootfsExecutor, find_driver, parse_libraries
from builder.image_unpack import save_record
from builder.project import Home, Project
from builder.stacks import Stack, load_stacks
from builder.stage import StageRequest
from builder.worker_source import WORKER
from tests.artifacts import refusal
from tests.unit.test_image_unpack import RECORD

ROOT = Path(__file__).parents[2]
STACK = load_stacks(ROOT / "images")["trt8.6-cuda12.0"]
KNOWN = RECORD.model_copy(update={"stack": STACK.name})
LISTED = """2 libs found in cache `/etc/ld.so.cache'
\tlibnvidia-ptxjitcompiler.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libnvidia-ptxjitcompiler.so.1
\tlibnvidia-nvvm.so.4 (libc6,x86-64) => /lib/x86_64-linux-gnu/libnvidia-nvvm.so.4
\tlibnvidia-ml.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libnvidia-ml.so.1
\tlibnvidia-ml.so.1 (libc6) => /lib/i386-linux-gnu/libnvidia-ml.so.1
\tlibnvidia-gpucomp.so.580.159.04 (libc6,x86-64) => /lib/x86_64-linux-gnu/libnvidia-gpucomp.so.580.159.04
\tlibnvidia-encode.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libnvidia-encode.so.1
\tlibcudart.so.12 (libc6,x86-64) => /usr/local/cuda/lib64/libcudart.so.12
\tlibcuda.so.1 (libc6) => /lib/i386-linux-gnu/libcuda.so.1
\tlibcuda.so.1 (libc6,x86-64, OS ABI: Linux 4.0.0) => /lib/x86_64-linux-gnu/libcuda.so.1
\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/wsl/lib/libcuda.so.1
\tlibcuda.so (libc6,x86-64) => /lib/x86_64-linux-gnu/libcuda.so
"""


@pytest.fixture
def context(tmp_path: Path) -> ExecutorContext:
    """The real stacks and an empty home."""
    return ExecutorContext(
        project=Project(root=ROOT),
        home=Home(root=tmp_path / "home"),
        install=True,
        cancel=threading.Event(),
        listen=lambda event: None,
    )


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of images, which root looks at; records fit the project's files."""
    folder = tmp_path / "roots"
    folder.mkdir()
    monkeypatch.setenv("ENGINEFARM_ROOTFS", str(folder))
    monkeypatch.setattr(os, "geteuid", lambda: 0)

    def fitting(stack: Stack, bases: object, found: list[Any]) -> Any:
        return next((one for one in found if one.variant == stack.variant and one.inputs == RECORD.inputs), None)

    monkeypatch.setattr(rootfs, "newest_fitting", fitting)
    return folder


def complete(roots: Path, digest: str = KNOWN.digest, env: dict[str, str] | None = None) -> None:
    """Unpack an image, so to speak."""
    (roots / STACK.name).mkdir()
    (roots / STACK.name / ".enginefarm.json").write_text(json.dumps({"digest": digest, "env": env or {}}))


@pytest.mark.parametrize("named", [None, "", "nowhere"])
def test_without_a_folder(
    context: ExecutorContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str | None
) -> None:
    monkeypatch.delenv("ENGINEFARM_ROOTFS", raising=False)
    if named is not None:
        monkeypatch.setenv("ENGINEFARM_ROOTFS", named and str(tmp_path / named))
    error = refusal(lambda: EXECUTORS["rootfs"](context))
    assert error.reason is Reason.IMAGE_MISSING
    assert "enginefarm images unpack" in (error.fix or "")


def test_without_roots_rights(context: ExecutorContext, roots: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    error = refusal(lambda: EXECUTORS["rootfs"](context))
    assert (error.reason, "root" in error.what) == (Reason.EXECUTOR_UNAVAILABLE, True)


def test_an_unpacked_image(context: ExecutorContext, roots: Path, tmp_path: Path) -> None:
    save_record(KNOWN, roots)
    complete(roots)
    executor = RootfsExecutor(context)
    assert executor.identified(STACK)
    assert executor.ready(STACK)
    executor.prepare(STACK, tmp_path / "log")
    runtime = executor.runtime(STACK)
    assert (runtime.stack, runtime.python, runtime.image, runtime.image_base) == (
        STACK,
        KNOWN.python,
        KNOWN.digest,
        KNOWN.base,
    )


def test_the_runtime_is_that_of_the_docker_executor(context: ExecutorContext, roots: Path) -> None:
    save_record(KNOWN.model_copy(update={"standin": True}), roots)
    docker: Any = EXECUTORS["docker"](context)
    docker._images[STACK.name] = KNOWN.model_copy(update={"standin": True})
    assert RootfsExecutor(context).runtime(STACK) == docker.runtime(STACK)


@pytest.mark.parametrize(
    ("record", "mark", "why"),
    [
        (None, None, "no record of an image"),
        ({"variant": "8.6.0"}, KNOWN.digest, "that of lock 8.6.0"),
        ({"inputs": "9" * 64}, KNOWN.digest, "built from other files"),
        ({}, None, "not unpacked to its end"),
        ({}, "sha256:other", "holds sha256:other"),
    ],
)
def test_an_image_that_cannot_be_used(
    context: ExecutorContext, roots: Path, tmp_path: Path, record: dict[str, Any] | None, mark: str | None, why: str
) -> None:
    if record is not None:
        save_record(KNOWN.model_copy(update=record), roots)
    if mark is not None:
        complete(roots, mark)
    executor = RootfsExecutor(context)
    # what a store has is found by the record, whatever became of the files
    assert executor.identified(STACK) == (record == {})
    assert not executor.ready(STACK)
    request = ask(tmp_path)
    for action in (lambda: executor.prepare(STACK, tmp_path / "log"), lambda: executor.run(STACK, request)):
        error = refusal(action)
        assert error.reason is Reason.IMAGE_MISSING
        assert why in (error.why or "")
        assert f"images unpack {STACK.name} DIR`" in (error.fix or "")
    if record != {}:
        assert refusal(lambda: executor.runtime(STACK)).reason is Reason.IMAGE_MISSING


def test_another_lock_of_a_stack(context: ExecutorContext, roots: Path) -> None:
    save_record(KNOWN.model_copy(update={"variant": "8.6.0"}), roots)
    complete(roots)
    executor, variant = RootfsExecutor(context), STACK.with_lock("8.6.0")
    assert executor.ready(variant)
    assert executor.runtime(variant).stack is variant
    save_record(KNOWN, roots)
    fresh = RootfsExecutor(context)
    assert "--lock 8.6.0" in (refusal(lambda: fresh.runtime(variant)).fix or "")


def test_an_image_that_comes_later_is_found(context: ExecutorContext, roots: Path) -> None:
    executor = RootfsExecutor(context)
    assert not executor.identified(STACK)
    save_record(KNOWN, roots)
    assert executor.identified(STACK)


def ask(tmp_path: Path, gpu: str | None = None, stage: str = "lower") -> StageRequest:
    """Make a request."""
    folder = tmp_path / "stage"
    return StageRequest(job="a", stage=stage, inputs={}, params={}, folder=folder, timeout_s=1.0, gpu=gpu)


def test_what_a_stage_sees(context: ExecutorContext, roots: Path, tmp_path: Path) -> None:
    env = {"PATH": "/bin", "LD_LIBRARY_PATH": "/opt/stack/lib", "PYTHONPATH": "/opt/stack"}
    spec = RootfsExecutor(context)._spec(roots / STACK.name, env, ask(tmp_path), 3)
    assert spec.root == str((roots / STACK.name).resolve())
    assert spec.tmpfs == {"/tmp": "size=256m,mode=1777"}
    assert set(spec.devices) <= {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    stage = tmp_path / "stage"
    assert spec.mounts == [
        Mount(str(stage), "/work", read_only=False),
        Mount(str(stage / "in"), "/work/in", read_only=True),
        Mount(str(WORKER), "/opt/enginefarm/src/builder/worker", read_only=True),
    ]
    assert spec.argv == ["python3", "-m", "builder.worker", "/work"]
    assert spec.env["LD_LIBRARY_PATH"] == "/opt/stack/lib"
    assert spec.env["PYTHONPATH"] == "/opt/enginefarm/src:/opt/stack"
    assert (spec.env["CUDA_VISIBLE_DEVICES"], "GLIBC_TUNABLES" in spec.env) == ("", False)


def test_what_a_stage_with_a_gpu_sees_besides(
    context: ExecutorContext, roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = Mount("/lib/libcuda.so.1", "/usr/local/nvidia/lib64/libcuda.so.1", read_only=True)
    driver = DriverFiles(mounts=(mount,), tmpfs=("/usr/local/nvidia",), folders=("/usr/local/nvidia/lib64",))
    looked: list[Path] = []

    def find(folder: Path, machine: str) -> DriverFiles:
        looked.append(folder)
        return driver

    monkeypatch.setattr(rootfs, "find_driver", find)
    executor, request = RootfsExecutor(context), ask(tmp_path, gpu="GPU-1", stage="build")
    spec = executor._spec(roots / STACK.name, {"LD_LIBRARY_PATH": "/opt/stack/lib"}, request, 3)
    assert spec.mounts[0] == mount
    assert spec.tmpfs["/usr/local/nvidia"] == "size=1m,mode=755"
    assert spec.env["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64:/opt/stack/lib"
    assert (spec.env["CUDA_VISIBLE_DEVICES"], spec.env["CUDA_MODULE_LOADING"]) == ("GPU-1", "LAZY")
    assert "GLIBC_TUNABLES" in spec.env
    assert executor._spec(roots / STACK.name, {}, request, 3).env["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"
    assert looked == [Path("/usr/local/nvidia")]


def test_a_specification_travels_as_json(context: ExecutorContext, roots: Path, tmp_path: Path) -> None:
    spec = RootfsExecutor(context)._spec(roots / STACK.name, {"PATH": "/bin"}, ask(tmp_path), 0)
    assert read_spec(json.dumps(spec._asdict())) == spec
    assert isinstance(read_spec(json.dumps(spec._asdict())).mounts[0], Mount)


def test_a_farm_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enter, "_call", lambda *arguments: None)
    spec = Spec(root="/", parent=os.getppid() + 1, tmpfs={}, devices=[], mounts=[], argv=[], env={}, folder="/")
    with pytest.raises(OSError, match="the farm is gone"):
        enter.enter(spec)


def test_libraries_that_the_linker_knows() -> None:
    assert parse_libraries(LISTED, "x86_64") == {
        "libcuda.so.1": "/lib/x86_64-linux-gnu/libcuda.so.1",
        "libnvidia-ml.so.1": "/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
        "libnvidia-ptxjitcompiler.so.1": "/lib/x86_64-linux-gnu/libnvidia-ptxjitcompiler.so.1",
        "libnvidia-nvvm.so.4": "/lib/x86_64-linux-gnu/libnvidia-nvvm.so.4",
        "libnvidia-gpucomp.so.580.159.04": "/lib/x86_64-linux-gnu/libnvidia-gpucomp.so.580.159.04",
    }
    assert parse_libraries(LISTED, "aarch64") == {}


def test_a_driver_that_the_linker_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rootfs, "_linker_cache", lambda: LISTED)
    found = find_driver(tmp_path / "nothing", "x86_64")
    inside = "/usr/local/nvidia/lib64"
    assert (found.tmpfs, found.folders) == (("/usr/local/nvidia",), (inside,))
    source = "/lib/x86_64-linux-gnu/libcuda.so.1"
    assert found.mounts[0] == Mount(source, f"{inside}/libcuda.so.1", read_only=True)
    assert len(found.mounts) == 5


@pytest.mark.parametrize("parts", [("lib64",), ("lib",), ("lib64", "lib")])
def test_a_driver_in_a_folder_of_its_own(tmp_path: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        (tmp_path / part).mkdir()
        (tmp_path / part / "libcuda.so.1").touch()
    found = find_driver(tmp_path, "x86_64")
    assert found.mounts == (Mount(str(tmp_path), "/usr/local/nvidia", read_only=True),)
    assert (found.tmpfs, found.folders) == ((), tuple(f"/usr/local/nvidia/{part}" for part in parts))


def test_a_folder_without_the_driver_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib64").mkdir()
    monkeypatch.setattr(rootfs, "_linker_cache", lambda: LISTED.replace("libcuda.so.1 (libc6,x86-64", "other (x"))
    error = refusal(lambda: find_driver(tmp_path, "x86_64"))
    assert error.reason is Reason.GPU_UNREADABLE
    assert "ldconfig" in (error.fix or "")


def test_two_contexts_do_not_share_what_they_found(context: ExecutorContext, roots: Path) -> None:
    save_record(KNOWN, roots)
    first = RootfsExecutor(context)
    assert first.identified(STACK)
    (roots / f"{STACK.name}.json").unlink()
    assert not RootfsExecutor(replace(context)).identified(STACK)
