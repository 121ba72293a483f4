"""A table of machines and a published index: which engine is taken on which machine, and why the others are not."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from builder.compat import Candidate, Finding, Wish, candidate_of_annotations, rank
from builder.compat_rules import load_known_bad
from builder.facts_file import load_facts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DATA = Path(__file__).parents[1] / "data"
MACHINES = sorted((DATA / "machines").glob("*.json"))
EXPECTED: dict[str, dict[str, Any]] = tomllib.loads((DATA / "verdicts.toml").read_text(encoding="utf-8"))
INDEX: dict[str, Any] = json.loads((DATA / "published-index.json").read_text(encoding="utf-8"))
PUBLISHED = [candidate_of_annotations(descriptor) for descriptor in INDEX["manifests"]]


def codes(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.reason.value.code for finding in findings]


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
