"""How callers hand in tensors and take outputs: PyTorch, anything with `__cuda_array_interface__`, and NumPy.

The first two run where the tensors lie, on the caller's stream; NumPy arrays go through page-locked memory.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .lanes import Outputs
from .memory import DeviceArray
from .reasons import EngineRefused

if TYPE_CHECKING:
    from .lanes import Lane
    from .signature import Plan, Shape, Signature, Tensor

# an engine's kernels read and write in chunks: TensorRT wants addresses to be multiples of this
ALIGNMENT = 256


class Inputs(NamedTuple):
    """Inputs as a call gives them. `kept` holds what must not go away before the run is on its stream.

    `stream` is the one to run on, `others` those to wait for; `unaligned`: places of inputs that begin where no engine
    may read.
    """

    shapes: Tuple[Shape, ...]
    addresses: List[int]
    kept: List[Any]
    stream: int
    others: Sequence[int] = ()
    unaligned: Sequence[int] = ()


class TorchCaller:
    """PyTorch tensors on the engine's GPU; outputs are such tensors."""

    name = "torch"

    def __init__(self, torch: Any, signature: Signature, ordinal: int) -> None:
        self._torch, self._is_tensor = torch, torch.is_tensor
        self._device = torch.device("cuda", ordinal)
        self._ordinal = ordinal
        self._inputs = signature.inputs
        self._types = [getattr(torch, tensor.dtype) for tensor in signature.inputs]
        self._outputs = [getattr(torch, tensor.dtype) for tensor in signature.outputs]
        # ten times as fast as `torch.cuda.current_stream()`, which is the one to rely on
        self._raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # noqa: SLF001

    def read(self, args: Sequence[Any]) -> Inputs:
        """Check tensors and say where they lie.

        Raises:
            EngineRefused: input-invalid.

        """
        shapes, addresses, kept = [], [], []
        for place, value in enumerate(args):
            if not self._is_tensor(value):
                raise unfit(self._inputs[place], type(value).__name__, self._device)
            if value.dtype is not self._types[place] or not value.is_cuda or value.device != self._device:
                raise self._unfit(place, value)
            if value.requires_grad and self._torch.is_grad_enabled():
                what = f"input {self._inputs[place].name} wants gradients, which an engine has not"
                raise EngineRefused("input-invalid", what, fix="call it under torch.no_grad() or inference_mode()")
            tensor = value if value.is_contiguous() else value.contiguous()
            address = tensor.data_ptr()
            if address % ALIGNMENT:
                tensor = tensor.clone()
                address = tensor.data_ptr()
            kept.append(tensor)
            addresses.append(address)
            shapes.append(tensor.shape)
        return Inputs(tuple(shapes), addresses, kept, self._stream())

    def allocate(self, plan: Plan, lane: Lane) -> Outputs:
        """Make tensors for the outputs; PyTorch's allocator hands out the memory of those that are gone."""
        del lane
        empty, device = self._torch.empty, self._device
        arrays = tuple([empty(shape, dtype=dtype, device=device) for shape, dtype in zip(plan.outputs, self._outputs)])
        return Outputs(arrays, tuple([array.data_ptr() for array in arrays]))

    def finish(self, arrays: Tuple[Any, ...], stream: int) -> None:
        """PyTorch knows its stream."""

    def _stream(self) -> int:
        if self._raw_stream is not None:
            return int(self._raw_stream(self._ordinal))
        return int(self._torch.cuda.current_stream(self._device).cuda_stream)

    def _unfit(self, place: int, value: Any) -> EngineRefused:
        return unfit(self._inputs[place], f"{str(value.dtype).replace('torch.', '')} on {value.device}", self._device)


