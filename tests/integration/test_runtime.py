"""The runtime in processes of its own: what it imports, a driver without a GPU, real refusals, real PyTorch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.farm import ROOT, Farm, product, shapes

pytestmark = pytest.mark.integration

BLOCKED = (
    "pydantic",
    "click",
    "docker",
    "requests",
    "yaml",
    "filelock",
    "rich",
    "oras",
    "torch",
    "onnx",
    "onnxruntime",
)
ALONE = """
import sys
for name in %r:
    sys.modules[name] = None
import builder.runtime
loaded = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
loaded -= {"__main__", "_distutils_hack"}
print(sorted(name for name in loaded if sys.modules.get(name) is not None))
"""
# an engine of the fake TensorRT, and the proof that runs on GPUs
PROOF = """
import ctypes, runpy, sys, threading
from pathlib import Path
from types import SimpleNamespace
from tests.runtime_fakes import fake_engine, write_folder
from tests.surface_running import run_fake

patch = SimpleNamespace(setitem=lambda table, name, value: table.update({name: value}))
shapes = {"min": [1, 4], "opt": [64, 4], "max": [128, 4]}
trt, content = fake_engine(patch, profiles=({"x": tuple(map(tuple, shapes.values()))},))
trt.calls = type("Forgetful", (list,), {"append": lambda *_: None})()
described = {"engine__profiles": [{"name": "p", "inputs": {"x": shapes}}]}
folder = write_folder(
    Path(sys.argv[1]), content, engine__inputs=[{"name": "x", "shape": [-1, 4], "dtype": "float32"}], **described
)
graphs = {}

def told(what, handle, of):
    here = threading.get_ident()
    if what == 1:
        trt.scene.captured[here] = []
    elif what == 2:
        graphs[handle] = trt.scene.captured.pop(here)
    elif what == 3:
        graphs[handle] = graphs[of]
    else:
        for run in graphs[handle]:
            run_fake(*run)

keep = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64)(told)
ctypes.CDLL("libcuda.so.1").stub_tell(keep)
sys.argv = ["runtime.py", str(folder), sys.argv[2], "--calls", "300"]
runpy.run_path("benchmarks/runtime.py", run_name="__main__")
"""
# the application has a context of its own in its threads
CONTEXTS = """
import ctypes, threading
from builder.runtime.driver import Driver

library, found = ctypes.CDLL("libcuda.so.1"), []

def current():
    holder = ctypes.c_uint64()
    library.cuCtxGetCurrent(ctypes.byref(holder))
    return holder.value

def look(theirs):
    library.cuCtxSetCurrent(ctypes.c_uint64(theirs))
    for _ in range(2):
        before = driver.enter()
        inside = current()
        driver.leave(before)
        found.append((inside == ours, current()))

library.cuCtxSetCurrent(ctypes.c_uint64(5))
driver = Driver()
assert current() == 5
ours = driver._context
for theirs in (5, 0, ours):
    thread = threading.Thread(target=look, args=(theirs,))
    thread.start()
    thread.join()
# where there was none, the engine's stays
assert found == [(True, one) for one in (5, 5, ours, ours, ours, ours)], found
"""
# a GPU that is there by its name only: TensorRT itself has to find out
REAL = """
import json, sys
from types import SimpleNamespace
import numpy as np
from builder.runtime import EngineRefused, load, opening
from builder.worker.cuda import Device

folder, model, named = sys.argv[1:4]
if named == "named":
    device = Device("GPU", "8.6", "GPU-0", "13.0")
    opening.open_driver = lambda _: SimpleNamespace(device=device, ordinal=0, enter=lambda: 0, leave=lambda _: None)
try:
    load(folder, trust="local")
except EngineRefused as refused:
    reason, why = refused.reason, refused.why
engine = load(folder, model, trust="local")
answer = engine(np.ones((3, 8), np.float32))
print(json.dumps([reason, why, np.asarray(answer).tolist()]))
"""
# PyTorch of the CPU, whose tensors say that they are on a GPU
TORCH = """
import sys, timeit
from pathlib import Path
from types import SimpleNamespace
import torch
from builder.runtime import callers, engine as module, load, opening
from tests.runtime_fakes import FakeDriver, fake_engine, write_folder

class OnGpu(torch.Tensor):
    is_cuda = True
    # else every attribute of a subclass takes microseconds
    __torch_function__ = torch._C._disabled_torch_function_impl

class Caller(callers.TorchCaller):
    def __init__(self, torch, signature, ordinal):
        super().__init__(torch, signature, ordinal)
        self._device, self._raw_stream = torch.device("cpu"), lambda _: 77

patch = SimpleNamespace(setitem=lambda table, name, value: table.update({name: value}))
trt, content = fake_engine(patch)
driver = FakeDriver(trt)
opening.open_driver, module.TorchCaller = lambda _: driver, Caller
folder = write_folder(Path(sys.argv[1]), content)

def given(values):
    return values.as_subclass(OnGpu)

