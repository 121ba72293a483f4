"""Which engine fits which machine: a table of machines and a published index, and each rule on its own."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder.compat import (
    Candidate,
    Finding,
    Fit,
    Verdict,
    Wish,
    candidate_of_annotations,
    candidate_of_manifest,
    header_findings,
    no_fit,
    rank,
    verdict,
)
from builder.compat_rules import KnownBad, load_known_bad, load_rules, read_bounds, read_known_bad, same_release
from builder.engine_header import Header
from builder.errors import EnginefarmError, ExitCode, Reason
from builder.facts_file import load_facts
from builder.machine import Facts, GpuFacts
from tests.engines import manifest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).parents[1] / "data"
MACHINES = sorted((DATA / "machines").glob("*.json"))
EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((DATA / "verdicts.toml").read_text(encoding="utf-8"))
INDEX: dict[str, Any] = json.loads((DATA / "published-index.json").read_text(encoding="utf-8"))
PUBLISHED = [candidate_of_annotations(descriptor) for descriptor in INDEX["manifests"]]

A10 = GpuFacts(name="NVIDIA A10", sm="8.6", memory_bytes=22 << 30)
MACHINE = Facts(
    os="linux",
    architecture="amd64",
    driver="570.124.06",
    driver_cuda="12.8",
    gpus=(A10,),
    tensorrt="10.9.0.34",
    cuda="12.8",
)
ENGINE = Candidate(
    job="detector-fp16-trt10.9-cuda12.8-sm86",
    key="a" * 64,
    stack="trt10.9-cuda12.8",
    tensorrt="10.9.0.34",
    cuda="12.8",
    precision="fp16",
    sms=("8.6",),
    device="NVIDIA A10",
    driver="570.124.06",
    os="linux",
    architecture="amd64",
    engine_verified=True,
    weights="pretrained",
    engine_sha256="b" * 64,
    size=1,
)


def judge(
    engine: Candidate = ENGINE, machine: Facts = MACHINE, known_bad: tuple[KnownBad, ...] = (), **wish: Any
) -> Verdict:
    return verdict(engine, machine, Wish(**wish), known_bad)


def codes(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.reason.value.code for finding in findings]


def refused(found: Verdict) -> list[str]:
    assert found.fit is Fit.NONE
    assert found.gpu is None
    assert not found.fits
    return codes(found.refusals)


def short(candidate: Candidate) -> str:
    return candidate.job.removeprefix("detector-")


def test_the_table_has_every_machine() -> None:
    assert len(MACHINES) >= 30
    assert {path.stem for path in MACHINES} == set(EXPECTED)


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_a_machine_and_a_published_index(path: Path) -> None:
    expected, facts = EXPECTED[path.stem], load_facts(path)
    verdicts = rank(PUBLISHED, facts, Wish(), load_known_bad())
    best = verdicts[0]
    assert (short(best.candidate) if best.fits else "") == expected["best"]
    assert best.fit.value == expected["fit"]
    only = facts.gpus[0].name if facts.gpus else None
    assert best.gpu == (expected.get("gpu", only) if best.fits else None)
    if best.fits:
        assert codes(best.warnings) == expected.get("warnings", [])
    fitting = [short(one.candidate) for one in verdicts if one.fits]
    # of a machine without TensorRT the table lists the best only
    assert fitting[1 : 1 + len(expected.get("next", []))] == expected.get("next", [])
    if facts.tensorrt or facts.tensorrt_rtx:
        assert len(fitting) == (1 + len(expected.get("next", [])) if best.fits else 0)
    by_name = {short(one.candidate): one for one in verdicts}
    assert {name: codes(by_name[name].refusals) for name in expected.get("refused", {})} == expected.get("refused", {})


def test_every_refusal_of_the_table_has_a_text_without_blanks() -> None:
    for path in MACHINES:
        for one in rank(PUBLISHED, load_facts(path), Wish(), load_known_bad()):
            assert one.fits == (not one.refusals)
            for finding in (*one.refusals, *one.warnings):
                assert "None" not in finding.text
                assert finding.reason.value.code.startswith("EF-2")


@pytest.mark.parametrize("path", MACHINES, ids=lambda path: path.stem)
def test_the_order_of_the_index_changes_nothing(path: Path) -> None:
    facts, shuffled = load_facts(path), list(PUBLISHED)
    random.Random(7).shuffle(shuffled)  # noqa: S311 - no secret
    assert rank(PUBLISHED, facts, Wish(), ()) == rank(shuffled, facts, Wish(), ())


def test_the_exact_device() -> None:
    found = judge()
    assert found.fit is Fit.EXACT_DEVICE
    assert found.gpu == "NVIDIA A10"
    assert (found.refusals, found.warnings) == ((), ())


def test_tesla_t4_has_one_name() -> None:
    t4 = replace(MACHINE, gpus=(GpuFacts(name="NVIDIA T4", sm="7.5", memory_bytes=1),))
    assert judge(replace(ENGINE, sms=("7.5",), device="Tesla T4"), t4).fit is Fit.EXACT_DEVICE


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("8.6.1.6", "8.6.1", True),
        ("8.6.1", "8.6.1.6", True),
        ("10.14.1.48", "10.14.1.48.post1", True),
        ("10.3.0.30", "10.3.0.30-1+cuda12.5", True),
        ("8.6.1.2", "8.6.1.6", False),
        ("10.9.0.34", "10.9.0.35", False),
        ("10.9.0", "10.9.1", False),
        ("10.9.0", "10.10.0", False),
        ("1.7.1", "10.9.0", False),
    ],
)
def test_an_engine_wants_its_own_release(built: str, here: str, fits: bool) -> None:
    assert same_release(built, here) == fits
    found = judge(replace(ENGINE, tensorrt=built), replace(MACHINE, tensorrt=here))
    assert found.fits == fits
    assert fits or refused(found) == ["EF-211"]


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        ("8.6.1.6", "8.6.2.3", True),
        ("8.6.1.6", "10.9.0.34", True),
        ("10.9.0.34", "10.16.1.11", True),
        ("10.16.1.11", "11.3.0.99", True),
        ("11.0.0.114", "11.4.0.106", True),
        ("8.6.1.6", "11.3.0.99", False),
        ("8.6.1.6", "9.3.0", False),
        ("10.9.0.34", "10.8.0.43", False),
        ("11.0.0.114", "10.16.1.11", False),
        ("8.5.3.1", "8.6.1.6", False),
    ],
)
def test_how_far_a_version_compatible_engine_reaches(built: str, here: str, runs: bool) -> None:
    engine = replace(ENGINE, tensorrt=built, version_compatible=True)
    found = judge(engine, replace(MACHINE, tensorrt=here))
    if runs:
        assert found.fit is Fit.VERSION_COMPATIBLE
        assert codes(found.warnings) == ["EF-211"]
        assert "lean runtime" in found.warnings[0].text
    else:
        assert refused(found) == ["EF-211"]


def test_a_version_compatible_engine_still_wants_its_gpu() -> None:
    engine = replace(ENGINE, tensorrt="10.8.0.43", version_compatible=True, sms=("8.9",))
    assert refused(judge(engine)) == ["EF-201"]


def test_a_lean_runtime_inside_is_host_code() -> None:
    engine = replace(ENGINE, tensorrt="10.8.0.43", version_compatible=True, host_code=True)
    assert refused(judge(engine)) == ["EF-216"]
    allowed = judge(engine, allow_host_code=True)
    assert allowed.fit is Fit.VERSION_COMPATIBLE
    assert allowed.warnings == ()


def test_without_tensorrt_nothing_is_said_against_an_engine() -> None:
    found = judge(machine=replace(MACHINE, tensorrt=None))
    assert found.fit is Fit.EXACT_DEVICE
    assert codes(found.warnings) == ["EF-211"]


def test_the_other_family_of_tensorrt_does_not_load_it() -> None:
    assert refused(judge(machine=replace(MACHINE, tensorrt=None, tensorrt_rtx="1.7.1.116"))) == ["EF-211"]
    rtx = replace(ENGINE, rtx=True, tensorrt="1.7.1.116", device=None)
    assert refused(judge(rtx)) == ["EF-211"]


def test_the_tensorrt_that_is_wished_for_stands_for_the_machines() -> None:
    assert refused(judge(tensorrt="10.16.1.11")) == ["EF-211"]
    assert judge(machine=replace(MACHINE, tensorrt="8.6.1"), tensorrt="10.9").fits
    rtx = replace(ENGINE, rtx=True, tensorrt="1.7.1.116", device=None)
    assert judge(rtx, tensorrt="1.7.1").fit is Fit.SAME_SM
    assert refused(judge(ENGINE, tensorrt="1.7.1")) == ["EF-211"]


def test_ampere_plus_begins_with_sm_8_and_leaves_jetsons_out() -> None:
    engine = replace(ENGINE, sms=("8.0",), device="NVIDIA A100", hardware_compatibility="ampere_plus")
    assert judge(engine).fit is Fit.HARDWARE_COMPATIBLE
    t4 = replace(MACHINE, gpus=(GpuFacts(name="Tesla T4", sm="7.5", memory_bytes=1),))
    assert refused(judge(engine, t4)) == ["EF-201"]
    board = replace(engine, architecture="arm64", os="linux")
    thor = GpuFacts(name="NVIDIA Thor", sm="11.0", memory_bytes=1)
    jetson = replace(MACHINE, architecture="arm64", l4t="38.2.0", gpus=(thor,))
    assert refused(judge(board, jetson)) == ["EF-201"]


def test_same_compute_capability_does_not_warn_on_another_device_of_the_sm() -> None:
    engine = replace(ENGINE, device="NVIDIA GeForce RTX 3090")
    assert codes(judge(engine).warnings) == ["EF-201"]
    assert judge(replace(engine, hardware_compatibility="same_compute_capability")).warnings == ()


def test_several_gpus_and_the_best_of_them() -> None:
    l4 = GpuFacts(name="NVIDIA L4", sm="8.9", memory_bytes=1)
    found = judge(machine=replace(MACHINE, gpus=(l4, A10)))
    assert found.gpu == "GPU 1 (NVIDIA A10)"
    none = judge(machine=replace(MACHINE, gpus=(l4, replace(l4, name="NVIDIA L40S"))))
    assert refused(none) == ["EF-201"]
    assert none.refusals[0].text == "is for SM 8.6; here: NVIDIA L4 (SM 8.9), NVIDIA L40S (SM 8.9)"


def test_a_newer_minor_of_cuda_than_the_driver_knows_runs() -> None:
    found = judge(machine=replace(MACHINE, driver="550.54.15", driver_cuda="12.4"))
    assert found.fit is Fit.EXACT_DEVICE
    assert codes(found.warnings) == ["EF-213"]


def test_wishes() -> None:
    assert refused(judge(precision="bf16")) == ["EF-217"]
    assert refused(judge(stack="trt8.6-cuda12.0")) == ["EF-211"]
    unproved = replace(ENGINE, engine_verified=False)
    assert refused(judge(unproved, require_verified=True)) == ["EF-219"]
    assert codes(judge(unproved).warnings) == ["EF-219"]


def test_all_that_speaks_against_an_engine_is_said_at_once() -> None:
    engine = replace(
        ENGINE, os="windows", tensorrt="8.6.1", cuda="13.0", plugins=("Nms", "Roi"), host_code=True, sms=("9.0",)
    )
    found = judge(replace(engine, engine_verified=False), precision="int8", require_verified=True)
    expected = ["EF-214", "EF-211", "EF-212", "EF-213", "EF-215", "EF-216", "EF-217", "EF-219", "EF-201"]
    assert refused(found) == expected


def test_a_plugin_that_is_there() -> None:
    assert judge(replace(ENGINE, plugins=("Nms",)), replace(MACHINE, plugins=("Nms", "Roi"))).fits


def test_known_bad_rows_refuse_or_warn() -> None:
    row = {
        "id": "x",
        "verdict": "refuse",
        "tensorrt": ">=10.9,<10.10",
        "sm": "8.6",
        "gpu": "*a10*",
        "text": "t",
        "source": "s",
    }
    bad = read_known_bad(row)
    assert refused(judge(known_bad=(bad,))) == ["EF-220"]
    assert codes(judge(known_bad=(read_known_bad({**row, "verdict": "warn"}),)).warnings) == ["EF-220"]
    others = ({"sm": "8.9"}, {"gpu": "*l4*"}, {"tensorrt": "<10.9"}, {"jetson": True}, {"precision": ["int8"]})
    for other in (
        *others,
        {"verified": False},
        {"driver": "<570"},
        {"cuda": "!=12.8"},
        {"compatibility": ["ampere_plus"]},
    ):
        assert judge(known_bad=(read_known_bad({**row, **other}),)).fits


def test_a_fact_that_is_not_known_matches_no_bound() -> None:
    row = {"id": "x", "verdict": "refuse", "driver": "<1000", "text": "t", "source": "s"}
    assert judge(machine=replace(MACHINE, driver=None), known_bad=(read_known_bad(row),)).fits


@pytest.mark.parametrize(
    ("bounds", "inside", "outside"),
    [
        (">=10.8,<10.10", ["10.8", "10.9.0.34", "10.8.0.43"], ["10.10.0.31", "10.7", "11.0"]),
        ("10.13.3.9", ["10.13.3.9"], ["10.13.3.10", "10.13.0.35"]),
        ("!=10.13.3.9", ["10.13.3.10"], ["10.13.3.9"]),
        ("<=8.6", ["8.6.1.6", "8.5"], ["8.7", "10.0"]),
        (">8.6", ["10.0", "8.7"], ["8.6.1", "8.6"]),
    ],
)
def test_bounds(bounds: str, inside: list[str], outside: list[str]) -> None:
    read = read_bounds(bounds)
    assert [version for version in inside if not read.hold(version)] == []
    assert [version for version in outside if read.hold(version)] == []


def test_malformed_rows_are_noticed() -> None:
    row = {"id": "x", "verdict": "refuse", "text": "t", "source": "s"}
    for wrong in ({"tensorrt": "ten"}, {"verdict": "perhaps"}):
        with pytest.raises(ValueError):
            read_known_bad({**row, **wrong})
    with pytest.raises(TypeError):
        read_known_bad({**row, "gpus": "*"})


def test_every_known_bad_row_has_an_id_and_a_source() -> None:
    rows = load_known_bad()
    assert len({row.id for row in rows}) == len(rows) > 0
    assert all(row.source and row.text for row in rows)


def test_drivers_and_rules_are_data() -> None:
    assert load_rules().lowest_drivers[13] == "580.65.06"
    assert (8, 11) not in load_rules().version_compatible_across


def test_the_header_speaks_for_the_file() -> None:
    assert header_findings(ENGINE, Header("tensorrt", "10.9.0.34")) == ()
    for header in (Header("tensorrt", "10.9.0.35"), Header("tensorrt-rtx", "10.9.0.34"), Header(None, None)):
        assert codes(header_findings(ENGINE, header)) == ["EF-716"]


@pytest.mark.parametrize(
    ("targets", "sms", "agrees"),
    [
        (0b00110, ("8.0", "8.6"), True),
        (0b00110, ("8.6", "8.0"), True),
        (0b00001, ("7.5",), True),
        (0b10000, ("12.0",), True),
        (0b01000, ("8.9",), True),
        (0b01000, ("8.6",), False),
        (0b00111, ("8.0", "8.6"), False),
        # bits that are not understood prove nothing
        (0b100110, ("8.0", "8.6"), True),
        (0, ("8.6",), True),
        (None, ("8.6",), True),
    ],
)
def test_the_header_of_tensorrt_rtx_names_sms(targets: int | None, sms: tuple[str, ...], agrees: bool) -> None:
    engine = replace(ENGINE, rtx=True, tensorrt="1.7.1.116", sms=sms)
    assert (header_findings(engine, Header("tensorrt-rtx", "1.7.1.116", targets)) == ()) == agrees
    other = replace(engine, tensorrt="1.8.0.1")
    assert header_findings(other, Header("tensorrt-rtx", "1.8.0.1", targets)) == ()


def test_no_engine_fits_lists_the_reasons() -> None:
    error = no_fit(rank(PUBLISHED[:2], MACHINE, Wish(), ()), "engine of detector")
    assert error.reason is Reason.NO_ENGINE_FITS
    assert error.exit_code is ExitCode.REFUSED
    assert error.why is not None
    assert "EF-211 was built by TensorRT 8.6.1.6" in error.why
    assert "EF-201 is for SM 7.5; here: NVIDIA A10 (SM 8.6)" in error.why


def test_annotations_and_manifest_say_the_same() -> None:
    document = json.loads(manifest().to_json())
    found = candidate_of_manifest(document, plugins=("Nms",))
    assert found.job == document["job"]
    assert found.rtx
    assert found.device is None
    assert found.sms == tuple(document["target"]["sms"])
    assert found.plugins == ("Nms",)
    assert found.engine_sha256 == document["engine"]["sha256"]


def test_a_tuned_engine_names_its_device_and_a_jetson_stack_its_l4t() -> None:
    document = json.loads(manifest().to_json())
    document["build"]["tuned_on"] = {"name": "Orin", "sm": "8.7", "driver": "540.4.0"}
    document["stack"] |= {"name": "l4t36.4-trt10.3", "tensorrt": "10.3.0", "platform": "linux/arm64"}
    found = candidate_of_manifest(document)
    assert (found.device, found.driver, found.l4t, found.rtx) == ("Orin", "540.4.0", "36.4", False)
    assert (found.os, found.architecture) == ("linux", "arm64")


@pytest.mark.parametrize(
    ("part", "value"),
    [("stack", {}), ("stack", None), ("target", {"sms": ["86"]}), ("target", {"sms": []}), ("key", 5), ("build", [])],
)
def test_a_manifest_that_does_not_say(part: str, value: object) -> None:
    document = {**json.loads(manifest().to_json()), part: value}
    with pytest.raises(EnginefarmError) as caught:
        candidate_of_manifest(document)
    assert caught.value.reason is Reason.MANIFEST_INVALID


def test_a_manifest_of_a_newer_schema() -> None:
    with pytest.raises(EnginefarmError) as caught:
        candidate_of_manifest({"schema_version": 2})
    assert caught.value.reason is Reason.ARTIFACT_TOO_NEW


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sms", "8.6,../x"),
        ("sms", ""),
        ("tensorrt", "newest"),
        ("cuda", "12.8\n"),
        ("engine", "b" * 63),
        ("engine-size", "many"),
        ("engine-size", "-1"),
        ("host-code", "perhaps"),
        ("hardware-compatibility", "all"),
        ("key", None),
    ],
)
def test_annotations_that_cannot_be_read(name: str, value: str | None) -> None:
    descriptor = json.loads(json.dumps(INDEX["manifests"][0]))
    descriptor["annotations"][f"org.enginefarm.{name}"] = value
    with pytest.raises(EnginefarmError) as caught:
        candidate_of_annotations(descriptor)
    assert caught.value.reason is Reason.ARTIFACT_INVALID


@pytest.mark.parametrize("missing", ["annotations", "platform", "digest"])
def test_a_descriptor_without_what_it_needs(missing: str) -> None:
    descriptor = {name: value for name, value in INDEX["manifests"][0].items() if name != missing}
    with pytest.raises(EnginefarmError) as caught:
        candidate_of_annotations(descriptor)
    assert caught.value.reason is Reason.ARTIFACT_INVALID