class ArrayCaller:
    """Anything with `__cuda_array_interface__`; outputs are `DeviceArray`."""

    name = "array"

    def __init__(self, signature: Signature) -> None:
        self._inputs, self._outputs = signature.inputs, signature.outputs
        self._types = [None if tensor.numpy is None else tensor.numpy.str for tensor in signature.inputs]

    def read(self, args: Sequence[Any]) -> Inputs:
        """Check arrays and say where they lie.

        Raises:
            EngineRefused: input-invalid.

        """
        shapes, addresses, unaligned, streams = [], [], [], []
        for place, value in enumerate(args):
            said = getattr(value, "__cuda_array_interface__", None)
            if said is None:
                raise unfit(self._inputs[place], type(value).__name__, "the GPU")
            shape = tuple(said["shape"])
            if said["typestr"] != self._types[place] or said.get("mask") is not None:
                raise unfit(self._inputs[place], f"an array of type {said['typestr']}", "the GPU")
            if said.get("strides") is not None and not _is_contiguous(shape, said, self._inputs[place].itemsize):
                raise unfit(self._inputs[place], "an array with gaps", "the GPU")
            address = int(said["data"][0])
            if address % ALIGNMENT:
                unaligned.append(place)
            addresses.append(address)
            shapes.append(shape)
            streams.append(int(said.get("stream") or 0))
        others = [stream for stream in streams[1:] if stream != streams[0]]
        return Inputs(tuple(shapes), addresses, list(args), streams[0], others, unaligned)

    def allocate(self, plan: Plan, lane: Lane) -> Outputs:
        """Make arrays for the outputs in memory of the lane's."""
        arrays = tuple(
            [
                DeviceArray(lane.blocks, tensor.numpy, shape, size)
                for tensor, shape, size in zip(self._outputs, plan.outputs, plan.output_bytes)
            ]
        )
        return Outputs(arrays, tuple([array.address for array in arrays]))

    def finish(self, arrays: Tuple[Any, ...], stream: int) -> None:
        """Let the outputs name their stream."""
        for array in arrays:
            array.on(stream)


def run_on_host(
    lane: Lane, signature: Signature, args: Sequence[Any], *, copy: bool
) -> Tuple[Tuple[np.ndarray, ...], bool]:
    """Run with NumPy arrays: copy in, run and copy out on the lane's own stream, and wait.

    Returns the outputs, without `copy` as views of the lane's memory, and whether a graph ran.

    Raises:
        EngineRefused: input-invalid, profile-invalid, out-of-memory or run-failed.

    """
    for tensor, value in zip(signature.inputs, args):
        if not _is_plain(value) or tensor.numpy is None or value.dtype != tensor.numpy:
            raise unfit(tensor, f"{value.dtype} in NumPy" if _is_plain(value) else type(value).__name__)
    driver, stream, count = lane.blocks.driver, lane.stream, len(signature.inputs)
    plan = lane.plan(tuple([value.shape for value in args]), stream)
    staging = lane.staging
    for one, size in zip(staging, plan.input_bytes + plan.output_bytes):
        one.room(size)
    for one, value, size, tensor in zip(staging, args, plan.input_bytes, signature.inputs):
        np.copyto(one.view(value.shape, tensor.numpy), value)
        driver.send(one.address, one.host, size, stream)
    graph = lane.run(plan, tuple([one.address for one in staging]), stream)
    for one, size in zip(staging[count:], plan.output_bytes):
        driver.receive(one.host, one.address, size, stream)
    driver.finish(stream)
    views = [
        one.view(shape, tensor.numpy) for one, shape, tensor in zip(staging[count:], plan.outputs, signature.outputs)
    ]
    return tuple([view.copy() for view in views] if copy else views), graph


def unfit(tensor: Tensor, given: str, place: Optional[object] = None) -> EngineRefused:
    """Say that an input is not what the engine takes."""
    where = f" on {place}" if place is not None else ""
    return EngineRefused(
        "input-invalid",
        f"input {tensor.name} is {given}",
        why=f"the engine takes {tensor.dtype}{where}, without gaps",
        fix="convert it before the call",
    )


def loaded_torch() -> Optional[Any]:
    """Return PyTorch if the application has imported it; it is not imported for its own sake."""
    return sys.modules.get("torch")


def _is_plain(value: object) -> bool:
    # what a masked array hides would count
    return isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray)


def _is_contiguous(shape: Shape, said: Any, itemsize: int) -> bool:
    expected = itemsize
    for size, stride in zip(reversed(shape), reversed(tuple(said["strides"]))):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True
