"""What answers where TensorRT does not, and what an application hears of it."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import signal
import sys
import types
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from builder.runtime import DeviceArray, Engine, EngineRefused, load
from tests.runtime_fakes import Bench, X, fake_torch, make_bench, refused_by, warning_lines

bench = pytest.fixture(make_bench)
lines = pytest.fixture(warning_lines)
SAID = "the fallback runs"
PROVIDERS = (
    "TensorrtExecutionProvider",
    "NvTensorRtRtxExecutionProvider",
    "CUDAExecutionProvider",
    "CPUExecutionProvider",
)


class Session:
    """An ONNX Runtime session of a model that triples."""

    opened: ClassVar[list[str]] = []

    def __init__(self, path: str = "", providers: Any = None) -> None:
        self.opened.append(path)
        assert providers is None or providers == ["CUDAExecutionProvider", "CPUExecutionProvider"], "TensorRT again"

    def get_inputs(self) -> list[Any]:
        return [types.SimpleNamespace(name="x")]

    def run(self, names: Any, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        assert names is None
        return [feeds["x"] * 3]


@pytest.fixture
def onnxruntime(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    module: Any = types.ModuleType("onnxruntime")
    module.InferenceSession, module.get_available_providers = Session, lambda: list(PROVIDERS)
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    Session.opened.clear()
    return Session.opened


def test_a_missing_engine_falls_back_with_one_line(bench: Bench, lines: list[str]) -> None:
    engine = load(bench.folder.parent / "gone", lambda value, scale=1: value * scale)
    assert [engine(2, scale=5), engine(3)] == [10, 3]
    assert engine.refusal is not None
    assert engine.refusal.code == "EF-106"
    assert len(lines) == 1
    assert f"{SAID} the model: EF-106 file-missing" in lines[0]


def test_without_a_fallback_the_reason_is_raised(bench: Bench) -> None:
    refused = refused_by(lambda: load(bench.folder.parent / "gone"))
    assert (refused.code, refused.reason) == ("EF-106", "file-missing")
    assert refused.fix


def test_a_shape_that_no_profile_takes_is_for_the_fallback_and_the_next_is_not(bench: Bench, lines: list[str]) -> None:
    with bench.load(lambda value: "fallback") as engine:
        odd = np.ones((9, 4), np.float32)
        assert [engine(odd), engine(X).tolist(), engine(odd)] == ["fallback", (X * 2).tolist(), "fallback"]
        # it goes on, however often
        assert [engine(odd) for _ in range(10)] == ["fallback"] * 10
        assert engine(X).tolist() == (X * 2).tolist()
        assert engine.refusal is None
    assert len(lines) == 1
    assert f"{SAID} this call: EF-407 profile-invalid" in lines[0]


def test_a_run_that_fails_falls_back_and_often_for_good(bench: Bench, lines: list[str]) -> None:
    with bench.load(lambda value: "fallback") as engine:
        bench.trt.scene.run_errors = ["Error Code 1: Cuda Runtime (an illegal memory access was encountered)"]
        assert engine(X) == "fallback"
        bench.trt.scene.run_errors = []
        assert engine(X).tolist() == (X * 2).tolist()
        bench.trt.scene.run_errors = ["Error Code 1: Cuda Runtime (an illegal memory access was encountered)"]
        assert [engine(X) for _ in range(3)] == ["fallback"] * 3
        bench.trt.scene.run_errors = []
        assert engine(X) == "fallback"
        assert engine.refusal is not None
        assert engine.refusal.reason == "run-failed"
    assert len(lines) == 1
    assert "illegal memory access" in lines[0]


def test_a_broken_gpu_breaks_no_application(bench: Bench, lines: list[str]) -> None:
    array = bench.array()
    with bench.load(lambda value: "fallback", on_call=None) as engine:
        held = engine(array)
        bench.driver.broken = True
        assert [engine(array) for _ in range(4)] == ["fallback"] * 4
        assert engine(X) == "fallback"
        assert refused_by(held.numpy).reason == "run-failed"
        assert engine.refusal is not None
    assert len(lines) == 1
    assert "ILLEGAL_ADDRESS" in lines[0]


def test_no_memory_for_a_call_falls_back(bench: Bench, lines: list[str]) -> None:
    with bench.load(lambda value: "fallback") as engine:
        bench.driver.full = True
        assert engine(X) == "fallback"
        bench.driver.full = False
        assert engine(X).tolist() == (X * 2).tolist()
    assert "EF-410 out-of-memory" in lines[0]


def test_no_memory_for_the_engine_falls_back(bench: Bench, lines: list[str]) -> None:
    bench.trt.scene.contexts = 0
    engine = bench.load(lambda value: "fallback")
    assert engine(X) == "fallback"
    assert "EF-410 out-of-memory" in lines[0]


@pytest.mark.parametrize("error", [RuntimeError("odd"), MemoryError(), TypeError("an overload")])
def test_whatever_the_bindings_raise_falls_back(bench: Bench, lines: list[str], error: Exception) -> None:
    def fail(_arrays: Any) -> Any:
        raise error

    with bench.load(lambda value: "fallback") as engine:
        bench.trt.scene.compute = fail
        assert engine(X) == "fallback"
    assert type(error).__name__ in lines[0]


def test_whatever_loading_raises_falls_back(bench: Bench, monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError("odd")

    monkeypatch.setattr("builder.runtime.loaded.deserialize", fail)
    assert bench.load(lambda value: "fallback")(X) == "fallback"
    assert "EF-416 engine-invalid" in lines[0]


def test_an_error_of_the_fallback_is_the_applications(bench: Bench) -> None:
    def fail(_: Any) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        load(bench.folder.parent / "gone", fail)(X)


def test_raising_again_does_not_pile_up(bench: Bench) -> None:
    engine = bench.load()
    bench.trt.scene.run_errors = ["no"]
    found = [refused_by(lambda: engine(X)) for _ in range(6)]
    assert len({id(one) for one in found}) == len(found)
    depths = []
    for one in found[3:]:
        depth, trace = 0, one.__traceback__
        while trace is not None:
            depth, trace = depth + 1, trace.tb_next
        depths.append(depth)
    assert len(set(depths)) == 1


def test_a_closed_engine_leaves_it_to_the_fallback(bench: Bench) -> None:
    engine = bench.load(lambda value: "fallback")
    engine.close()
    engine.close()
    assert engine(X) == "fallback"
    closed = bench.load()
    closed.close()
    assert "closed" in refused_by(lambda: closed(X)).what


def test_the_hook_sees_every_call_and_cannot_break_one(bench: Bench, lines: list[str]) -> None:
    seen: list[tuple[float, str]] = []

    def hook(seconds: float, how: str) -> None:
        seen.append((seconds, how))
        raise ZeroDivisionError

    with bench.load(lambda value: "fallback", on_call=hook) as engine:
        assert engine(X).tolist() == (X * 2).tolist()
        engine(np.ones((9, 4), np.float32))
        engine(X)
    assert [how for _, how in seen] == ["engine", "fallback", "engine"]
    assert all(0 < seconds < 10 for seconds, _ in seen)
    assert sum("on_call raised" in line for line in lines) == 1


def test_an_onnx_file_is_opened_when_it_is_needed(bench: Bench, onnxruntime: list[str], tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    model.write_bytes(b"onnx")
    with bench.load(str(model)) as engine:
        assert engine(X).tolist() == (X * 2).tolist()
        assert onnxruntime == []
        big = np.ones((9, 4), np.float32)
        assert [engine(big).tolist() for _ in range(2)] == [(big * 3).tolist()] * 2
        assert engine(x=big).tolist() == (big * 3).tolist()
        assert onnxruntime == [str(model)]


def test_a_session_answers_in_the_callers_kind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load(bench.folder.parent / "gone", Session())
    found = engine(bench.array())
    assert isinstance(found, DeviceArray)
    assert found.numpy().tolist() == (X * 3).tolist()
    torch: Any = fake_torch(bench.driver)
    torch.Tensor.detach = torch.Tensor.cpu = lambda self: self
    torch.Tensor.to = lambda self, device: self
    torch.from_numpy = torch.Tensor
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert engine(torch.Tensor(X)).numpy().tolist() == (X * 3).tolist()
    with pytest.raises(TypeError, match="takes x"):
        engine(y=X)


def test_a_fallback_that_is_not_there_names_itself(
    bench: Bench, onnxruntime: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(bench.folder.parent / "gone", "no.onnx")
    assert refused_by(lambda: engine(X)).what == "the fallback no.onnx is not there"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert refused_by(lambda: engine(X)).reason == "library-missing"


def test_a_fallback_of_no_kind_is_an_error(bench: Bench) -> None:
    with pytest.raises(TypeError, match="a fallback is"):
        bench.load(5)


def test_a_refusal_is_said_once_per_engine_not_per_process(bench: Bench, lines: list[str]) -> None:
    for _ in range(2):
        load(bench.folder.parent / "gone", lambda value: value)(X)
    assert len(lines) == 2


def test_what_was_refused_can_be_asked(bench: Bench) -> None:
    engine = bench.load()
    assert engine.refusal is None
    assert engine.checked is not None
    assert engine.checked.facts is not None
    assert engine.checked.facts.job.startswith("toy")
    assert engine.checked.content == b""
    assert isinstance(refused_by(lambda: engine(X.astype(np.float64))), EngineRefused)
    engine.close()


def test_an_input_given_twice_is_an_error_of_the_onnx_fallback_too(bench: Bench) -> None:
    with bench.load(Session()) as engine, pytest.raises(TypeError, match="takes x"):
        engine(X, x=X)


@pytest.mark.parametrize("fallback", [None, lambda _value: 0])
def test_a_refused_call_lets_go_of_its_inputs_at_once(bench: Bench, fallback: Any) -> None:
    """The garbage collector knows nothing of the GPU's memory, and may not come for long."""

    class Array(np.ndarray):
        pass

    def call(engine: Engine) -> weakref.ref[Array]:
        value = np.zeros((9, 4), np.float32).view(Array)
        with suppress(EngineRefused):
            engine(value)
        return weakref.ref(value)

    with bench.load(fallback) as engine:
        gc.collect()
        gc.disable()
        try:
            assert call(engine)() is None
        finally:
            gc.enable()


def test_a_forked_process_leaves_the_engine_to_its_parent(bench: Bench) -> None:
    with bench.load(lambda value: value * 10) as engine:
        engine(X)
        # as another thread of the parent would hold it while the process is forked
        with engine._lanes._all[0].lock:
            child = os.fork()
            if child == 0:
                signal.alarm(5)
                answer = engine(X)
                engine.close()
                os._exit(0 if (answer == X * 10).all() and engine.refusal is not None else 1)
            assert os.waitpid(child, 0)[1] == 0
        np.testing.assert_array_equal(engine(X), X * 2)


def test_an_engine_is_neither_pickled_nor_copied(bench: Bench) -> None:
    with bench.load() as engine:
        for make in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="load it where it is used"):
                make(engine)
        np.testing.assert_array_equal(engine(X), X * 2)
