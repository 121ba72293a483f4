"""The main job with the real TensorRT-RTX: what is built, what is refused, and that nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import helper

from builder.store import Store
from tests.integration.farm import Farm, graph, product, shapes

pytestmark = pytest.mark.integration


def test_built_then_reused_then_proved_anew_then_exported(farm: Farm, tmp_path: Path) -> None:
    path = farm.recipe("toy", product(), shapes())
    first = farm.build()[0]
    assert first["status"] == "built"
    assert first["engine"]["precision"] == {"requested": "fp16", "realised": "fp16"}
    assert first["engine"]["proof"]["status"] == "passed"
    assert first["engine"]["proof"]["engine_verified"] is False
    assert farm.build()[0]["status"] == "reused"

    recipe = yaml.safe_load(path.read_text())
    recipe["precisions"]["fp16"]["tolerance"]["default"]["max_abs"] = 0.04
    path.write_text(yaml.safe_dump(recipe))
    again = farm.build()[0]
    assert again["status"] == "proved"
    assert again["engine"]["sha256"] == first["engine"]["sha256"]
    assert "build" not in again["stage_seconds"]

    assert farm.run("export", str(tmp_path / "out")).returncode == 0
    engine = tmp_path / "out" / first["job"] / "model.plan"
    manifest = json.loads((tmp_path / "out" / first["job"] / "manifest.json").read_text())
    assert manifest["engine"]["sha256"] == first["engine"]["sha256"]
    assert engine.stat().st_size == manifest["engine"]["size"]
    assert manifest["proof"]["reason"] == "no GPU"
    assert manifest["proof"]["outside"][0]["excluded_by_profile"] is True


def test_a_rebuild_is_the_same_bit_for_bit_and_says_so(farm: Farm) -> None:
    farm.recipe("toy", product(), shapes())
    job = farm.build()[0]["job"]
    done = farm.run("reproduce", job, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["level"] == "bitwise"
    assert json.loads(farm.run("show", job, "--json").stdout)["reproducibility"]["level"] == "bitwise"


def test_parallel_builds_give_the_same_bytes_as_single_ones(farm: Farm, tmp_path: Path) -> None:
    for number in range(4):
        farm.recipe(f"toy{number}", product(64, seed=number), shapes(width=64))
    apart = {job["job"]: job["engine"]["sha256"] for job in farm.build("-j", "1")}
    other = Farm(project=farm.project, home=tmp_path / "other")
    other.home.mkdir()
    (other.home / "envs").symlink_to((farm.home / "envs").resolve())
    together = {job["job"]: job["engine"]["sha256"] for job in other.build("-j", "4")}
    assert together == apart


def test_an_operator_that_tensorrt_refuses_is_named(farm: Farm) -> None:
    nodes = [helper.make_node("Frobnicate", ["x"], ["y"], name="frob", domain="acme")]
    farm.recipe("odd", graph(nodes, {}, ["n", 8]), shapes())
    farm.recipe("good", product(), shapes())
    odd, good = sorted(farm.build(code=6), key=lambda job: job["status"], reverse=True)[0:2]
    odd, good = (odd, good) if odd["status"] == "failed" else (good, odd)
    assert good["status"] == "built"
    assert odd["error"]["reason"] in {"op-unsupported", "model-invalid"}
    assert "frob" in json.dumps(odd["error"]) or "Frobnicate" in json.dumps(odd["error"])
    assert Path(odd["log"]).is_file()


def test_an_fp16_overflow_is_named_and_keep_fp32_mends_it(farm: Farm) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Mul", ["a", "big"], ["b"], name="blow_up"),
        helper.make_node("Mul", ["b", "small"], ["y"], name="calm_down"),
    ]
    model = graph(nodes, {"w": np.eye(8), "big": 3e4 * 4, "small": 1e-5}, ["n", 8])
    # 1.2e5 itself does not fit into FP16 and is kept in FP32 by the farm; two factors of 1e4 do fit
    nodes[1:2] = [
        helper.make_node("Mul", ["a", "big"], ["b1"], name="blow_up"),
        helper.make_node("Mul", ["b1", "big"], ["b"], name="blow_up_again"),
    ]
    model = graph(nodes, {"w": np.eye(8), "big": 1e4, "small": 1e-4}, ["n", 8])
    path = farm.recipe("overflow", model, shapes())
    error = farm.build(code=6)[0]["error"]
    assert error["reason"] == "numerics-nonfinite"
    assert "blow_up_again" in error["why"]
    recipe = yaml.safe_load(path.read_text())
    recipe["precisions"]["fp16"]["keep_fp32"] = {"nodes": ["blow_up_again", "calm_down"]}
    recipe["precisions"]["fp16"]["tolerance"]["default"]["max_abs"] = 1e3
    path.write_text(yaml.safe_dump(recipe))
    assert farm.build()[0]["status"] == "built"


def test_a_shape_profile_that_the_graph_cannot_take(farm: Farm) -> None:
    farm.recipe("narrow", product(8), shapes(width=9))
    error = farm.build(code=6)[0]["error"]
    assert error["reason"] == "profile-invalid"
    assert "9" in error["what"]


def test_an_input_that_the_model_does_not_have(farm: Farm) -> None:
    farm.recipe("renamed", product(), {"z": shapes()["x"]})
    error = farm.build(code=6)[0]["error"]
    assert error["reason"] == "input-invalid"
    assert "x" in json.dumps(error)


def test_another_file_than_the_recipe_says(farm: Farm) -> None:
    path = farm.recipe("toy", product(), shapes())
    (path.parent / "model.onnx").write_bytes(b"something else")
    error = farm.build(code=3)[0]["error"]
    assert error["reason"] == "digest-mismatch"
    assert "expected" in error["why"]
    assert "actual" in error["why"]


def test_a_file_that_is_no_onnx_model(farm: Farm) -> None:
    broken = onnx.ModelProto()
    farm.recipe("broken", broken, shapes())
    assert farm.build(code=6)[0]["error"]["reason"] == "model-invalid"


def test_a_tolerance_that_is_too_tight_names_output_and_layer(farm: Farm) -> None:
    farm.recipe("tight", product(), shapes(), precisions={"fp16": {"tolerance": {"default": {"max_abs": 1e-9}}}})
    error = farm.build(code=6)[0]["error"]
    assert error["reason"] == "numerics-tolerance"
    assert "output y" in error["what"]
    assert "product" in error["why"]


def test_a_corrupt_engine_is_set_aside_and_built_again(farm: Farm) -> None:
    farm.recipe("toy", product(), shapes())
    before = farm.build()[0]
    blob = farm.home / "store" / "blobs" / "sha256" / before["engine"]["sha256"]
    blob.chmod(0o644)
    blob.write_bytes(b"x" + blob.read_bytes()[1:])
    assert farm.run("verify-store").returncode == 7
    after = farm.build()[0]
    assert after["status"] == "built"
    assert after["engine"]["sha256"] == before["engine"]["sha256"]
    assert farm.run("verify-store").returncode == 0
    assert list((farm.home / "store" / "quarantine").glob("*/*"))


def test_two_builds_of_one_job_at_once(farm: Farm) -> None:
    farm.recipe("toy", product(256), shapes(width=256))
    both = [farm.start("build", "--target", "ampere", "--json") for _ in range(2)]
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(report["jobs"][0]["status"] for report in reports) == ["built", "reused"]


def worker_of(farm: Farm, within_s: float = 60) -> int:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = entry.read_bytes()
            except OSError:
                continue
            if b"builder.worker" in line and str(farm.home).encode() in line:
                return int(entry.parent.name)
        time.sleep(0.005)
    pytest.fail("no worker came up")


def test_a_killed_worker_is_a_failed_job_with_its_log(farm: Farm) -> None:
    farm.recipe("toy", product(256), shapes(width=256))
    process = farm.start("build", "--target", "ampere", "--json")
    os.kill(worker_of(farm), signal.SIGKILL)
    job = json.loads(process.communicate(timeout=60)[0])["jobs"][0]
    assert process.returncode == 6
    assert job["error"]["reason"] == "worker-died"
    assert "signal 9" in job["error"]["what"]
    assert farm.build()[0]["status"] == "built"


def test_no_worker_outlives_a_killed_farm(farm: Farm) -> None:
    farm.recipe("toy", product(256), shapes(width=256))
    process = farm.start("build", "--target", "ampere")
    worker = worker_of(farm)
    process.kill()
    process.communicate()
    for _ in range(200):
        if not Path(f"/proc/{worker}").exists() or "State:\tZ" in Path(f"/proc/{worker}/status").read_text():
            break
        time.sleep(0.02)
    else:
        pytest.fail("the worker goes on without its farm")
    assert farm.build()[0]["status"] == "built"
    assert len(list((farm.home / "work").glob("run-*"))) == 0


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(farm: Farm) -> None:
    for number in range(3):
        farm.recipe(f"toy{number}", product(256, seed=number), shapes(width=256))
    process = farm.start("build", "--target", "ampere", "-j", "1")
    worker_of(farm)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not list((farm.home / "work").glob("run-*"))
    assert {job["status"] for job in farm.build()} <= {"built", "reused"}


def test_a_stage_that_takes_too_long_is_stopped(farm: Farm) -> None:
    farm.recipe("toy", product(), shapes())
    job = farm.build("--timeout", "0.05", code=6)[0]
    assert job["error"]["reason"] == "stage-timeout"


def test_a_store_that_cannot_be_written_still_serves(farm: Farm) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    farm.recipe("toy", product(), shapes())
    farm.build()
    store = farm.home / "store"
    subprocess.run(["mount", "--bind", store, store], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
        assert farm.build()[0]["status"] == "reused"
        farm.recipe("other", product(seed=1), shapes())
        done = farm.run("build", "--target", "ampere")
        assert done.returncode == 5
        assert "EF-306 store-read-only" in done.stderr
    finally:
        subprocess.run(["umount", store], check=True)


def test_a_disk_that_is_too_small_is_refused_before_work_starts(farm: Farm, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount")
    farm.recipe("toy", product(), shapes())
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=True)
    try:
        done = Farm(project=farm.project, home=small).run("build", "--target", "ampere")
        assert done.returncode == 5
        assert "EF-305 disk-full" in done.stderr
        assert "bytes are missing" in done.stderr
        assert not (small / "envs").exists()
    finally:
        subprocess.run(["umount", small], check=True)


def test_installing_can_be_forbidden(farm: Farm, tmp_path: Path) -> None:
    farm.recipe("toy", product(), shapes())
    job = Farm(project=farm.project, home=tmp_path / "bare").build("--no-install", code=5)[0]
    assert job["error"]["reason"] == "environment-missing"


def test_explain_says_what_changed(farm: Farm) -> None:
    path = farm.recipe("toy", product(), shapes())
    before = farm.build()[0]["key"]
    recipe = yaml.safe_load(path.read_text())
    recipe["build"] = {"optimization_level": 1}
    path.write_text(yaml.safe_dump(recipe))
    after = farm.build()[0]["key"]
    done = farm.run("explain", before, after)
    assert done.returncode == 0
    assert "optimization_level" in done.stdout
    assert Store(farm.home / "store").verify() == ()
