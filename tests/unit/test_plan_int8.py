"""INT8: planned where there are calibrators, and refused with what it cannot be together with."""

from __future__ import annotations

from builder.errors import Reason
from builder.stacks import build_stacks, load_stacks
from builder.targets import load_precision_floors
from tests.unit.test_key import stack
from tests.unit.test_plan import IMAGES, RTX, plan, precisions, recipe


def test_int8_is_planned_where_there_are_calibrators() -> None:
    stacks = build_stacks(load_stacks(IMAGES))
    made = plan("hopper", recipes={"model": recipe(precisions=precisions("int8"))}, stacks=tuple(stacks.values()))
    # those of TensorRT 8 and 10, but for the board, which is no Hopper
    having = {name for name, one in stacks.items() if one.build.family in {"trt8", "trt10"} and "9.0" in one.build.sms}
    assert {job.stack for job in made.jobs} == having
    assert {"trt8.6-cuda12.0", "trt10.9-cuda12.8"} <= having
    refused = {refusal.stack: refusal for refusal in made.refusals}
    assert set(refused) == stacks.keys() - having
    gone = "it is gone since TensorRT 11.0, this is 11.3.0.99"
    assert refused["trt11.3-cuda13.4"].what == f"stack trt11.3-cuda13.4 has no int8 (int8_calibrators: {gone})"
    assert "(int8_calibrators: TensorRT-RTX has none)" in refused["trtrtx1.7-cuda13"].what
    for name in ("trt11.3-cuda13.4", "trtrtx1.7-cuda13"):
        assert refused[name].reason is Reason.PRECISION_UNSUPPORTED
        assert all(other in refused[name].fix for other in having)


def test_int8_is_not_planned_with_what_wants_a_strongly_typed_network() -> None:
    ten = load_stacks(IMAGES)["trt10.9-cuda12.8"]
    both = {"model": recipe(precisions=precisions("int8", "fp16"), build={"weight_streaming": True})}
    made = plan("hopper", recipes=both, stacks=(ten,))
    assert [job.precision for job in made.jobs] == ["fp16"]
    (refusal,) = made.refusals
    assert (refusal.precision, refusal.reason) == ("int8", Reason.OPTION_UNSUPPORTED)
    assert refusal.what.startswith("weight_streaming wants a strongly typed network")


def test_int8_begins_with_turing() -> None:
    floors = load_precision_floors()
    assert floors["int8"] == (7, 5)
    on = stack(**RTX | {"precisions": ["int8"]})
    made = plan("turing", recipes={"model": recipe(precisions=precisions("int8"))}, stacks=(on,))
    assert [job.id for job in made.jobs] == ["model-int8-rtx-sm75"]
