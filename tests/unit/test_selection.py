"""What the command line asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import EnginefarmError, Reason
from builder.project import Project
from builder.selection import Selection, load_catalogue

PROJECT = Project(root=Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins are enough: only their names matter here."""
    monkeypatch.setattr("builder.selection.load_recipes", lambda *_: {"tiny": "a", "vocos": "b"})


def test_nothing_asked_means_all_targets_and_default_stacks() -> None:
    catalogue = load_catalogue(PROJECT, Selection())
    assert set(catalogue.recipes) == {"tiny", "vocos"}
    assert {"turing", "ampere", "hopper"} <= {target.name for target in catalogue.targets}
    assert catalogue.stacks
    assert all(stack.spec.default for stack in catalogue.stacks)
    assert {stack.name for stack in catalogue.stacks} <= {stack.name for stack in catalogue.all_stacks}


def test_names_narrow() -> None:
    catalogue = load_catalogue(PROJECT, Selection(targets=("ada",), recipes=("v*",)))
    assert list(catalogue.recipes) == ["vocos"]
    assert [target.name for target in catalogue.targets] == ["ada"]


@pytest.mark.parametrize(
    ("selection", "reason"),
    [
        (Selection(targets=("amper",)), Reason.TARGET_UNKNOWN),
        (Selection(stacks=("trt",)), Reason.STACK_UNKNOWN),
        (Selection(recipes=("x*",)), Reason.RECIPE_UNKNOWN),
        (Selection(lock="1.2.3"), Reason.STACK_UNKNOWN),
    ],
)
def test_unknown_names(selection: Selection, reason: Reason) -> None:
    with pytest.raises(EnginefarmError) as caught:
        load_catalogue(PROJECT, selection)
    assert caught.value.reason is reason


def test_lock_that_no_stack_chosen_has_is_not_ignored() -> None:
    with pytest.raises(EnginefarmError) as caught:
        load_catalogue(PROJECT, Selection(lock="8.6.0"))
    assert caught.value.reason is Reason.STACK_UNKNOWN
    assert caught.value.fix == "add --stack trt8.6-cuda12.0"
    catalogue = load_catalogue(PROJECT, Selection(stacks=("trt8.6-cuda12.0", "trtrtx1.7-cuda13"), lock="8.6.0"))
    assert [stack.build.tensorrt for stack in catalogue.stacks] == ["8.6.0", "1.7.1.116"]
