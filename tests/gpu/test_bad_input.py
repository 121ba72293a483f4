"""What goes wrong on a GPU: each case has a name of its own, none hangs, none leaves half an artifact."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from builder.gpu import Gpu
from builder.query import find_engine
from builder.store import Store
from builder.timing_caches import TIMING_CACHE
from builder.titles import ENGINE
from tests.gpu.farm import LOCK, STACK, TIMEOUT_S, GpuFarm
from tests.integration.farm import ROOT, graph, product, shapes

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(TIMEOUT_S)]

HOLD = """
import sys
from builder.worker.cuda import Cuda
cuda = Cuda()
free, _ = cuda.memory()
cuda.allocate(free - (int(sys.argv[1]) << 20))
print("held", flush=True)
sys.stdin.read()
"""


def errors(report: dict[str, Any]) -> list[str]:
    """List the reasons of the jobs that failed."""
    return [job["error"]["reason"] for job in report["jobs"] if job["status"] == "failed"]


@contextmanager
def gpu_filled(gpu: Gpu, left_mib: int) -> Iterator[int]:
    """Let another process hold all of the GPU's memory but a rest; yields its process number."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": gpu.uuid}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(left_mib)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder.pid
        finally:
            holder.kill()


def test_another_sm_is_refused_before_anything_starts(gpu_farm: GpuFarm, gpu: Gpu) -> None:
    gpu_farm.recipe("toy", product(), shapes())
    other = "turing" if gpu.sm != "7.5" else "ada"
    report = gpu_farm.tune(target=other, code=4)
    assert "EF-201 sm-mismatch" in report["stderr"]
    assert gpu.name in report["stderr"]


def test_two_farms_take_turns_on_one_gpu(gpu_farm: GpuFarm, gpu: Gpu, tmp_path: Path) -> None:
    gpu_farm.recipe("toy", product(), shapes())
    other = GpuFarm(
        project=gpu_farm.project, home=tmp_path / "other", executor=gpu_farm.executor, target=gpu_farm.target
    )
    other.home.mkdir()
    for name in ("bases", "images", "fetch"):
        (other.home / name).symlink_to((gpu_farm.home / name).resolve())
    reports: list[dict[str, Any]] = []
    threads = [
        threading.Thread(target=lambda farm=farm: reports.append(farm.tune(CUDA_VISIBLE_DEVICES=gpu.uuid)))
        for farm in (gpu_farm, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [job["status"] for report in reports for job in report["jobs"]] == ["built", "built"]
    assert any("waiting" in report["stderr"] for report in reports)


def test_a_full_gpu_is_named_with_the_program_that_fills_it(gpu_farm: GpuFarm, gpu: Gpu) -> None:
    gpu_farm.recipe("toy", product(), shapes())
    with gpu_filled(gpu, 300) as pid:
        report = gpu_farm.tune(code=5, CUDA_VISIBLE_DEVICES=gpu.uuid)
    assert errors(report) == ["gpu-memory-short"]
    assert str(pid) in report["jobs"][0]["error"]["why"]


def test_a_model_too_large_for_the_memory_left_is_called_out_of_memory(gpu_farm: GpuFarm, gpu: Gpu) -> None:
    wide = {"x": {"min": [1, 4096], "opt": [65536, 4096], "max": [262144, 4096]}}
    gpu_farm.recipe("wide", product(width=4096), wide)
    with gpu_filled(gpu, 1400):
        report = gpu_farm.tune(code=6, CUDA_VISIBLE_DEVICES=gpu.uuid)
    assert errors(report) == ["out-of-memory"]


def test_an_overflow_in_fp16_is_named(gpu_farm: GpuFarm) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="far"),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="back"),
    ]
    # each weight fits FP16, their sums over a row do not
    weights = {"w": np.full((8, 8), 50000.0), "v": np.full((8, 8), 1e-5)}
    gpu_farm.recipe("overflow", graph(nodes, weights, ["n", 8]), shapes())
    report = gpu_farm.tune(code=6)
    assert errors(report) == ["numerics-nonfinite"]
    assert "far" in json.dumps(report["jobs"][0]["error"])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("truncated", "engine-invalid"), ("empty", "engine-invalid"), ("version", "engine-version")],
)
def test_a_file_that_is_no_engine_of_this_release_is_refused(
    gpu_farm: GpuFarm, damage: str, reason: str, tmp_path: Path
) -> None:
    gpu_farm.recipe("toy", product(), shapes())
    (job,) = gpu_farm.tune()["jobs"]
    store = Store(gpu_farm.home / "store")
    content = store.files(find_engine(store, job["job"]))[ENGINE].path.read_bytes()
    bad = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "version": content[:0x18] + bytes([8, 5, 3, 1]) + content[0x1C:],
    }[damage]
    path = tmp_path / "bad.plan"
    path.write_bytes(bad)
    assert gpu_farm.load_directly(path) == reason


