"""A plan as people see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from builder.errors import Reason
from builder.plan import Job, Plan, Refusal
from builder.report.planned import counted, plan_lines, refusal_lines
from tests.engines import STACK


def plain(text: str, style: str) -> str:
    return text


def refusal(recipe: str, what: str = f"stack {STACK} cannot build for SM 9.0 (hopper)") -> Refusal:
    return Refusal(
        recipe=recipe,
        precision="fp16",
        stack=STACK,
        target="hopper",
        reason=Reason.SM_MISMATCH,
        what=what,
        fix=f"stacks for SM 9.0: none yet; {STACK} has 7.5, 8.0, 8.6, 8.9, 12.0",
    )


def job(recipe: str, target: str = "ampere", sms: tuple[str, ...] = ("8.0", "8.6")) -> Job:
    return Job(recipe=recipe, precision="fp16", stack=STACK, target=target, sms=sms)


PLAN = Plan(
    jobs=(job("ppocrv4-det"), job("vocos-decoder"), job("vocos-decoder", "turing", ("7.5",))),
    refusals=(refusal("ppocrv4-det"), refusal("vocos-decoder")),
)


@pytest.mark.parametrize("width", [80, 140])
def test_plan(width: int, snapshot: Callable[[str, str], None]) -> None:
    lines = plan_lines(PLAN, width, plain)
    assert max(map(len, lines[:4])) <= width
    snapshot(f"plan-{width}", "\n".join(lines))


def test_plan_without_jobs_still_says_why() -> None:
    lines = plan_lines(Plan(jobs=(), refusals=PLAN.refusals), 80, plain)
    assert lines[0].startswith("refused[EF-201 sm-mismatch]")
    assert lines[-1] == "0 jobs, 2 refused"


def test_what_was_left_out_is_one_dim_line() -> None:
    left_out = (replace(refusal("a"), precision="tf32"), replace(refusal("b"), precision="tf32"), refusal("b"))
    lines = plan_lines(Plan(jobs=PLAN.jobs, refusals=(), left_out=left_out), 80, lambda text, style: f"{style}:{text}")
    assert lines[-3:] == [
        "dim:left out: tf32 (2), fp16 (1), which recipes have for other targets only",
        "",
        "3 jobs, 0 refused",
    ]
    assert not [line for line in lines if "refused[" in line]


def test_like_refusals_are_told_once() -> None:
    lines = refusal_lines([refusal("a"), refusal("b"), refusal("c", "another thing")], 200, plain)
    assert [line for line in lines if line.startswith("refused")] == [
        f"refused[EF-201 sm-mismatch]: stack {STACK} cannot build for SM 9.0 (hopper) (2 combinations)",
        "refused[EF-201 sm-mismatch]: another thing",
    ]


def test_counted() -> None:
    assert [counted(number, "job") for number in (0, 1, 2)] == ["0 jobs", "1 job", "2 jobs"]
