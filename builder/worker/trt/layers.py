"""Reads the layers of a parsed network: types in and out, and how many multiplications each one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import Layer

if TYPE_CHECKING:
    from ..protocol import Profile

NODE_PREFIX = "[ONNX Layer: "
UNKNOWN = -1


def read_layers(trt: Any, network: Any, profiles: list[Profile]) -> list[Layer]:
    """Return every layer. Changes the network: its inputs get the opt shapes of the first profile, to count MACs."""
    if profiles:
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            if tensor.name in profiles[0].inputs:
                tensor.shape = profiles[0].inputs[tensor.name].opt
    return [_layer(trt, network.get_layer(index)) for index in range(network.num_layers)]


def node_of(layer: Any) -> str:
    """Return the ONNX node that a layer of the parsed network came from, or nothing."""
    metadata = str(layer.metadata)
    return metadata[len(NODE_PREFIX) : -1] if metadata.startswith(NODE_PREFIX) else ""


def _layer(trt: Any, layer: Any) -> Layer:
    inputs = [layer.get_input(index) for index in range(layer.num_inputs)]
    outputs = [layer.get_output(index) for index in range(layer.num_outputs)]
    return Layer(
        name=layer.name,
        node=node_of(layer),
        kind=layer.type.name,
        inputs=[tensor.dtype.name for tensor in inputs if tensor is not None],
        outputs=[tensor.dtype.name for tensor in outputs if tensor is not None],
        macs=_macs(trt, layer, [_sizes(tensor) for tensor in inputs if tensor is not None], _sizes_of_first(outputs)),
    )


def _sizes_of_first(outputs: list[Any]) -> list[int]:
    # the layer that holds an If's condition has no output
    return _sizes(outputs[0]) if outputs and outputs[0] is not None else []


def _macs(trt: Any, layer: Any, inputs: list[list[int]], output: list[int]) -> int | None:
    kind = layer.type.name
    if kind in ("CONVOLUTION", "DECONVOLUTION"):
        is_forward = kind == "CONVOLUTION"
        layer.__class__ = trt.IConvolutionLayer if is_forward else trt.IDeconvolutionLayer
        # Forward: each output value sums over its window; backward: each input value is spread over it.
        per_value = _volume(layer.kernel_size_nd)
        if is_forward:
            channels = inputs[0][1] if len(inputs[0]) > 1 else UNKNOWN
            return _known(_volume(output), per_value, channels // layer.num_groups)
        return _known(_volume(inputs[0]), per_value, layer.num_output_maps // layer.num_groups)
    if kind == "MATRIX_MULTIPLY":
        layer.__class__ = trt.IMatrixMultiplyLayer
        first = inputs[0]
        is_transposed = layer.op0 == trt.MatrixOperation.TRANSPOSE
        return _known(_volume(output), first[-2] if is_transposed and len(first) > 1 else first[-1])
    if kind == "EINSUM":
        layer.__class__ = trt.IEinsumLayer
        return _einsum_macs(layer.equation, inputs)
    return UNKNOWN if kind.startswith("ATTENTION") or kind == "MOE" else None


def _einsum_macs(equation: str, inputs: list[list[int]]) -> int:
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if "..." in equation or any(len(term) != len(shape) for term, shape in zip(terms, inputs)):
        return UNKNOWN
    sizes = {letter: size for term, shape in zip(terms, inputs) for letter, size in zip(term, shape)}
    return _known(*sizes.values())


def _sizes(tensor: Any) -> list[int]:
    try:
        return list(tensor.shape)
    except ValueError:  # TensorRT gives a shape of negative rank where it cannot tell
        return [UNKNOWN]


def _volume(sizes: Any) -> int:
    total = 1
    for size in sizes:
        if size < 0:
            return UNKNOWN
        total *= size
    return total


def _known(*factors: int) -> int:
    return UNKNOWN if any(factor < 0 for factor in factors) else _volume(factors)
