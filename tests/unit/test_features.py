"""The table of features against what was recorded of TensorRT, and what build options need of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest

from builder.features import (
    COMPATIBILITY_FLOORS,
    Feature,
    features_of,
    load_features,
    option_features,
    precision_features,
)
from builder.recipe import BuildOptions, Precision
from builder.stacks import build_stacks, load_stacks
from tests.surfaces import has_symbol, recorded_versions

STACKS = build_stacks(load_stacks(Path(__file__).parents[2] / "images"))
TABLE = load_features()


def family_of(version: str) -> str:
    """Name the family of a recorded version."""
    return {"1": "rtx", "8": "trt8", "10": "trt10", "11": "trt11"}[version.split(".", maxsplit=1)[0]]


@pytest.mark.parametrize("version", recorded_versions())
def test_each_row_agrees_with_each_record(version: str) -> None:
    said = features_of(family_of(version), version)
    wrong = {
        f"{name}: {symbol}": has_symbol(version, symbol)
        for name, feature in TABLE.items()
        for symbol in feature.symbols
        if has_symbol(version, symbol) is not (name in said)
    }
    assert wrong == {}


@pytest.mark.parametrize("feature", TABLE.values(), ids=list(TABLE))
def test_rows_are_well_formed(feature: Feature) -> None:
    assert re.fullmatch(r"[a-z0-9_]+", feature.name)
    assert feature.symbols
    for release in (feature.since, feature.until):
        assert release is None or re.fullmatch(r"\d+(\.\d+)+", release)
    assert feature.classic or feature.rtx


@pytest.mark.parametrize(
    ("name", "family", "version", "absence"),
    [
        ("fp16_flag", "trt8", "8.6.0", None),
        ("fp16_flag", "trt11", "11.0.0.114", "it is gone since TensorRT 11.0, this is 11.0.0.114"),
        ("same_compute_capability", "trt10", "10.8.0.43", "it came with TensorRT 10.9, this is 10.8.0.43"),
        # as numbers, not as text
        ("same_compute_capability", "trt10", "10.16.1.11", None),
        ("same_compute_capability", "trt8", "8.6.1", "it came with TensorRT 10.9, this is 8.6.1"),
        ("native_instancenorm", "trt8", "8.6.0", "it came with TensorRT 8.6.1, this is 8.6.0"),
        ("strip_plan", "rtx", "1.7.1.116", None),
        ("fp16_flag", "rtx", "1.7.1.116", "TensorRT-RTX has none"),
        ("engine_validity", "trt11", "11.3.0.99", "only TensorRT-RTX has it"),
        ("include_refit", "trt10", "10.14.1.48.post1", None),
    ],
)
def test_absence_is_explained(name: str, family: str, version: str, absence: str | None) -> None:
    assert TABLE[name].absence(family, version) == absence
    assert (name in features_of(family, version)) is (absence is None)


@pytest.mark.parametrize(
    ("build", "needs"),
    [
        ({}, []),
        ({"workspace_mib": 100, "optimization_level": 5}, []),
        ({"hardware_compatibility": "ampere_plus"}, [("hardware_compatibility: ampere_plus", "ampere_plus")]),
        (
            {"hardware_compatibility": "same_compute_capability"},
            [("hardware_compatibility: same_compute_capability", "same_compute_capability")],
        ),
        (
            {"version_compatible": True, "strip_weights": True},
            [("version_compatible", "version_compatible"), ("strip_weights", "strip_plan")],
        ),
        ({"refit": True, "weight_streaming": True}, [("refit", "refit"), ("weight_streaming", "weight_streaming")]),
        ({"tactic_sources": []}, [("tactic_sources", "tactic_sources")]),
        (
            {"tactic_sources": ["cudnn"]},
            [("tactic_sources", "tactic_sources"), ("tactic_sources: cudnn", "tactic_source_cudnn")],
        ),
    ],
)
def test_options_need_features(build: dict[str, Any], needs: list[tuple[str, str]]) -> None:
    found = option_features(BuildOptions.model_validate(build))
    assert [(need.option, need.feature) for need in found] == needs


def test_every_option_that_a_recipe_may_name_is_in_the_table() -> None:
    sources = get_args(get_args(get_args(BuildOptions.model_fields["tactic_sources"].annotation)[0])[0])
    levels = [
        level for level in get_args(BuildOptions.model_fields["hardware_compatibility"].annotation) if level != "none"
    ]
    assert len(sources) == 5
    assert set(levels) == set(COMPATIBILITY_FLOORS)
    everything = {"version_compatible": True, "strip_weights": True, "refit": True, "weight_streaming": True}
    for level in levels:
        build = {**everything, "hardware_compatibility": level, "tactic_sources": list(sources)}
        assert {need.feature for need in option_features(BuildOptions.model_validate(build))} <= TABLE.keys()


def test_no_build_option_is_forgotten() -> None:
    # what every stack has
    common = {"workspace_mib", "optimization_level"}
    needed = {"hardware_compatibility", "version_compatible", "strip_weights", "refit", "weight_streaming"}
    assert BuildOptions.model_fields.keys() == common | needed | {"tactic_sources"}
    for version in recorded_versions():
        assert {"optimization_level", "timing_cache"} <= features_of(family_of(version), version)


@pytest.mark.parametrize("stack", STACKS.values(), ids=list(STACKS))
def test_the_precisions_of_a_stack_are_those_of_its_tensorrt(stack: Any) -> None:
    for precision in Precision:
        wanted = precision_features(precision.value)
        has = not wanted or any(name in stack.build.features for name in wanted)
        assert (precision.value in stack.build.precisions) is has
