"""`enginefarm check`: engines of the store, files and folders, judged for a machine of data."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from builder.check import ENGINE, KEY, MANIFEST, Checked, check, check_one, find_model, find_subjects
from builder.cli import main
from builder.compat import Fit, Wish
from builder.errors import ExitCode, Reason
from builder.facts_file import facts_json, load_facts
from builder.machine import GpuFacts
from builder.report.fitness import fitness_lines, machine_line
from builder.store import Store
from tests.artifacts import blob, overwrite, refusal
from tests.headed import A100, T4, Built, machine
from tests.nvml import FakeNvml, in_place, two

RTX = Built(stack="trtrtx1.7-cuda13", tensorrt="1.7.1.116", cuda="13", sm="8.0", device=None)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Make a home with engines of two models."""
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "home"))
    store = Store(tmp_path / "home" / "store")
    for one in (Built(), Built(precision="int8"), RTX, Built(recipe="yolo-small")):
        one.add(store)
    return store


def names(store: Store, *asked: str) -> list[str]:
    return [one.name for one in find_subjects(store, asked)]


def judged(path: Path, store: Store, **wish: Any) -> Checked:
    (subject,) = find_subjects(store, [str(path)])
    return check_one(subject, machine(), Wish(**wish), ())


def codes(one: Checked) -> list[str]:
    return [finding.reason.value.code for finding in one.verdict.refusals]


def facts_file(folder: Path, **changes: Any) -> str:
    path = folder / "facts.json"
    path.write_text(facts_json(machine(**changes)), encoding="utf-8")
    return str(path)


def test_names(store: Store) -> None:
    every = [Built().job, Built(precision="int8").job, RTX.job, Built(recipe="yolo-small").job]
    assert names(store) == every
    assert names(store, "yolo") == every[:3]
    assert names(store, "yolo-small") == every[3:]
    assert names(store, every[1]) == every[1:2]
    key = store.entries("engine")[0].key
    assert names(store, key[:8]) == every[:1]
    engine = store.files(store.entries("engine")[2])[ENGINE].digest
    assert names(store, engine) == every[2:3]
    assert names(store, "yolo-small", every[3]) == every[3:]
    error = refusal(lambda: names(store, "yolo-fp61"))
    assert error.reason is Reason.NAME_UNKNOWN
    assert "yolo" in (refusal(lambda: names(store, "yollo")).fix or "")
    assert refusal(lambda: names(store, "")).reason is Reason.NAME_UNKNOWN
    assert find_model(store, "yol") == ()


def test_what_is_neither_file_nor_folder_is_not_read(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.plan")
    for path in (tmp_path / "pipe.plan", Path("/dev/zero")):
        assert refusal(lambda path=path: names(store, str(path))).reason is Reason.NAME_UNKNOWN  # type: ignore[misc]


def test_a_cut_engine_of_tensorrt_rtx_is_known_by_its_head(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "own.plan"
    rest = bytes((1, 7, 1, 116)) + b"vtrt" + (0b01000).to_bytes(8, "little")
    path.write_bytes(b"vtrt" + bytes(12) + (100).to_bytes(8, "little") + rest + bytes(60))
    assert "EF-716" not in codes(judged(path, store))
    os.truncate(path, 90)
    assert codes(judged(path, store))[0] == "EF-716"


def test_the_newest_engine_of_a_job_counts(store: Store) -> None:
    newer = Built(plugins=("Nms",)).add(store)
    (subject,) = find_subjects(store, [Built().job])
    assert subject.entry == newer
    assert subject.candidate.plugins == ("Nms",)
    assert len(find_subjects(store, [])) == 4


def test_engines_of_one_job_for_several_gpus_and_releases_are_all_judged(store: Store) -> None:
    # what a home has that machines share, and a stack with a sibling lock
    h100 = GpuFacts(name="NVIDIA H100 PCIe", sm="9.0", memory_bytes=80 << 30)
    kin = [
        Built(sm="9.0", device=h100.name),
        Built(sm="9.0", device=h100.name, tensorrt="10.9.0.43"),
        Built(sm="9.0", device="NVIDIA H200"),
    ]
    first, _, other = (one.add(store) for one in kin)
    for asked in (find_model(store, "yolo"), find_subjects(store, [kin[0].job])):
        checked = check(asked, machine(h100), Wish(), ())
        assert [one.subject.entry for one in checked if one.verdict.fits] == [first, other]
        assert checked[0].verdict.fit is Fit.EXACT_DEVICE
    (newest,) = check(find_subjects(store, [kin[0].job]), machine(h100), Wish(tensorrt="10.9.0.43"), ())[:1]
    assert newest.verdict.fit is Fit.EXACT_DEVICE


def test_the_store_on_the_machine_of_its_engines(store: Store) -> None:
    checked = check(find_subjects(store, []), machine(), Wish(), ())
    assert [(one.subject.name, one.verdict.fit) for one in checked] == [
        (Built().job, Fit.EXACT_DEVICE),
        (Built(recipe="yolo-small").job, Fit.EXACT_DEVICE),
        (Built(precision="int8").job, Fit.EXACT_DEVICE),
        (RTX.job, Fit.NONE),
    ]


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (b"ftrt" + bytes(0x14) + bytes((10, 8, 0, 43)), "its header says TensorRT 10.8.0.43"),
        (b"vtrt" + bytes(0x14) + bytes((10, 9, 0, 34)), "its header says TensorRT-RTX 10.9.0.34"),
        (b"PK\x03\x04", "the file does not begin as an engine of TensorRT does"),
        (b"", "the file does not begin as an engine of TensorRT does"),
    ],
)
def test_a_head_that_says_otherwise(head: bytes, text: str, store: Store) -> None:
    Built(head=head).add(store)
    (one,) = check(find_subjects(store, [Built().job]), machine(), Wish(), ())
    assert codes(one) == ["EF-716"]
    assert one.verdict.refusals[0].text.startswith(text)
    assert one.verdict.gpu is None


