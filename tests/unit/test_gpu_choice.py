"""Which GPU will do for a job, and what is said where none does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from builder.errors import Reason
from builder.gpu import Gpu
from builder.gpu_choice import alike, choose_gpus, fits, hidden, tunable, wrong_gpu
from builder.plan import Job
from tests.artifacts import refusal

H200 = Gpu(uuid="GPU-1", index=0, name="NVIDIA H200", sm="9.0", driver="580.1", memory_bytes=1 << 37, mig=False)
L4 = replace(H200, uuid="GPU-2", index=1, name="NVIDIA L4", sm="8.9")
T4 = replace(H200, uuid="GPU-3", index=2, name="Tesla T4", sm="7.5")
B200 = replace(H200, uuid="GPU-4", index=3, name="NVIDIA B200", sm="10.0")
SMS = ("7.5", "8.6", "8.9", "9.0", "10.0")
SLICE = replace(H200, uuid="MIG-1", mig=True, memory_bytes=1 << 34)


def job(*sms: str, compatibility: str = "none") -> Job:
    return Job(recipe="a", precision="fp16", stack="s", target="t", sms=sms, compatibility=compatibility)


@pytest.mark.parametrize(
    ("asked", "fitting"),
    [
        (job("9.0"), [H200]),
        (job("8.6", "8.9"), [L4]),
        # from Ampere on, newer ones included
        (job("8.0", compatibility="ampere_plus"), [H200, L4, B200]),
        (job("9.0", compatibility="same_compute_capability"), [H200]),
    ],
)
def test_gpus_that_fit(asked: Job, fitting: list[Gpu]) -> None:
    every = (T4, H200, L4, B200)
    assert choose_gpus(asked, every, "timed") == tuple(fitting)
    assert [gpu for gpu in every if fits(asked, gpu)] == fitting


def test_an_engine_for_all_from_ampere_on_is_tuned_on_the_sm_that_it_is_named_after() -> None:
    asked, twin = job("8.9", compatibility="ampere_plus"), replace(L4, uuid="GPU-9")
    assert tunable(asked, (H200, L4, B200, twin), SMS) == (L4, twin)
    # where there is none, on the first that will do
    assert tunable(asked, (T4, H200, B200), SMS) == (H200,)
    assert tunable(job("8.9"), (T4, H200), SMS) == ()


def test_a_gpu_that_the_stack_has_no_kernels_for_tunes_nothing() -> None:
    asked, old = job("8.9", compatibility="ampere_plus"), ("8.9", "7.5", "8.0")
    assert tunable(asked, (B200,), old) == ()
    assert tunable(asked, (B200, L4), old) == (L4,)
    error = wrong_gpu(asked, (B200,), old)
    what = "a-fp16-s-sm89-ampere-plus can be built only on a GPU of SM 8.0, 8.9; here: NVIDIA B200 (SM 10.0)"
    assert error.what == what
    assert (error.fix or "").startswith("take a stack that has SM 10.0")
    # nor does an engine for others help there
    assert "--compat" not in (wrong_gpu(job("8.9"), (B200,), old).fix or "")


def test_no_gpu_at_all() -> None:
    error = refusal(lambda: choose_gpus(job("9.0"), (), "verified"))
    assert error.reason is Reason.GPU_NEEDED
    assert error.what == "a-fp16-s-sm90 can be verified only on a machine with an NVIDIA GPU, and this one has none"
    assert error.fix == "run this where the engine shall be used"
    assert error.why is None


def test_what_hides_gpus_is_said() -> None:
    assert hidden({}) is None
    said = hidden({"CUDA_VISIBLE_DEVICES": "7"})
    assert refusal(lambda: choose_gpus(job("9.0"), (), "verified", said)).why == "CUDA_VISIBLE_DEVICES is '7'"


def test_no_gpu_that_fits_is_said_with_the_same_words_whatever_for() -> None:
    other = (L4, T4, replace(L4, uuid="GPU-9"))
    chosen = refusal(lambda: choose_gpus(job("9.0"), other, "built"))
    told = wrong_gpu(job("9.0"), other, SMS)
    assert chosen.reason is told.reason is Reason.SM_MISMATCH
    # a model that is here twice is named once
    here = "here: NVIDIA L4 (SM 8.9), Tesla T4 (SM 7.5)"
    assert chosen.what == told.what == f"a-fp16-s-sm90 can be built only on a GPU of SM 9.0; {here}"
    assert chosen.fix == "run this where the engine shall be used"


def test_an_engine_for_all_from_ampere_on_names_no_sm_of_its_own() -> None:
    asked = job("9.0", compatibility="ampere_plus")
    what = "a-fp16-s-sm90-ampere-plus can be timed only on a GPU of SM 8.0 or later; here: Tesla T4 (SM 7.5)"
    assert refusal(lambda: choose_gpus(asked, (T4,), "timed")).what == what


@pytest.mark.parametrize(
    ("asked", "here", "compat"),
    [
        (job("9.0"), (B200, L4), True),
        # Turing can neither build such engines nor run them
        (job("9.0"), (T4,), False),
        (job("7.5"), (L4,), False),
    ],
)
def test_what_could_be_built_instead(asked: Job, here: tuple[Gpu, ...], *, compat: bool) -> None:
    fix = str(wrong_gpu(asked, here, SMS).fix)
    able = ", ".join(sorted((gpu.sm for gpu in here), key=float))
    assert fix.startswith(f"ask for a target of SM {able}, or build on another machine")
    assert ("--compat ampere_plus" in fix) is compat


@pytest.mark.parametrize(
    "change",
    [{"name": "NVIDIA H100"}, {"driver": "570.1"}, {"mig": True}, {"sm": "10.0"}],
    ids=lambda one: next(iter(one)),
)
def test_gpus_of_another_kind_are_not_alike(change: dict[str, Any]) -> None:
    twin = replace(H200, uuid="GPU-8", index=7)
    assert alike([H200, replace(H200, uuid="GPU-9", **change), twin]) == (H200, twin)


def test_slices_are_alike_where_they_are_equally_large() -> None:
    small, twin = replace(SLICE, uuid="MIG-2", memory_bytes=1 << 33), replace(SLICE, uuid="MIG-3")
    assert alike([SLICE, small, twin]) == (SLICE, twin)
    # what a whole GPU reports may differ by a little
    assert len(alike([H200, replace(H200, uuid="GPU-9", memory_bytes=(1 << 37) - 1)])) == 2


def test_nothing_is_like_nothing() -> None:
    assert alike([]) == ()
