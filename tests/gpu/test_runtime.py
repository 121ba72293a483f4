"""The runtime on a GPU: the whole proof inside the image of TensorRT 8.6.0, and PyTorch's tensors, streams and graphs.

The machine's own Python has PyTorch and no TensorRT: there a fake one copies inputs to outputs, on the real GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.gpu import Gpu
from builder.runtime import Engine, load
from builder.runtime.driver import Driver
from tests.gpu.farm import STACK, TIMEOUT_S, GpuFarm
from tests.integration.farm import ROOT, product, shapes
from tests.runtime_fakes import Shapes, fake_engine, write_folder
from tests.surfaces import FakeTensorRT

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(TIMEOUT_S)]

ROWS, COLUMNS = 4096, 4
BYTES = ROWS * COLUMNS * 4
Loader = Callable[..., Engine]


def test_the_proof_holds_inside_the_image(gpu_farm: GpuFarm, tmp_path: Path) -> None:
    if gpu_farm.executor != "rootfs" or "ENGINEFARM_ROOTFS" not in os.environ:
        pytest.skip("needs ENGINEFARM_EXECUTOR=rootfs and unpacked images")
    gpu_farm.recipe("toy", product(width=256), shapes(low=1, best=8, high=32, width=256))
    gpu_farm.tune()
    engines, out = tmp_path / "engines", tmp_path / "out"
    out.mkdir()
    assert gpu_farm.run("export", str(engines)).returncode == 0
    command = [sys.executable, "benchmarks/in_image.py", STACK, "--read", f"{engines}:/in", "--write", f"{out}:/out"]
    inside = ["--", "python3", "/opt/enginefarm/src/benchmarks/runtime.py", "/in", "/out", "--calls", "2000"]
    done = subprocess.run([*command, *inside], cwd=ROOT, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((out / "runtime.json").read_text(encoding="utf-8"))
    assert found["failed"] == []
    assert found["tensorrt"] == "8.6.0"


@pytest.fixture
def torch() -> Any:
    module = pytest.importorskip("torch")
    if not module.cuda.is_available():
        pytest.skip("needs a PyTorch for GPUs")
    return module


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: Gpu) -> tuple[FakeTensorRT, Path]:
    """A TensorRT whose engines copy their input on the stream that they are given, and such an engine."""
    profile: dict[str, Shapes] = {"x": ((ROWS, COLUMNS), (ROWS, COLUMNS), (ROWS, COLUMNS))}
    trt, content = fake_engine(monkeypatch, profiles=(profile,))
    driver = Driver()

    def run_on(addresses: dict[str, int], _shapes: object, stream: int) -> None:
        driver.copy(addresses["y"], addresses["x"], BYTES, stream)

    trt.scene.run_on = run_on
    return trt, write_folder(tmp_path / "engine", content, target__sms=[gpu.sm])


@pytest.fixture
def opened(fake: tuple[FakeTensorRT, Path]) -> Iterator[Loader]:
    engines: list[Engine] = []

    def opening(fallback: Any = None, **options: Any) -> Engine:
        engines.append(load(fake[1], fallback, trust="local", **options))
        return engines[-1]

    yield opening
    for engine in engines:
        engine.close()


def test_tensors_run_on_their_stream_without_a_copy(
    torch: Any, fake: tuple[FakeTensorRT, Path], opened: Loader
) -> None:
    engine, x = opened(), torch.randn(ROWS, COLUMNS, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        found = engine(x)
    stream.synchronize()
    assert torch.equal(found, x)
    assert found.is_cuda
    assert ("x", x.data_ptr()) in fake[0].called("IExecutionContext.set_tensor_address")
    assert fake[0].called("IExecutionContext.execute_async_v3") == [(stream.cuda_stream,)]
    assert engine.refusal is None


@pytest.mark.parametrize("options", [{}, {"reuse_outputs": True}, {"cuda_graphs": True}], ids=str)
@pytest.mark.parametrize("default", [True, False], ids=["default stream", "side stream"])
def test_order_is_kept_with_what_pytorch_does_before_and_after(
    torch: Any, opened: Loader, options: dict[str, bool], default: bool
) -> None:
    engine = opened(**options)
    x = torch.zeros(ROWS, COLUMNS, device="cuda")
    big = torch.randn(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.default_stream() if default else torch.cuda.Stream()
    sums = []
    with torch.cuda.stream(stream), torch.no_grad():
        for step in range(1, 13):
            for _ in range(4):  # the GPU is behind: what does not wait sees the value before
                big = torch.tanh(big @ big)
            x.fill_(step)
            sums.append(engine(x).sum())
            x.fill_(-1)
    torch.cuda.synchronize()
    assert [value.item() for value in sums] == [step * ROWS * COLUMNS for step in range(1, 13)]
    assert engine.refusal is None


def test_outputs_survive_further_calls(torch: Any, opened: Loader) -> None:
    engine = opened(cuda_graphs=True)
    x = torch.empty(ROWS, COLUMNS, device="cuda")
    with torch.no_grad():
        held = []
        for step in range(8):
            x.fill_(step)
            held.append(engine(x))
    torch.cuda.synchronize()
    assert [one[0, 0].item() for one in held] == list(range(8))


def test_views_that_begin_in_the_middle(torch: Any, opened: Loader) -> None:
    engine, room = opened(), torch.randn(ROWS + 2, COLUMNS, device="cuda")
    with torch.no_grad():
        assert torch.equal(engine(room[1:-1]), room[1:-1])
        across = torch.randn(COLUMNS, ROWS, device="cuda").T
        assert torch.equal(engine(across), across)


def test_threads_with_streams_of_their_own(torch: Any, opened: Loader) -> None:
    engine, wrong = opened(lambda _: "fallback", cuda_graphs=True, max_contexts=3), []

    def work(place: int) -> None:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), torch.no_grad():
            x = torch.full((ROWS, COLUMNS), float(place), device="cuda")
            for index in range(50):
                found = engine(x)
                stream.synchronize()
                if isinstance(found, str) or found[0, 0].item() != place or found[-1, -1].item() != place:
                    wrong.append((place, index))

    threads = [threading.Thread(target=work, args=(place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_memory_is_flat_with_tensors(torch: Any, fake: tuple[FakeTensorRT, Path], opened: Loader) -> None:
    engine, x = opened(), torch.randn(ROWS, COLUMNS, device="cuda")
    with torch.no_grad():
        for _ in range(200):
            engine(x)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
        for _ in range(10_000):
            engine(x)
        torch.cuda.synchronize()
    fake[0].calls.clear()
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]) == before


def test_without_tensorrt_pytorch_answers_on_the_gpu(
    torch: Any, fake: tuple[FakeTensorRT, Path], opened: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.setitem(sys.modules, name, None)
    model = torch.nn.Linear(COLUMNS, 2).cuda()
    engine, x = opened(model), torch.randn(ROWS, COLUMNS, device="cuda")
    assert torch.equal(engine(x), model(x))
    assert engine.refusal is not None
    assert engine.refusal.reason == "library-missing"


def test_a_tensor_on_the_host_is_for_the_fallback(torch: Any, opened: Loader) -> None:
    engine = opened(lambda _: "fallback")
    with torch.no_grad():
        assert engine(torch.randn(ROWS, COLUMNS)) == "fallback"
        x = torch.randn(ROWS, COLUMNS, device="cuda")
        assert torch.equal(engine(x), x)
