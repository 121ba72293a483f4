"""Which engine fits which machine: each rule on its own. The table of machines is in test_compat_table.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from builder.compat import (
    PRECISIONS,
    Candidate,
    Finding,
    Fit,
    Verdict,
    Wish,
    header_findings,
    no_fit,
    rank,
    verdict,
)
from builder.compat_rules import KnownBad, load_rules, read_known_bad, same_release
from builder.engine_header import Header
from builder.errors import ExitCode, Reason
from builder.machine import Facts, GpuFacts
from builder.recipe import Precision

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


def test_published_weights_come_before_random_ones() -> None:
    seeded = replace(ENGINE, weights="seeded", key="0" * 64)
    assert [one.candidate for one in rank([seeded, ENGINE], MACHINE, Wish(), ())] == [ENGINE, seeded]


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
    error = no_fit(
        rank([replace(ENGINE, tensorrt="8.6.1.6"), replace(ENGINE, sms=("7.5",))], MACHINE, Wish(), ()),
        "engine of detector",
    )
    assert error.reason is Reason.NO_ENGINE_FITS
    assert error.exit_code is ExitCode.REFUSED
    assert error.why is not None
    assert "EF-211 was built by TensorRT 8.6.1.6" in error.why
    assert "EF-201 is for SM 7.5; here: NVIDIA A10 (SM 8.6)" in error.why


def test_every_precision_has_its_place() -> None:
    assert set(PRECISIONS) == {one.value for one in Precision}


@pytest.mark.parametrize(
    ("machine", "wish", "refused"),
    [
        ({}, {}, True),
        ({"tensorrt": None}, {}, False),
        ({"tensorrt": None, "tensorrt_rtx": "1.7.1.116"}, {}, True),
        # what loads it is elsewhere, as in a container
        ({"tensorrt": "8.6.1.6"}, {"tensorrt": "10.9"}, False),
        ({}, {"tensorrt": "10.9"}, True),
    ],
)
def test_the_cuda_of_a_toolkit_says_nothing_of_a_tensorrt_that_is_elsewhere(
    machine: dict[str, Any], wish: dict[str, Any], refused: bool
) -> None:
    found = judge(machine=replace(MACHINE, cuda="11.8", **machine), **wish)
    assert (Reason.CUDA_MAJOR in {one.reason for one in found.refusals}) == refused
    assert (Reason.CUDA_MAJOR in {one.reason for one in found.warnings}) != refused


def test_a_jetson_is_itself_whoever_names_it() -> None:
    orin = replace(
        ENGINE, sms=("8.7",), device="Orin", architecture="arm64", l4t="36.4", tensorrt="10.3.0.30", cuda="12.6"
    )
    here = Facts(
        os="linux",
        architecture="arm64",
        l4t="36.4.4",
        driver="540.4.0",
        driver_cuda="12.6",
        gpus=(GpuFacts(name="Orin (nvgpu)", sm="8.7", memory_bytes=0),),
        tensorrt="10.3.0.30",
        cuda="12.6",
    )
    assert judge(orin, here).fit is Fit.EXACT_DEVICE


@pytest.mark.parametrize(
    ("gpu", "works"),
    [
        ("Tesla T4", True),
        ("NVIDIA A100-SXM4-40GB", True),
        ("NVIDIA RTX 6000 Ada Generation", True),
        ("Quadro RTX 5000", True),
        ("NVIDIA RTX 5000 Ada Generation", True),
        ("NVIDIA GeForce RTX 4090", False),
        ("RTX 3090", False),
        ("RTX 2080 Ti", False),
        ("NVIDIA TITAN RTX", False),
        ("GTX 1650", False),
    ],
)
def test_forward_compatibility_is_not_for_cards_of_players(gpu: str, works: bool) -> None:
    assert load_rules().takes_forward_compatibility(gpu) == works


def test_a_list_of_any_length_is_told_shortly() -> None:
    engines = [replace(ENGINE, job=f"job{number}", sms=("7.5",)) for number in range(200)]
    error = no_fit(rank(engines, MACHINE, Wish(), ()), "engine of detector")
    lines = (error.why or "").splitlines()
    assert len(lines) == 51
    assert lines[-1] == "and 150 more"