def test_an_engine_whose_file_is_gone(store: Store) -> None:
    entry = store.entries("engine")[0]
    blob(store, store.files(entry)[ENGINE].digest).unlink()
    assert refusal(lambda: names(store, entry.name)).reason is Reason.STORE_CORRUPT
    checked = {one.subject.name: one for one in check(find_subjects(store, []), machine(), Wish(), ())}
    assert codes(checked[entry.name]) == ["EF-501"]


def test_a_damaged_entry_is_one_of_the_rows(store: Store) -> None:
    entry = store.entries("engine")[0]
    overwrite(blob(store, store.files(entry)[MANIFEST].digest), b"{}")
    checked = {one.subject.name: one for one in check(find_subjects(store, []), machine(), Wish(), ())}
    assert len(checked) == 4
    assert codes(checked[entry.name]) == ["EF-501"]
    assert entry.name not in [one.name for one in find_model(store, "yolo")]
    assert refusal(lambda: names(store, entry.name)).reason is Reason.STORE_CORRUPT


def test_a_file_with_its_manifest(store: Store, tmp_path: Path) -> None:
    path = Built().write(tmp_path / "engine")
    assert judged(path, store).verdict.fit is Fit.EXACT_DEVICE
    assert judged(path.parent, store).subject.name == str(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert codes(judged(path, store)) == ["EF-707"]
    (path.parent / KEY).unlink()
    assert codes(judged(path, store)) == ["EF-707"]


def test_a_file_without_a_manifest_says_its_version_only(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "own.engine"
    path.write_bytes(Built().content)
    one = judged(path, store, precision="fp16")
    assert codes(one) == ["EF-217", "EF-201"]
    assert "no manifest.json beside it" in one.verdict.refusals[1].text
    path.write_bytes(Built(tensorrt="8.6.1.6").content)
    assert codes(judged(path, store)) == ["EF-211", "EF-201"]
    head = b"vtrt" + bytes(0x14) + bytes((1, 7, 1, 116)) + bytes(4) + (0b01000).to_bytes(8, "little")
    path.write_bytes(head + bytes(100))
    (found,) = find_subjects(store, [str(path)])
    assert found.candidate.sms == ("8.9",)
    assert found.candidate.rtx
    path.write_bytes(b"\x00" * 100)
    assert codes(judged(path, store)) == ["EF-716"]


def test_a_folder_of_exported_engines(store: Store, tmp_path: Path) -> None:
    for one in (Built(), RTX):
        one.write(tmp_path / "out" / one.job)
    assert len(find_subjects(store, [str(tmp_path / "out")])) == 2
    (tmp_path / "none").mkdir()
    assert refusal(lambda: names(store, str(tmp_path / "none"))).reason is Reason.NAME_UNKNOWN


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"schema_version": 1}', b"\xff", b"size"])
def test_a_manifest_that_is_none(content: bytes, store: Store, tmp_path: Path) -> None:
    path = Built().write(tmp_path / "engine")
    if content == b"size":
        document = json.loads(path.with_name(MANIFEST).read_bytes())
        content = json.dumps(document | {"engine": document["engine"] | {"size": float("inf")}}).encode()
    path.with_name(MANIFEST).write_bytes(content)
    error = refusal(lambda: names(store, str(path)))
    assert error.reason is Reason.MANIFEST_INVALID
    assert error.where == str(path.with_name(MANIFEST))


def test_exit_codes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["check", "yolo", "--facts", facts_file(tmp_path)]) == ExitCode.OK
    shown = capsys.readouterr()
    assert "exact-device" in shown.out
    assert "EF-211 tensorrt-version: needs TensorRT-RTX 1.7.1.116; here: TensorRT 10.9.0.34 alone" in shown.out
    assert "machine: Tesla T4 (SM 7.5), driver 560.35.05, CUDA 12.6, TensorRT 10.9.0.34, linux/amd64" in shown.err
    assert "2 of 3 engines fit" in shown.err
    assert main(["check", "yolo", "--facts", facts_file(tmp_path, gpu=A100)]) == ExitCode.REFUSED
    assert main(["check", "yolo", "--precision", "fp32", "--facts", facts_file(tmp_path)]) == ExitCode.REFUSED
    assert main(["check", "nobody", "--facts", facts_file(tmp_path)]) == ExitCode.BAD_INPUT
    assert main(["check", "--facts", str(tmp_path / "none")]) == ExitCode.BAD_INPUT
    for wish in (["--tensorrt", "newest"], ["--tensorrt", "10.x"], ["--precision", "fp61"]):
        assert main(["check", *wish, "--facts", facts_file(tmp_path)]) == ExitCode.USAGE


