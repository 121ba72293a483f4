"""What an engine takes and gives: names, types, shapes and shape profiles, read once."""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from builder.worker.trt.session import DTYPES

from .reasons import EngineRefused

Shape = Tuple[int, ...]
Range = Tuple[Shape, Shape, Shape]
BYTES = {"bfloat16": 2}


class Tensor(NamedTuple):
    """An input or output. `dtype` is a name such as "float16"; `numpy` is None for types that NumPy lacks.

    `shape`: -1 is a dynamic axis.
    """

    name: str
    dtype: str
    numpy: Optional[Any]
    itemsize: int
    shape: Shape


class Plan(NamedTuple):
    """What one set of input shapes means: shape profile, output shapes, and sizes of all tensors in bytes."""

    shapes: Tuple[Shape, ...]
    profile: int
    outputs: Tuple[Shape, ...]
    input_bytes: Tuple[int, ...]
    output_bytes: Tuple[int, ...]


class Signature(NamedTuple):
    """All inputs and outputs in the engine's order; `profiles` holds min, opt and max of each input per profile."""

    inputs: Tuple[Tensor, ...]
    outputs: Tuple[Tensor, ...]
    profiles: Tuple[Tuple[Range, ...], ...]

    def choose(self, shapes: Tuple[Shape, ...]) -> int:
        """Return the shape profile for input shapes: one whose opt shapes they are, else the narrowest that fits.

        Raises:
            EngineRefused: profile-invalid.

        """
        fitting = [index for index, profile in enumerate(self.profiles) if _fits(shapes, profile)]
        if not fitting:
            raise self._unfit(shapes)
        return min(fitting, key=lambda index: _distance(shapes, self.profiles[index]))

    def size(self, place: int, shape: Shape) -> int:
        """Return the bytes of an input."""
        return _bytes(self.inputs[place], shape)

    def _unfit(self, shapes: Tuple[Shape, ...]) -> EngineRefused:
        given = ", ".join(f"{tensor.name} {_text(shape)}" for tensor, shape in zip(self.inputs, shapes))
        taken = [
            ", ".join(
                f"{tensor.name} {_text(low)} to {_text(high)}" for tensor, (low, _, high) in zip(self.inputs, profile)
            )
            for profile in self.profiles
        ]
        return EngineRefused(
            "profile-invalid",
            f"the engine takes no inputs of these shapes: {given}",
            why="it takes " + "; or ".join(taken),
            fix="build it with a wider shape profile",
        )


def read_signature(trt: Any, engine: Any) -> Signature:
    """Ask a loaded engine.

    Raises:
        EngineRefused: op-unsupported for what a call could not fill.

    """
    names = [str(engine.get_tensor_name(index)) for index in range(engine.num_io_tensors)]
    modes = {name: engine.get_tensor_mode(name) for name in names}
    inputs = [_tensor(trt, engine, name) for name in names if modes[name] == trt.TensorIOMode.INPUT]
    outputs = [_tensor(trt, engine, name) for name in names if modes[name] != trt.TensorIOMode.INPUT]
    profiles = tuple(
        tuple(_range(engine, tensor, index) for tensor in inputs)
        for index in range(max(int(engine.num_optimization_profiles), 1))
    )
    return Signature(tuple(inputs), tuple(outputs), profiles)


def plan(signature: Signature, shapes: Tuple[Shape, ...], profile: int, outputs: Tuple[Shape, ...]) -> Plan:
    """Put together what a set of input shapes means.

    Raises:
        EngineRefused: op-unsupported where an output's shape depends on values.

    """
    for tensor, shape in zip(signature.outputs, outputs):
        if any(size < 0 for size in shape):
            what = f"output {tensor.name} has a shape that depends on values: {_text(shape)}"
            raise EngineRefused("op-unsupported", what, fix="export the model so that output shapes follow from inputs")
    return Plan(
        shapes,
        profile,
        outputs,
        tuple(_bytes(tensor, shape) for tensor, shape in zip(signature.inputs, shapes)),
        tuple(_bytes(tensor, shape) for tensor, shape in zip(signature.outputs, outputs)),
    )


def _tensor(trt: Any, engine: Any, name: str) -> Tensor:
    if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
        what = f"tensor {name} lies in the host's memory: a shape is computed from its values"
        raise EngineRefused("op-unsupported", what, fix="export the model so that shapes follow from inputs' shapes")
    kind = engine.get_tensor_dtype(name).name
    dtype = DTYPES.get(kind, kind.lower())
    shape = tuple(int(size) for size in engine.get_tensor_shape(name))
    try:
        known = np.dtype(dtype)
    except TypeError:
        if dtype not in BYTES:
            what = f"tensor {name} is {dtype}, which no caller can give or take"
            raise EngineRefused("precision-unsupported", what, fix="export the model with float32 inputs") from None
        return Tensor(name, dtype, None, BYTES[dtype], shape)
    return Tensor(name, dtype, known, known.itemsize, shape)


def _range(engine: Any, tensor: Tensor, profile: int) -> Range:
    if all(size >= 0 for size in tensor.shape):
        return tensor.shape, tensor.shape, tensor.shape
    low, best, high = (
        tuple(int(size) for size in shape) for shape in engine.get_tensor_profile_shape(tensor.name, profile)
    )
    return low, best, high


def _fits(shapes: Tuple[Shape, ...], profile: Tuple[Range, ...]) -> bool:
    return all(
        len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high))
        for shape, (low, _, high) in zip(shapes, profile)
    )


def _distance(shapes: Tuple[Shape, ...], profile: Tuple[Range, ...]) -> Tuple[bool, int]:
    tuned_for_it = all(shape == best for shape, (_, best, _) in zip(shapes, profile))
    room: List[int] = [int(np.prod(high, dtype=np.int64)) for _, _, high in profile]
    return not tuned_for_it, sum(room)


def _bytes(tensor: Tensor, shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64)) * tensor.itemsize


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def by_name(tensors: Tuple[Tensor, ...]) -> Dict[str, int]:
    """Map names to places."""
    return {tensor.name: index for index, tensor in enumerate(tensors)}
