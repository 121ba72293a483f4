"""Execution contexts and CUDA graphs of a loaded engine: streams, threads, and what TensorRT 8 does not share."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from builder.runtime import Engine, EngineRefused
from tests.runtime_fakes import STREAM, Bench, X, make_bench, warning_lines

OTHER = 78

bench = pytest.fixture(make_bench)
lines = pytest.fixture(warning_lines)


@pytest.fixture
def sharing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    """A TensorRT whose contexts may share a shape profile, which 8.6 does not let them."""
    return make_bench(monkeypatch, tmp_path, version="10.9.0.34")


@pytest.mark.parametrize("reuse", [False, True])
def test_graphs_are_captured_when_a_call_comes_again(sharing: Bench, reuse: bool) -> None:
    bench, hows = sharing, list[str]()
    array, other = bench.array(), bench.array(X * 3)
    with bench.load(cuda_graphs=True, reuse_outputs=reuse, on_call=lambda _, how: hows.append(how)) as engine:
        for _ in range(4):
            assert engine(array).numpy().tolist() == (X * 2).tolist()
        assert engine(other).numpy().tolist() == (X * 6).tolist()
        bench.driver.upload(array.address, X * 7)
        assert engine(array).numpy().tolist() == (X * 14).tolist()
        assert [engine(X).tolist() for _ in range(3)] == [(X * 2).tolist()] * 3
    assert hows == ["engine", "engine", "graph", "graph", "engine", "graph", "engine", "engine", "graph"]
    assert bench.driver.replays == 4


def test_the_only_context_is_captured_when_a_call_comes_twice_in_a_row(bench: Bench, lines: list[str]) -> None:
    hows: list[str] = []
    array, other = bench.array(), bench.array(np.ones((5, 4), np.float32))
    with bench.load(cuda_graphs=True, on_call=lambda _, how: hows.append(how)) as engine:
        for _ in range(2):
            assert [engine(array).numpy().tolist() for _ in range(4)] == [(X * 2).tolist()] * 4
            # what was captured is not valid any more once the context has had other shapes
            assert engine(other).numpy().tolist() == (np.ones((5, 4)) * 2).tolist()
            assert bench.driver.live["graph"] == set()
        for _ in range(3):
            assert engine(array).numpy().tolist() == (X * 2).tolist()
            assert engine(other).numpy().tolist() == (np.ones((5, 4)) * 2).tolist()
    row = ["engine", "engine", "graph", "graph", "engine"]
    assert hows == [*row, *row, *["engine"] * 6]
    assert lines == []


def test_a_shape_that_is_only_looked_at_ends_the_graph_of_the_only_context(bench: Bench) -> None:
    array, wide = bench.array(), bench.array(np.ones((3, 4), np.float32))
    with bench.load(cuda_graphs=True) as engine:
        for _ in range(3):
            engine(array)
        assert len(bench.driver.live["graph"]) == 1
        bench.trt.scene.run_errors = ["Error Code 1: Cuda Runtime (invalid argument)"]
        with pytest.raises(EngineRefused):
            engine(wide)
        bench.trt.scene.run_errors = []
        assert bench.driver.live["graph"] == set()
        assert engine(array).numpy().tolist() == (X * 2).tolist()


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}, {"reuse_outputs": True}], ids=str)
def test_streams_take_turns_where_profiles_are_not_shared(bench: Bench, options: dict[str, bool]) -> None:
    arrays = [(bench.array(X * factor, stream=stream), X * factor * 2) for factor, stream in ((1, STREAM), (3, OTHER))]
    with bench.load(max_contexts=4, **options) as engine:
        for _ in range(4):
            for array, expected in arrays:
                assert engine(array).numpy().tolist() == expected.tolist()
        assert engine(X).tolist() == (X * 2).tolist()
        assert len(engine._lanes._all) == 1
        assert engine.refusal is None


def test_memory_that_is_used_again_stays_with_its_stream(bench: Bench) -> None:
    with bench.load() as engine:
        first = engine(bench.array())
        place = first.address
        # what the application has put on its stream may still read it
        del first
        held = [engine(bench.array(X * stream, stream=stream)) for stream in (OTHER, OTHER + 1)]
        assert place not in {one.address for one in held}
        assert [one.numpy().tolist() for one in held] == [(X * 2 * OTHER).tolist(), (X * 2 * (OTHER + 1)).tolist()]
        assert engine(bench.array()).address == place
        before = len(bench.driver.live["memory"])
        inputs = [bench.array(stream=stream) for stream in range(100, 120)]
        for array in inputs:
            engine(array)
        assert len(bench.driver.live["memory"]) <= before + len(inputs) + 4
        assert held[0].numpy().tolist() == (X * 2 * OTHER).tolist()


def test_a_gpu_that_breaks_while_a_stream_waits_for_another_holds_nobody_up(bench: Bench) -> None:
    with bench.load(lambda _: "fallback") as engine:
        engine(bench.array())
        bench.driver.broken = True
        for _ in range(2):
            assert engine(bench.array(stream=OTHER)) == "fallback"
            assert engine(bench.array()) == "fallback"
        bench.driver.broken = False


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}], ids=str)
def test_a_further_context_takes_no_profile_that_the_first_comes_back_to(
    options: dict[str, bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ranges = {"narrow": ((1, 4), (2, 4), (2, 4)), "wide": ((3, 4), (8, 4), (8, 4))}
    bench = make_bench(monkeypatch, tmp_path, profiles=tuple({"x": shapes} for shapes in ranges.values()))
    wide = np.ones((8, 4), np.float32)
    calls = [(bench.array(values, stream=stream), values) for values in (wide, X) for stream in (STREAM, OTHER)]
    with bench.load(max_contexts=4, **options) as engine:
        for array, values in [*calls, *calls, *[calls[0]] * 3, *calls]:
            assert engine(array).numpy().tolist() == (values * 2).tolist()
        assert len(engine._lanes._all) == 1


def test_graphs_keep_outputs_apart(bench: Bench) -> None:
    array = bench.array()
    with bench.load(cuda_graphs=True) as engine:
        held = []
        for factor in range(5):
            bench.driver.upload(array.address, X * factor)
            held.append(engine(array))
        assert [one.numpy().tolist() for one in held] == [(X * 2 * factor).tolist() for factor in range(5)]


def test_graphs_are_few_and_addresses_that_never_return_make_none(sharing: Bench) -> None:
    bench = sharing
    with bench.load(cuda_graphs=True) as engine:
        arrays = [bench.array(np.full((rows, 4), rows, np.float32)) for rows in range(1, 9)]
        for _ in range(4):
            for rows, array in enumerate(arrays, 1):
                assert engine(array).numpy().tolist() == np.full((rows, 4), rows * 2).tolist()
        assert 1 <= len(bench.driver.live["graph"]) <= 4
        for _ in range(100):
            engine(bench.array())
        assert len(bench.driver.live["graph"]) <= 4
    assert bench.driver.live["graph"] == set()


def test_what_cannot_be_captured_runs_without(bench: Bench, lines: list[str]) -> None:
    bench.driver.refuses_capture = True
    array = bench.array()
    with bench.load(cuda_graphs=True) as engine:
        for _ in range(4):
            assert engine(array).numpy().tolist() == (X * 2).tolist()
        assert engine.refusal is None
    assert len(lines) == 1
    assert "CUDA graphs are not used" in lines[0]


@pytest.mark.parametrize("version", ["8.6.0", "10.9.0.34"])
def test_threads_never_meet(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench, wrong = make_bench(monkeypatch, tmp_path, version=version), list[Any]()

    def work(engine: Engine, place: int) -> None:
        try:
            for index in range(30):
                values = X + place * 100 + index
                host = place % 2
                made = engine(values if host else bench.array(values, stream=STREAM + place))
                found = made if isinstance(made, np.ndarray) else made.numpy()
                if found.tolist() != (values * 2).tolist():
                    wrong.append((place, index))
        except Exception as error:  # noqa: BLE001
            wrong.append(error)

    with bench.load(max_contexts=3) as engine:
        threads = [threading.Thread(target=work, args=(engine, place)) for place in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(engine._lanes._all) <= 3
    assert wrong == []


def test_outputs_that_are_kept_stay_with_their_stream(bench: Bench) -> None:
    bench.trt.scene.contexts = 1
    with bench.load(reuse_outputs=True) as engine:
        first, second = engine(bench.array()), engine(bench.array(X * 3, stream=OTHER))
        assert first is not second
        assert first.numpy().tolist() == (X * 2).tolist()
        assert second.numpy().tolist() == (X * 6).tolist()


def test_no_memory_for_a_further_context_means_waiting(bench: Bench) -> None:
    bench.trt.scene.contexts = 1
    with bench.load() as engine:
        for stream in (STREAM, OTHER, STREAM):
            assert engine(bench.array(stream=stream)).numpy().tolist() == (X * 2).tolist()
        assert engine(X).tolist() == (X * 2).tolist()
        assert len(engine._lanes._all) == 1
