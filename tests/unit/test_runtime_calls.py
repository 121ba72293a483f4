"""How a loaded engine is called: values, shapes, outputs, graphs, threads, and what happens when TensorRT cannot."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.runtime import DeviceArray, load, opening
from builder.runtime.driver import Driver
from tests.runtime_fakes import (
    STREAM,
    Bench,
    FakeDriver,
    X,
    fake_engine,
    fake_torch,
    make_bench,
    refused_by,
    warning_lines,
    write_folder,
)
from tests.surfaces import FakeTensor, recorded_versions

OTHER = 78


bench = pytest.fixture(make_bench)
lines = pytest.fixture(warning_lines)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """Two inputs, two outputs: twice and three times the first."""
    tensors = (FakeTensor("x", shape=(-1, 4)), FakeTensor("lengths", "INT32", shape=(-1,)))
    outputs = (FakeTensor("y", shape=(-1, 4)), FakeTensor("z", shape=(-1, 4)))
    profile = {"x": ((1, 4), (2, 4), (8, 4)), "lengths": ((1,), (2,), (8,))}
    return make_bench(monkeypatch, tmp_path, inputs=tensors, outputs=outputs, profiles=(profile,))


def test_the_fake_driver_is_like_the_real_one() -> None:
    names = {name for name in vars(FakeDriver) if not name.startswith("_")} - {"out_of_memory"}
    assert {name for name in names if not callable(getattr(Driver, name, None))} == set()


@pytest.mark.parametrize("version", recorded_versions())
def test_every_recorded_tensorrt_has_what_is_called(
    version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trt, content = fake_engine(monkeypatch, version)
    if version.startswith("1."):
        content = b"vtrt" + content[4:]
        trt.engines[content] = next(iter(trt.engines.values()))
    monkeypatch.setattr(opening, "open_driver", lambda _ordinal: FakeDriver(trt))
    folder = write_folder(tmp_path / "e", content, stack__tensorrt=version)
    with load(folder, trust="local", cuda_graphs=True) as engine:
        assert [engine(X).tolist() for _ in range(4)] == [(X * 2).tolist()] * 4


def test_arrays_run_where_they_lie(bench: Bench) -> None:
    array = bench.array()
    with bench.load() as engine:
        made = engine(array)
        assert isinstance(made, DeviceArray)
        assert made.numpy().tolist() == (X * 2).tolist()
        assert made.__cuda_array_interface__["stream"] == STREAM
        assert ("x", array.address) in bench.trt.called("IExecutionContext.set_tensor_address")
        assert bench.trt.called("IExecutionContext.execute_async_v3") == [(STREAM,)]
        # the output is an input as it is
        assert engine(made).numpy().tolist() == (X * 4).tolist()


def test_numpy_goes_there_and_back(bench: Bench) -> None:
    with bench.load() as engine:
        first, second = engine(X), engine(X[::-1])
        assert first.tolist() == (X * 2).tolist()
        assert second.tolist() == (X[::-1] * 2).tolist()


def test_torch_runs_on_its_stream(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = fake_torch(bench.driver)
    monkeypatch.setitem(sys.modules, "torch", torch)
    with bench.load() as engine:
        given = torch.Tensor(X)
        made = engine(given)
        assert type(made) is torch.Tensor
        assert made.numpy().tolist() == (X * 2).tolist()
        torch.current = OTHER
        engine(given)
        streams = bench.trt.called("IExecutionContext.execute_async_v3")
        assert streams == [(STREAM,), (OTHER,)]
        assert ("x", given.address) in bench.trt.called("IExecutionContext.set_tensor_address")


def test_torch_without_its_private_call_is_asked_in_public(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = fake_torch(bench.driver)
    torch._C = object()
    torch.cuda = type("cuda", (), {"current_stream": lambda _device: type("stream", (), {"cuda_stream": OTHER})})
    monkeypatch.setitem(sys.modules, "torch", torch)
    with bench.load() as engine:
        engine(torch.Tensor(X))
    assert bench.trt.called("IExecutionContext.execute_async_v3") == [(OTHER,)]


@pytest.mark.parametrize("change", ["gaps", "unaligned"])
def test_torch_tensors_that_no_engine_reads_are_copied_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    torch: Any = fake_torch(bench.driver)
    monkeypatch.setitem(sys.modules, "torch", torch)
    values = X.T.copy().T if change == "gaps" else X
    with bench.load() as engine:
        assert engine(torch.Tensor(values, shift=4 * (change == "unaligned"))).numpy().tolist() == (X * 2).tolist()


def test_unaligned_arrays_are_copied_first(bench: Bench) -> None:
    with bench.load() as engine:
        assert engine(bench.array(shift=4)).numpy().tolist() == (X * 2).tolist()


@pytest.mark.parametrize("stream", [None, 1, 2])
def test_the_default_stream_is_waited_for_and_waits(bench: Bench, stream: int | None) -> None:
    with bench.load() as engine:
        made = engine(bench.array(stream=stream))
        (own,) = {values[0] for values in bench.trt.called("IExecutionContext.execute_async_v3")}
        assert bench.driver.ordered == [(stream or 0, own), (own, stream or 0)]
        assert made.__cuda_array_interface__["stream"] == (stream or 1)


def test_streams_of_further_inputs_are_waited_for(two: Bench) -> None:
    with two.load() as engine:
        engine(two.array(), two.array(np.array([1, 2], np.int32), stream=OTHER))
    assert two.driver.ordered == [(OTHER, STREAM)]


def test_inputs_by_name_and_many_outputs(two: Bench) -> None:
    lengths = np.array([1, 2], np.int32)
    with two.load() as engine:
        assert [tensor.name for tensor in engine.outputs] == ["y", "z"]
        for found in (engine(X, lengths), engine(lengths=lengths, x=X), engine(X, lengths=lengths)):
            assert [value.tolist() for value in found] == [(X * 2).tolist(), (X * 3).tolist()]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((X,), {}), ((X, X, X), {}), ((X,), {"x": X}), ((X,), {"length": X}), ((), {"x": X})],
    ids=["none", "one", "three", "twice", "unknown", "missing"],
)
def test_inputs_that_are_not_the_engines(two: Bench, args: Any, kwargs: Any) -> None:
    with two.load() as engine:
        refused = refused_by(lambda: engine(*args, **kwargs))
    assert refused.reason == "input-invalid"
    assert "x, lengths" in refused.what


@pytest.mark.parametrize(
    "value",
    [X.astype(np.float64), X.astype(np.int32), [1.0], None, "x", np.float32(1), np.ma.masked_array(X, X > 3)],
    ids=["double", "int", "list", "none", "text", "scalar", "masked"],
)
def test_values_of_another_type_are_refused(bench: Bench, value: Any) -> None:
    with bench.load() as engine:
        assert refused_by(lambda: engine(value)).reason in {"input-invalid", "profile-invalid"}


@pytest.mark.parametrize(
    "said", [{"typestr": "<f8"}, {"strides": (4, 8)}, {"mask": object()}], ids=["double", "gaps", "mask"]
)
def test_arrays_of_another_kind_are_refused(bench: Bench, said: dict[str, Any]) -> None:
    array = bench.array()
    array.said |= said
    with bench.load() as engine:
        assert refused_by(lambda: engine(array)).reason == "input-invalid"
        array.said |= {"typestr": "<f4", "mask": None, "strides": (16, 4)}
        assert engine(array).numpy().tolist() == (X * 2).tolist()


def test_torch_tensors_of_another_kind_are_refused(two: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    torch: Any = fake_torch(two.driver)
    monkeypatch.setitem(sys.modules, "torch", torch)
    lengths = torch.Tensor(np.array([1, 2], np.int32))
    odd = [torch.Tensor(X) for _ in range(4)]
    odd[0].requires_grad, odd[1].is_cuda, odd[2].dtype, odd[3].device = True, False, torch.float16, ("cuda", 1)
    with two.load() as engine:
        for tensor in odd:
            assert refused_by(partial(engine, tensor, lengths)).reason == "input-invalid"
        assert refused_by(lambda: engine(torch.Tensor(X), X)).reason == "input-invalid"
        assert engine(torch.Tensor(X), lengths)[0].numpy().tolist() == (X * 2).tolist()


def test_only_what_changed_is_told(bench: Bench) -> None:
    with bench.load(reuse_outputs=True) as engine:
        arrays = bench.array(), bench.array()
        for array in (arrays[0], arrays[0], arrays[0], arrays[1]):
            engine(array)
    assert len(bench.trt.called("IExecutionContext.set_input_shape")) == 1
    assert [name for name, _ in bench.trt.called("IExecutionContext.set_tensor_address")] == ["x", "y", "x"]


def test_shapes_choose_their_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    profiles = ({"x": ((1, 4), (4, 4), (8, 4))}, {"x": ((1, 4), (2, 4), (2, 4))}, {"x": ((5, 4), (8, 4), (16, 4))})
    bench = make_bench(monkeypatch, tmp_path, profiles=profiles)
    with bench.load() as engine:
        for rows in (3, 2, 4, 1, 12, 8, 12):
            values = np.ones((rows, 4), np.float32)
            assert engine(values).tolist() == (values * 2).tolist()
        refused = refused_by(lambda: engine(np.ones((17, 4), np.float32)))
    chosen = [index for index, _ in bench.trt.called("IExecutionContext.set_optimization_profile_async")]
    # 3 fits only the first, 2 is what the second is for, 4 is what the first is for, 1 is nearest to the second
    assert chosen == [1, 0, 1, 2]
    assert refused.reason == "profile-invalid"
    assert "x 1x4 to 8x4; or x 1x4 to 2x4; or x 5x4 to 16x4" in refused.why


def test_shapes_are_forgotten_before_they_fill_the_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.runtime.loaded.PLANS", 2)
    with bench.load() as engine:
        for rows in (1, 2, 3, 4, 1, 2, 3):
            assert engine(np.ones((rows, 4), np.float32)).shape == (rows, 4)
        assert engine._loaded is not None
        assert len(engine._loaded.plans) <= 2


def test_outputs_are_the_callers(bench: Bench) -> None:
    with bench.load() as engine:
        held = [engine(bench.array(X * factor)) for factor in range(5)]
        assert [array.numpy().tolist() for array in held] == [(X * 2 * factor).tolist() for factor in range(5)]
        places = {array.address for array in held}
        del held
        # and theirs alone: what they let go is used again
        assert engine(bench.array()).address in places


def test_outputs_are_the_engines_where_asked_for(bench: Bench) -> None:
    with bench.load(reuse_outputs=True) as engine:
        first, second = engine(bench.array()), engine(bench.array(X * 5))
        assert first is second
        assert first.numpy().tolist() == (X * 10).tolist()
        host, again = engine(X), engine(X * 5)
        assert host is again
        kept = engine(np.ones((8, 4), np.float32))
    # its memory outlives the engine
    assert kept.tolist() == (np.ones((8, 4)) * 2).tolist()


def test_no_memory_for_a_graph_is_no_failure(bench: Bench, lines: list[str]) -> None:
    array = bench.array()
    with bench.load(cuda_graphs=True) as engine:
        engine(array)
        bench.trt.scene.contexts = 0
        assert [engine(array).numpy().tolist() for _ in range(3)] == [(X * 2).tolist()] * 3
    assert len(lines) == 1


def test_everything_is_given_back(bench: Bench) -> None:
    array = bench.array()
    before = {kind: set(live) for kind, live in bench.driver.live.items()}
    for options in ({}, {"cuda_graphs": True}, {"reuse_outputs": True}):
        with bench.load(**options) as engine:
            for rows in (1, 2, 8, 2):
                engine(np.ones((rows, 4), np.float32))
            for _ in range(4):
                engine(array)
            held = engine(array)
        assert held.numpy().tolist() == (X * 2).tolist()
        del held, engine
        assert bench.driver.live == before


def test_memory_is_flat(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.trt, "calls", type("Forgetful", (list,), {"append": lambda *_: None})())
    arrays = [bench.array(np.ones((rows, 4), np.float32)) for rows in (1, 2, 8)]
    with bench.load() as engine:

        def calls(count: int) -> None:
            for index in range(count):
                engine(arrays[index % 3])
                engine(X)

        calls(50)
        gc.collect()
        tracemalloc.start()
        try:
            calls(50)
            before = tracemalloc.get_traced_memory()[0]
            calls(500)
            gc.collect()
            assert tracemalloc.get_traced_memory()[0] - before < 2000
        finally:
            tracemalloc.stop()
        memory = len(bench.driver.live["memory"])
        calls(20)
        assert len(bench.driver.live["memory"]) == memory


def test_arrays_of_a_class_derived_from_numpys(bench: Bench) -> None:
    class Own(np.ndarray):
        pass

    with bench.load() as engine:
        assert engine(X.view(Own)).tolist() == (X * 2).tolist()
