"""Counting the multiplications of layers, also where TensorRT cannot tell a shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from builder.worker.trt.layers import read_layers


class Unranked:
    """A tensor whose rank TensorRT does not know: asking for its shape raises, in the bindings' way."""

    name = "u"
    dtype = SimpleNamespace(name="FLOAT")

    @property
    def shape(self) -> tuple[int, ...]:
        raise ValueError("vector::_M_range_check")


class Plain:
    """What a layer is before it is told its own class."""


class Own(Plain):
    """Any class of a layer."""


def tensor(*shape: int) -> Any:
    return SimpleNamespace(name="t", dtype=SimpleNamespace(name="FLOAT"), shape=shape)


def macs(kind: str, inputs: list[Any], output: Any, **more: Any) -> int | None:
    """Count one layer of a network."""
    layer = Plain()
    own = {
        "name": "a",
        "metadata": "",
        "type": SimpleNamespace(name=kind),
        "num_inputs": len(inputs),
        "num_outputs": 1,
        "get_input": inputs.__getitem__,
        "get_output": lambda index: output,
        "num_groups": 1,
        **more,
    }
    layer.__dict__.update(own)
    trt = SimpleNamespace(
        IConvolutionLayer=Own,
        IDeconvolutionLayer=Own,
        IMatrixMultiplyLayer=Own,
        IEinsumLayer=Own,
        MatrixOperation=SimpleNamespace(TRANSPOSE="T"),
    )
    network = SimpleNamespace(num_layers=1, get_layer=lambda index: layer)
    (found,) = read_layers(trt, network, [])
    return found.macs


PRODUCT = {"op0": None}
WINDOW = {"kernel_size_nd": (3, 3), "num_output_maps": 8}


@pytest.mark.parametrize(
    ("kind", "inputs", "output", "more", "expected"),
    [
        ("MATRIX_MULTIPLY", [tensor(2, 5), tensor(5, 7)], tensor(2, 7), PRODUCT, 2 * 5 * 7),
        ("MATRIX_MULTIPLY", [tensor(5, 2), tensor(5, 7)], tensor(2, 7), {"op0": "T"}, 2 * 5 * 7),
        # a vector times a vector
        ("MATRIX_MULTIPLY", [tensor(5), tensor(5)], tensor(), PRODUCT, 5),
        ("CONVOLUTION", [tensor(1, 4, 9, 9)], tensor(1, 8, 9, 9), WINDOW, 8 * 81 * 9 * 4),
        ("CONVOLUTION", [tensor(1, 4, 9, 9)], tensor(1, 8, 9, 9), {**WINDOW, "num_groups": 4}, 8 * 81 * 9),
        ("DECONVOLUTION", [tensor(1, 4, 9, 9)], tensor(1, 8, 18, 18), WINDOW, 4 * 81 * 9 * 8),
        ("EINSUM", [tensor(2, 3), tensor(3, 4)], tensor(2, 4), {"equation": "ij,jk->ik"}, 24),
        ("SOFTMAX", [tensor(2, 3)], tensor(2, 3), {}, None),
    ],
)
def test_known_shapes(kind: str, inputs: list[Any], output: Any, more: dict[str, Any], expected: int | None) -> None:
    assert macs(kind, inputs, output, **more) == expected


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("MATRIX_MULTIPLY", PRODUCT),
        ("MATRIX_MULTIPLY", {"op0": "T"}),
        ("CONVOLUTION", WINDOW),
        ("DECONVOLUTION", WINDOW),
        ("EINSUM", {"equation": "ij,jk->ik"}),
        ("EINSUM", {"equation": "i,i->"}),
    ],
)
@pytest.mark.parametrize("output", [tensor(3, 3), Unranked()])
def test_inputs_of_a_rank_that_is_not_known(kind: str, more: dict[str, Any], output: Any) -> None:
    assert macs(kind, [Unranked(), Unranked()], output, **more) == -1


@pytest.mark.parametrize(("kind", "more"), [("MATRIX_MULTIPLY", PRODUCT), ("CONVOLUTION", WINDOW)])
def test_an_output_of_a_rank_that_is_not_known(kind: str, more: dict[str, Any]) -> None:
    assert macs(kind, [tensor(3, 3, 3, 3), tensor(3, 3)], Unranked(), **more) == -1
