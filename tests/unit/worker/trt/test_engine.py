"""A loaded engine and its memory, around a GPU and a TensorRT that only pretend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from builder.worker.protocol import StageFailure
from builder.worker.trt.engine import Engine

Shape = tuple[int, ...]


class FakeCuda:
    """Memory by address, with what was copied there; `room` bytes at most."""

    device = SimpleNamespace(sm="9.0")

    def __init__(self, room: int = 1 << 20) -> None:
        self.room = room
        self.memory: dict[int, bytearray] = {}
        self.pages: list[np.ndarray] = []
        self.streams = 0
        self.addresses = 0

    def allocate(self, size: int) -> int:
        if sum(map(len, self.memory.values())) + size > self.room:
            raise StageFailure("out-of-memory", "the GPU has no more memory")
        self.addresses += 1
        self.memory[self.addresses] = bytearray(size)
        return self.addresses

    def free(self, address: int) -> None:
        del self.memory[address]

    def pinned(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        self.pages.append(np.zeros(tuple(shape), dtype))
        return self.pages[-1]

    def unpin(self, array: np.ndarray) -> None:
        self.pages = [page for page in self.pages if page is not array]

    def upload(self, address: int, array: np.ndarray) -> None:
        self.memory[address][: array.nbytes] = array.tobytes()

    def download(self, array: np.ndarray, address: int) -> None:
        array[...] = np.frombuffer(bytes(self.memory[address][: array.nbytes]), array.dtype).reshape(array.shape)

    def stream(self) -> int:
        self.streams += 1
        return self.streams

    def synchronize(self, stream: int) -> None:
        assert stream


class FakeContext:
    """Runs `compute` on what lies at the addresses, output by output."""

    def __init__(self, cuda: FakeCuda, shape_of: Callable[[Shape], Shape]) -> None:
        self.cuda, self.shape_of = cuda, shape_of
        self.shapes: dict[str, Shape] = {}
        self.addresses: dict[str, int] = {}
        self.silent = False

    def set_input_shape(self, name: str, shape: Shape) -> bool:
        self.shapes = {name: shape}
        return True

    def get_tensor_shape(self, name: str) -> Shape:
        return self.shapes["x"] if name == "x" else self.shape_of(self.shapes["x"])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address in self.cuda.memory

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        return bool(stream)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream
        count = int(np.prod(self.shapes["x"]))
        values = np.frombuffer(bytes(self.cuda.memory[self.addresses["x"]][: 4 * count]), np.float32)
        made = np.full(self.shape_of(self.shapes["x"]), values.sum(), np.float32)
        if not self.silent:
            self.cuda.upload(self.addresses["y"], made)
        return True


def opened(tmp_path: Path, cuda: FakeCuda, shape_of: Callable[[Shape], Shape]) -> tuple[Engine, FakeContext]:
    """Load an engine of one input `x` and one output `y`, the sum of x in each place."""
    context = FakeContext(cuda, shape_of)
    engine = SimpleNamespace(
        create_execution_context=lambda: context,
        get_tensor_name=lambda index: "xy"[index],
        get_tensor_mode=lambda name: "in" if name == "x" else "out",
        get_tensor_dtype=lambda name: SimpleNamespace(name="FLOAT"),
        num_io_tensors=2,
        num_optimization_profiles=2,
        num_layers=1,
    )
    trt = SimpleNamespace(
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda content: engine),
        TensorIOMode=SimpleNamespace(INPUT="in"),
    )
    log: Any = SimpleNamespace(logger=None, errors=[])
    given: Any = cuda
    (tmp_path / "model.plan").write_bytes(b"plan")
    return Engine(trt, log, given, str(tmp_path / "model.plan")), context


def ones(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.ones(shape, np.float32)}


@pytest.mark.parametrize("shape", [(), (2,), (2, 3), (0,), (1, 0)])
def test_outputs_of_every_rank(tmp_path: Path, shape: Shape) -> None:
    engine, _ = opened(tmp_path, FakeCuda(), lambda _: shape)
    got = engine.run(0, ones(2, 3))
    assert got["y"].shape == shape
    assert np.array_equal(got["y"], np.full(shape, 6.0, np.float32))


@pytest.mark.parametrize("shape", [(), (2, 3)])
def test_what_the_engine_does_not_write_is_no_right_answer(tmp_path: Path, shape: Shape) -> None:
    engine, context = opened(tmp_path, FakeCuda(), lambda _: shape)
    assert np.isfinite(engine.run(0, ones(2, 3))["y"]).all()
    context.silent = True
    assert np.isnan(engine.run(0, ones(2, 3))["y"]).all()


def test_memory_does_not_grow_with_the_number_of_shapes(tmp_path: Path) -> None:
    cuda = FakeCuda()
    engine, _ = opened(tmp_path, cuda, lambda shape: shape)
    for batch in (4, 1, 2, 8, 3, 8):
        assert engine.run(0, ones(batch, 3))["y"].shape == (batch, 3)
    # one of each for input and output, as large as the largest
    assert sorted(map(len, cuda.memory.values())) == [8 * 3 * 4] * 2
    assert [page.shape for page in cuda.pages] == [(8, 3), (8, 3)]
    assert cuda.streams == 1


def test_a_shape_that_does_not_fit_leaves_an_engine_that_runs_others(tmp_path: Path) -> None:
    cuda = FakeCuda(room=100)
    engine, _ = opened(tmp_path, cuda, lambda shape: shape)
    assert engine.run(0, ones(2))["y"].tolist() == [2.0, 2.0]
    with pytest.raises(StageFailure, match="no more memory"):
        engine.run(0, ones(20))
    # what was given back for the larger one must not be used again
    assert engine.run(0, ones(1))["y"].tolist() == [1.0]


def test_a_closed_engine_holds_nothing(tmp_path: Path) -> None:
    cuda = FakeCuda()
    engine, _ = opened(tmp_path, cuda, lambda shape: shape)
    engine.run(1, ones(4))
    engine.close()
    assert (cuda.memory, cuda.pages) == ({}, [])
    engine.close()
