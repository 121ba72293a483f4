from __future__ import annotations

import pytest

from builder.worker.profiles import GraphInput, check_profiles
from builder.worker.protocol import Profile, ShapeRange, StageFailure

IMAGE = GraphInput("image", "float32", ("n", 3, None, None))


def _profile(**shapes: ShapeRange) -> list[Profile]:
    return [Profile("default", shapes)]


def _check(inputs: list[GraphInput], profiles: list[Profile]) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        check_profiles(inputs, profiles)
    return caught.value


def test_a_fitting_profile_passes() -> None:
    check_profiles([IMAGE], _profile(image=ShapeRange((1, 3, 32, 48), (1, 3, 64, 64), (8, 3, 96, 96))))


def test_a_fixed_axis_is_named_with_its_values() -> None:
    failure = _check([IMAGE], _profile(image=ShapeRange((1, 4, 32, 32), (1, 4, 32, 32), (1, 4, 32, 32))))
    assert failure.reason == "profile-invalid"
    assert (
        failure.message
        == "shape profile default: input image, axis 1: the graph fixes it at 3, the profile gives min 4, opt 4, max 4"
    )
    assert "image [n, 3, ?, ?]" in failure.fix


def test_opt_above_max_is_named() -> None:
    failure = _check([IMAGE], _profile(image=ShapeRange((1, 3, 32, 32), (1, 3, 99, 32), (1, 3, 64, 64))))
    assert (failure.reason, failure.details["problems"][0]["axis"]) == ("profile-invalid", 2)
    assert "min 32, opt 99, max 64" in failure.message


def test_rank() -> None:
    failure = _check([IMAGE], _profile(image=ShapeRange((3, 32, 32), (3, 32, 32), (3, 32, 32))))
    assert "has rank 4, the profile gives 3" in failure.message


def test_unknown_and_missing_inputs_are_both_listed() -> None:
    failure = _check([IMAGE], _profile(imgae=ShapeRange((1,), (1,), (1,))))
    assert failure.reason == "input-invalid"
    assert "did you mean image?" in failure.message
    assert "input image has no shapes" in failure.why


def test_axes_of_one_name_must_be_equal() -> None:
    square = GraphInput("x", "float32", ("side", "side"))
    check_profiles([square], _profile(x=ShapeRange((4, 4), (8, 8), (8, 8))))
    failure = _check([square], _profile(x=ShapeRange((4, 4), (8, 6), (8, 8))))
    assert "axis 1 is side like input x, axis 0" in failure.message
    assert failure.reason == "profile-invalid"
