"""Facts of a machine: read from a made one, written to a file and read back, refused where malformed."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pynvml
import pytest

from builder import facts, gpu, host
from builder.errors import EnginefarmError, ErrorGroup, Reason
from builder.facts import Facts, GpuFacts, facts_json, load_facts, read_facts
from builder.facts_file import write_facts
from tests.artifacts import refusal
from tests.nvml import FIRST, GIB, FakeNvml, in_place, sliced, two

Install = Callable[[FakeNvml], FakeNvml]
DATA = Path(__file__).parents[1] / "data"
FULL = Facts(
    os="linux",
    architecture="arm64",
    l4t="36.4.4",
    driver="540.4.0",
    driver_cuda="12.6",
    gpus=(GpuFacts(name="Orin", sm="8.7", memory_bytes=30 * GIB, uuid=FIRST),),
    tensorrt="10.3.0.30-1+cuda12.5",
    tensorrt_rtx="1.7.1.116",
    cuda="12.6",
    plugins=("EfficientNMS_TRT",),
    disk_free_bytes=5 * GIB,
)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Install]:
    """Make a bare machine: no packages, no toolkit, no Jetson; its GPUs are installed by the test."""
    monkeypatch.setattr(gpu, "_PCI", tmp_path / "pci")
    monkeypatch.setattr(facts, "_TEGRA_RELEASE", tmp_path / "nv_tegra_release")
    monkeypatch.setattr(facts, "_DEVICE_TREE", tmp_path / "compatible")
    monkeypatch.setattr(facts, "_CUDA_VERSION_FILE", tmp_path / "version.json")
    monkeypatch.setattr(facts, "_LIBRARIES", (tmp_path / "lib",))
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site")])
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with in_place() as put:
        yield put


def package(folder: Path, name: str, version: str) -> None:
    """Leave what pip leaves of a package."""
    made = folder / "site" / f"{name.replace('-', '_')}-{version}.dist-info"
    made.mkdir(parents=True)
    (made / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")


def test_gpus_and_driver_come_from_the_driver(install: Install) -> None:
    install(FakeNvml(*two(), driver="550.54.15", cuda=12040))
    found = read_facts({})
    assert [(one.name, one.sm) for one in found.gpus] == [("NVIDIA H200", "9.0"), ("NVIDIA L4", "8.9")]
    assert (found.driver, found.driver_cuda) == ("550.54.15", "12.4")
    assert (found.os, found.architecture, found.l4t) == ("linux", "amd64", None)
    assert (found.tensorrt, found.tensorrt_rtx, found.cuda) == (None, None, None)
    assert found.disk_free_bytes is not None


def test_slices_of_a_gpu_and_what_cuda_may_see(install: Install) -> None:
    install(FakeNvml(sliced()))
    assert [one.name for one in read_facts({}).gpus] == ["NVIDIA H200 MIG 1g.18gb"] * 2
    assert {one.sm for one in read_facts({}).gpus} == {"9.0"}
    assert read_facts({"CUDA_VISIBLE_DEVICES": ""}).gpus == ()


def test_a_machine_without_a_driver(install: Install) -> None:
    install(FakeNvml(opening=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    found = read_facts({})
    assert (found.gpus, found.driver, found.driver_cuda) == ((), None, None)


@pytest.mark.parametrize(
    ("packages", "expected"),
    [
        ({"tensorrt": "8.6.1"}, ("8.6.1", None, None)),
        ({"tensorrt-cu12-bindings": "10.9.0.34", "tensorrt-cu12-libs": "10.9.0.34"}, ("10.9.0.34", None, "12")),
        ({"tensorrt": "11.3.0.99", "tensorrt-cu13-libs": "10.16.1.11"}, ("10.16.1.11", None, "13")),
        ({"tensorrt-rtx-cu13-libs": "1.7.1.116"}, (None, "1.7.1.116", "13")),
        ({"tensorrt-cu12": "10.9.0.34", "nvidia-cuda-runtime-cu12": "12.8.90"}, ("10.9.0.34", None, "12.8")),
        ({"tensorrt-cu12": "10.9.0.34", "nvidia-cuda-runtime": "13.0.48"}, ("10.9.0.34", None, "12")),
        ({"nvidia-cuda-runtime-cu12": "12.6.77", "tensorrt-llm": "0.20"}, (None, None, "12.6")),
    ],
)
def test_tensorrt_and_cuda_come_from_packages(
    packages: dict[str, str], expected: tuple[str | None, ...], install: Install, tmp_path: Path
) -> None:
    install(FakeNvml())
    for name, version in packages.items():
        package(tmp_path, name, version)
    found = read_facts({})
    assert (found.tensorrt, found.tensorrt_rtx, found.cuda) == expected


def test_tensorrt_of_system_packages(install: Install, tmp_path: Path) -> None:
    install(FakeNvml())
    (tmp_path / "lib").mkdir()
    for name in ("libnvinfer.so.8", "libnvinfer.so.8.6.2", "libnvinfer.so.10.3.0", "libnvinfer_plugin.so.11.0.0"):
        (tmp_path / "lib" / name).touch()
    assert read_facts({}).tensorrt == "10.3.0"


def test_cuda_of_an_image_or_a_toolkit(install: Install, tmp_path: Path) -> None:
    install(FakeNvml())
    (tmp_path / "version.json").write_text('{"cuda": {"version": "12.4.131"}}', encoding="utf-8")
    assert read_facts({}).cuda == "12.4"
    assert read_facts({"CUDA_VERSION": "12.6.3"}).cuda == "12.6"
    (tmp_path / "version.json").write_text("[]", encoding="utf-8")
    assert read_facts({}).cuda is None


def test_a_jetson_without_nvml(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(FakeNvml(opening=pynvml.NVML_ERROR_LIBRARY_NOT_FOUND))
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    release = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64, DATE: Tue Aug  1\n"
    (tmp_path / "nv_tegra_release").write_text(release, encoding="utf-8")
    assert read_facts({}).gpus == ()
    (tmp_path / "compatible").write_bytes(b"nvidia,p3737-0000+p3701-0000\0nvidia,p3701-0000\0nvidia,tegra234\0")
    found = read_facts({})
    assert (found.architecture, found.l4t) == ("arm64", "35.4.1")
    assert found.gpus == (GpuFacts(name="Orin", sm="8.7", memory_bytes=host.total_memory_bytes()),)


def test_plugins_are_named_by_the_environment(install: Install) -> None:
    install(FakeNvml())
    assert read_facts({"ENGINEFARM_PLUGINS": "EfficientNMS_TRT, RoiAlign,"}).plugins == ("EfficientNMS_TRT", "RoiAlign")


def test_a_file_of_facts_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(facts_json(FULL), encoding="utf-8")
    assert load_facts(path) == FULL


def test_a_full_disk_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "facts.json"
    write_facts(path, Facts(os="linux", architecture="amd64"))
    before = path.read_bytes()

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refusal(lambda: write_facts(path, FULL)).reason is Reason.DISK_FULL
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["facts.json"]


def test_facts_go_where_a_link_leads(tmp_path: Path) -> None:
    """As root, /dev/stdout could be replaced by a file."""
    (tmp_path / "link").symlink_to(tmp_path / "facts.json")
    write_facts(tmp_path / "link", FULL)
    assert (tmp_path / "link").is_symlink()
    assert load_facts(tmp_path / "facts.json") == FULL


def test_facts_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text('{"os": "linux", "architecture": "amd64"}', encoding="utf-8")
    assert load_facts(path) == Facts(os="linux", architecture="amd64")


def wrong(tmp_path: Path, content: str | bytes) -> EnginefarmError:
    path = tmp_path / "facts.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    error = refusal(lambda: load_facts(path))
    assert error.reason is Reason.FACTS_INVALID
    return error


def test_malformed_json_is_placed(tmp_path: Path) -> None:
    assert wrong(tmp_path, '{\n  "os": linux\n}').where == f"{tmp_path}/facts.json:2"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[" * 100_000, b" " * (2 << 20), b"9" * 5000])
def test_what_is_no_json(content: bytes, tmp_path: Path) -> None:
    assert wrong(tmp_path, content).where == f"{tmp_path}/facts.json"


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(lambda: load_facts(tmp_path / "none.json")).reason is Reason.FILE_MISSING


@pytest.mark.parametrize(
    ("changes", "line", "says"),
    [
        ({"tensorrt": "newest"}, 5, "tensorrt: 'newest' is no version"),
        ({"driver": 550}, 5, "driver: 550 is no version"),
        ({"os": ""}, 3, "os: '' is no text"),
        ({"disk_free_bytes": -1}, 5, "disk_free_bytes: -1 is no number of bytes"),
        ({"disk_free_bytes": True}, 5, "disk_free_bytes: True is no number of bytes"),
        ({"plugins": "all"}, 5, "plugins: 'all' is no list"),
        ({"gpus": {"name": "A10"}}, 5, "gpus is no list of objects"),
        ({"gpus": [{"name": "A10", "sm": "86"}]}, 8, "sm: '86' is no compute capability"),
        ({"gpus": [{"name": "A10", "sm": "8.6", "cores": 3}]}, 9, "there is no fact 'cores' of a GPU"),
        ({"gpu": []}, 5, "there is no fact 'gpu'"),
        ({"schema": 2}, 2, "schema 2 is not 1"),
        ({"schema": True}, 2, "schema True is not 1"),
        ({"gpus": [{"name": "A10\x1b[2J", "sm": "8.6"}]}, 7, r"name: 'A10\x1b[2J' has characters"),
    ],
)
def test_a_wrong_fact_is_placed(changes: dict[str, Any], line: int, says: str, tmp_path: Path) -> None:
    document = {"schema": 1, "os": "linux", "architecture": "amd64"} | changes
    error = wrong(tmp_path, json.dumps(document, indent=2))
    assert error.where == f"{tmp_path}/facts.json:{line}"
    assert error.what.startswith(says)


def test_facts_as_people_and_windows_write_them(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"os": "Windows", "architecture": "AMD64"}')
    assert load_facts(path) == Facts(os="windows", architecture="amd64")
    path.write_text('{"os": "Linux", "architecture": "aarch64"}', encoding="utf-8")
    assert load_facts(path) == Facts(os="linux", architecture="arm64")


def test_a_missing_fact_has_no_line(tmp_path: Path) -> None:
    error = wrong(tmp_path, '{"architecture": "amd64"}')
    assert (error.where, error.what) == (f"{tmp_path}/facts.json", "os is missing")
    assert wrong(tmp_path, "[]").what == "the facts are no object with named values"


def test_all_problems_come_together(tmp_path: Path) -> None:
    error = wrong(tmp_path, '{"os": 1, "cuda": [], "gpus": [{}]}')
    assert isinstance(error, ErrorGroup)
    assert len(error.errors) == 5