def test_a_flipped_bit_is_seen_before_tensorrt_reads_the_engine(gpu_farm: GpuFarm) -> None:
    gpu_farm.recipe("toy", product(), shapes())
    (job,) = gpu_farm.tune()["jobs"]
    store = Store(gpu_farm.home / "store")
    path = store.files(find_engine(store, job["job"]))[ENGINE].path
    content = bytearray(path.read_bytes())
    # TensorRT itself loads this: it has no checksum over weights
    content[len(content) // 2] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(content)
    done = gpu_farm.run("verify", job["job"])
    assert done.returncode == 7
    assert "EF-501 store-corrupt" in done.stderr


def test_a_damaged_timing_cache_is_refused(gpu_farm: GpuFarm, tmp_path: Path) -> None:
    gpu_farm.recipe("toy", product(), shapes())
    (job,) = gpu_farm.tune()["jobs"]
    store = Store(gpu_farm.home / "store")
    content = store.files(find_engine(store, job["job"]))[TIMING_CACHE].path.read_bytes()
    foreign = tmp_path / "foreign.cache"
    # the name of the device lies in the header: this is what a cache of another GPU looks like
    foreign.write_bytes(bytes(byte ^ 0x5A if index < 256 else byte for index, byte in enumerate(content)))
    report = gpu_farm.tune("--sealed", str(foreign), code=6)
    assert errors(report) == ["timing-cache-invalid"]


def test_a_seal_holds_for_its_model_and_breaks_for_another(gpu_farm: GpuFarm, tmp_path: Path) -> None:
    gpu_farm.recipe("toy", product(), shapes())
    (job,) = gpu_farm.tune()["jobs"]
    store = Store(gpu_farm.home / "store")
    sealed = tmp_path / "toy.cache"
    sealed.write_bytes(store.files(find_engine(store, job["job"]))[TIMING_CACHE].path.read_bytes())
    assert [job["status"] for job in gpu_farm.tune("--sealed", str(sealed))["jobs"]] == ["built"]
    gpu_farm.recipe("other", product(width=256, seed=1), shapes(width=256))
    report = gpu_farm.tune("--recipe", "other", "--sealed", str(sealed), code=6)
    assert errors(report) == ["sealed-cache-changed"]


def test_a_library_that_is_gone_is_named(gpu_farm: GpuFarm) -> None:
    root = os.environ.get("ENGINEFARM_ROOTFS")
    if gpu_farm.executor != "rootfs" or root is None:
        pytest.skip("needs --executor rootfs, whose files can be taken away")
    gpu_farm.recipe("toy", product(), shapes())
    libraries = sorted((Path(root) / STACK / "opt/stack/nvidia/cudnn/lib").glob("libcudnn*.so.8"))
    assert libraries
    for path in libraries:
        path.rename(path.with_name(f"{path.name}.away"))
    try:
        report = gpu_farm.tune(code=6)
    finally:
        for path in libraries:
            path.with_name(f"{path.name}.away").rename(path)
    assert errors(report) == ["library-missing"]
    assert "libcudnn" in json.dumps(report["jobs"][0]["error"])


def test_a_farm_killed_while_tuning_leaves_nothing_behind(gpu_farm: GpuFarm) -> None:
    gpu_farm.recipe("toy", product(), shapes())
    arguments = ["build", "--stack", STACK, "--lock", LOCK, "--target", gpu_farm.target]
    process = gpu_farm.start(*arguments)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((gpu_farm.home / "work").glob("*/*/build/job.json")):
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not Store(gpu_farm.home / "store").entries("engine")
    assert [job["status"] for job in gpu_farm.tune()["jobs"]] == ["built"]