x = torch.arange(8.0).reshape(2, 4)
engine = load(folder, lambda value: "fallback", trust="local")
with torch.no_grad():
    assert torch.equal(engine(given(x)), x * 2)
    held = [engine(given(x * factor)) for factor in range(4)]
    assert all(torch.equal(one, x * factor * 2) for factor, one in enumerate(held))
    transposed = given(torch.arange(8.0).reshape(4, 2).T)
    assert not transposed.is_contiguous() and torch.equal(engine(transposed), torch.arange(8.0).reshape(4, 2).T * 2)
    wide = torch.arange(40.0).reshape(10, 4)
    assert wide[3:5].data_ptr() % 256 and torch.equal(engine(given(wide[3:5])), wide[3:5] * 2)
    assert engine(given(x.double())) == engine(x) == engine(given(torch.ones(9, 4))) == "fallback"
    assert engine(torch.nn.Parameter(x)) == "fallback"
with torch.inference_mode():
    assert torch.equal(engine(given(torch.arange(8.0).reshape(2, 4))), x * 2)
assert engine(given(x).requires_grad_()) == "fallback"
assert torch.equal(engine(given(x)), x * 2)
graphs, reused = (load(folder, trust="local", **{name: True}) for name in ("cuda_graphs", "reuse_outputs"))
# as on a GPU, where memory begins at multiples of 512
room = torch.empty(256)
same = given(room[-room.data_ptr() % 256 // 4 :][:8].reshape(2, 4).copy_(x))
assert all(torch.equal(graphs(same), x * 2) for _ in range(5)) and driver.replays == 3
assert reused(same) is reused(same)
for one in (engine, reused):
    for lane in one._lanes._all:
        lane.context._execute = lambda _: True
trt.calls = type("Forgetful", (list,), {"append": lambda *_: None})()
for name, one in (("fresh outputs", engine), ("outputs reused", reused)):
    print(name, round(min(timeit.repeat(lambda: one(same), number=2000, repeat=5)) / 2000 * 1e6, 1), "us")
"""


def run(python: str | Path, script: str, *arguments: Any, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-c", script, *map(str, arguments)]
    env |= {"PYTHONPATH": str(ROOT), **environ}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)


def test_importing_it_takes_nothing_but_numpy() -> None:
    done = run(sys.executable, ALONE % (BLOCKED,))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['builder', 'numpy']"


@pytest.fixture(scope="session")
def driver_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a CUDA driver that needs no GPU."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    folder = tmp_path_factory.mktemp("driver")
    source = ROOT / "tests" / "data" / "cuda_stub.c"
    library = str(folder / "libcuda.so.1")
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, str(source), "-lpthread"]
    subprocess.run(command, check=True)
    return str(folder)


def test_the_context_of_the_application_stays(driver_folder: str) -> None:
    done = run(sys.executable, CONTEXTS, LD_LIBRARY_PATH=driver_folder)
    assert done.returncode == 0, done.stderr


def test_the_proof_holds_on_a_driver_without_a_gpu(driver_folder: str, tmp_path: Path) -> None:
    done = run(sys.executable, PROOF, tmp_path / "engine", tmp_path / "out", LD_LIBRARY_PATH=driver_folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = json.loads((tmp_path / "out" / "runtime.json").read_text(encoding="utf-8"))
    assert found["failed"] == []
    assert {"engine", "engine, graph", "raw"} <= set(found["overhead"])
    assert sum(row["deserialized"] for row in found["fallbacks"] if "deserialized" in row) == 0
    assert "| raw |" in (tmp_path / "out" / "runtime.md").read_text(encoding="utf-8")


def test_tensorrt_rtx_refuses_and_onnx_runtime_answers(farm: Farm, rtx_environment: Path, tmp_path: Path) -> None:
    farm.recipe("toy", product(), shapes())
    farm.build()
    assert farm.run("export", str(tmp_path / "engines")).returncode == 0
    (folder,) = (tmp_path / "engines").iterdir()
    model = farm.project / "recipes" / "toy" / "model.onnx"

    def refused(named: str) -> tuple[str, str]:
        done = run(rtx_environment, REAL, folder, model, named)
        assert done.returncode == 0, done.stderr
        reason, why, answer = json.loads(done.stdout)
        assert len(answer) == 3
        assert "the fallback runs the model" in done.stderr
        return reason, why

    assert refused("not named")[0] == "gpu-needed"
    reason, why = refused("named")
    assert reason == "driver-too-old"
    assert "cudaError 35" in why
    damage = (
        "from benchmarks.runtime_damage import _replace, _read, _engine; import sys; folder = sys.argv[1]; "
        "_replace(folder, _read(_engine(folder))[:2000])"
    )
    assert run(sys.executable, damage, folder).returncode == 0
    reason, why = refused("named")
    assert reason == "engine-invalid"
    assert "plan.header.size == blobSize" in why


def test_real_tensors_of_pytorch(export_environment: Path, tmp_path: Path) -> None:
    done = run(export_environment, TORCH, tmp_path / "engine")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("fresh outputs")
    # the whole budget over TensorRT's own call, on a machine that does other things, too
    assert all(float(line.split()[-2]) < 100 for line in done.stdout.splitlines())


def test_a_model_that_was_not_pulled_is_answered_by_pytorch(export_environment: Path) -> None:
    script = """
import torch
from builder.runtime import load
model = torch.nn.Linear(4, 2)
engine = load("no-such-model", fallback=model)
x = torch.ones(3, 4)
assert torch.equal(engine(x), model(x)) and engine.refusal.reason == "file-missing"
"""
    done = run(export_environment, script)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("EF-106") == 1