def test_an_empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ENGINEFARM_HOME", str(tmp_path / "nobody"))
    assert main(["check", "--facts", facts_file(tmp_path)]) == ExitCode.REFUSED
    assert "holds no engine" in capsys.readouterr().err


def test_json(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "yolo", "--json", "--facts", facts_file(tmp_path)]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    assert document["fits"] is True
    assert document["machine"]["gpus"][0]["name"] == "Tesla T4"
    best, *_, last = document["engines"]
    assert (best["engine"], best["fit"], best["gpu"]) == (Built().job, "exact-device", "Tesla T4")
    assert [finding["code"] for finding in last["refusals"]] == ["EF-211", "EF-212", "EF-213", "EF-201"]
    assert last["refusals"][0]["reason"] == "tensorrt-version"
    assert last["refusals"][0]["fix"]


def test_this_machine_is_written_down(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [])
    with in_place() as put:
        put(FakeNvml(*two()))
        assert main(["check", "--write-facts", str(tmp_path / "here.json")]) == ExitCode.OK
        assert main(["check", "--write-facts", str(tmp_path / "no" / "here.json")]) == ExitCode.BAD_INPUT
    assert [one.name for one in load_facts(tmp_path / "here.json").gpus] == ["NVIDIA H200", "NVIDIA L4"]
    assert "wrote" in capsys.readouterr().err


def test_reasons_are_said_once(store: Store) -> None:
    checked = check(find_subjects(store, []), machine(gpu=A100), Wish(), ())
    lines = fitness_lines(checked, 80, lambda text, _: text)
    assert all(len(line) <= 80 for line in lines)
    text = " ".join("\n".join(lines).split())
    assert "EF-201 sm-mismatch: is for SM 7.5; here: NVIDIA A100-SXM4-40GB (SM 8.0) (3 engines)" in text


def test_a_machine_with_nothing() -> None:
    facts = machine(gpus=(), driver=None, cuda=None, tensorrt=None)
    assert machine_line(facts) == "machine: no NVIDIA GPU, no TensorRT found, linux/amd64"
    assert machine_line(machine(gpus=(T4, T4))).startswith("machine: Tesla T4 (SM 7.5), driver")
