"""Emulated low precision gives, value for value, what low-precision arithmetic gives."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from builder.worker import graph as graphs
from builder.worker import low_precision
from builder.worker.emulate import emulated, tf32
from builder.worker.verify import run_session, session
from tests.unit.worker.graphs import branching

FLOAT, HALF, BF16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
NUMPY = {HALF: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16)}


def low_graph(operations: list[str], constants: list[float], low: int) -> onnx.ModelProto:
    """Chain binary operations with constants in low precision, FP32 in and out."""
    nodes = [helper.make_node("Cast", ["x"], ["v0"], to=low, name="down")]
    weights = []
    for index, (operation, constant) in enumerate(zip(operations, constants, strict=True)):
        value = np.asarray(constant, NUMPY[low])
        weights.append(helper.make_tensor(f"c{index}", low, [], value.tobytes(), raw=True))
        nodes.append(helper.make_node(operation, [f"v{index}", f"c{index}"], [f"v{index + 1}"], name=f"op{index}"))
    nodes.append(helper.make_node("Cast", [f"v{len(operations)}"], ["y"], to=FLOAT, name="up"))
    shape = [None]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("y", FLOAT, shape)],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def emulate(model: onnx.ModelProto, precision: str, x: np.ndarray) -> np.ndarray:
    return run_session(session(emulated(model, precision)), {"x": x})["y"]


@pytest.mark.parametrize(("low", "precision"), [(HALF, "fp16"), (BF16, "bf16")])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["Add", "Mul", "Sub"]), st.floats(-300, 300, width=16)), min_size=1, max_size=6
    ),
    x=st.lists(st.floats(-1000, 1000, width=32), min_size=1, max_size=8),
)
@settings(max_examples=30, deadline=None)
def test_chains_of_arithmetic_are_equal_bit_for_bit(
    low: int, precision: str, steps: list[tuple[str, float]], x: list[float]
) -> None:
    values = np.asarray(x, np.float32)
    kind = NUMPY[low]
    wanted: Any = values.astype(kind)
    with np.errstate(over="ignore", invalid="ignore"):
        for operation, constant in steps:
            # one operation in FP32, rounded once: what hardware does
            exact = {"Add": np.add, "Mul": np.multiply, "Sub": np.subtract}[operation](
                wanted.astype(np.float32), np.asarray(constant, kind).astype(np.float32), dtype=np.float32
            )
            wanted = exact.astype(kind)
    got = emulate(low_graph([s[0] for s in steps], [s[1] for s in steps], low), precision, values)
    np.testing.assert_array_equal(got, wanted.astype(np.float32))


def test_an_overflow_in_the_middle_shows_although_onnxruntime_hides_it() -> None:
    model = low_graph(["Mul", "Mul"], [1e4, 1e-4], HALF)
    x = np.array([3.0, 10.0], np.float32)
    options = ort.SessionOptions()
    native = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert np.isfinite(native.run(None, {"x": x})[0]).all(), "if this fails, emulation may have become needless"
    got = emulate(model, "fp16", x)
    assert np.isfinite(got[0])
    assert np.isinf(got[1])


def test_without_rounding_the_graph_is_plain_fp32() -> None:
    model = low_graph(["Mul", "Mul"], [1e4, 1e-4], HALF)
    plain = emulated(model, "fp16", rounding=False)
    got = run_session(session(plain), {"x": np.array([10.0], np.float32)})["y"]
    assert got[0] == pytest.approx(10.0, rel=1e-2)
    assert [node.name for node in plain.graph.node] == [node.name for node in model.graph.node]


def test_the_given_model_is_left_as_it_is() -> None:
    model = low_graph(["Add"], [1.0], HALF)
    before = model.SerializeToString()
    emulated(model, "fp16")
    assert model.SerializeToString() == before


def product(weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, [None, weight.shape[0]])],
        [helper.make_tensor_value_info("y", FLOAT, [None, weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_tf32_rounds_the_operands_of_products() -> None:
    stream = np.random.RandomState(0)
    weight, x = stream.randn(8, 4).astype(np.float32), stream.randn(5, 8).astype(np.float32)
    wanted = tf32(x) @ tf32(weight)
    np.testing.assert_allclose(emulate(product(weight), "tf32", x), wanted, rtol=1e-6, atol=1e-6)
    assert np.abs(wanted - x @ weight).max() > 1e-5


@given(
    st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False).filter(
        lambda value: value == 0 or abs(value) > 2.0**-100
    )
)
def test_tf32_keeps_ten_bits_of_the_mantissa(value: float) -> None:
    rounded = tf32(np.array([value], np.float32))
    assert rounded.view(np.uint32)[0] & 0x1FFF == 0
    assert abs(float(rounded[0]) - value) <= abs(value) * 2.0**-11


def test_fp32_is_left_alone() -> None:
    weight = np.eye(3, dtype=np.float32)
    assert emulated(product(weight), "fp32").SerializeToString() == product(weight).SerializeToString()


@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_branches_are_rounded_as_well(precision: str) -> None:
    source, lowered = branching(), branching()
    graphs.name_nodes(lowered.graph)
    if precision != "tf32":
        lowered, _ = low_precision.lower(lowered, precision, {"nodes": [], "ops": []})
    x = np.linspace(0.1, 3, 8, dtype=np.float32).reshape(2, 4)
    exact, rounded = run_session(session(source), {"x": x})["y"], emulate(lowered, precision, x)
    assert 0 < np.abs(rounded - exact).max() < 0.05
    assert emulate(lowered, precision, -x).max() == 0
