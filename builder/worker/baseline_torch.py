"""The recipe's own PyTorch model as a baseline, eager or compiled with CUDA graphs."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from . import export
from .inputs import make_all

if TYPE_CHECKING:
    import numpy as np

    from .inputs import Case
    from .protocol import Job

# PyTorch calibrates nothing by itself: what stands against an int8 engine runs in FP16, and says so.
INSTEAD = {"int8": "fp16"}
TYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# reduce-overhead replays CUDA graphs: the mode that is compared; max-autotune would search for minutes more.
COMPILE_MODE = "reduce-overhead"
# One compilation per shape; PyTorch gives up and runs eagerly after eight otherwise.
SHAPES = 64


def open_runner(job: Job) -> TorchRunner:
    """Load the model as the export stage does, on the GPU where there is one.

    Raises:
        StageFailure: export-failed or weights-invalid.

    """
    return TorchRunner(job, load_model(job))


def load_model(job: Job) -> torch.nn.Module:
    """Build the recipe's model with its weights, on the CPU in FP32."""
    params = job.params
    # the same random weights need the same seed, and a GPU's fastest kernels need what comes after it undone
    export._make_deterministic(params["weights"].get("seed", 0))  # noqa: SLF001
    module = export._load_module(params["entry"])  # noqa: SLF001
    model = export._build(module, params["entry"])  # noqa: SLF001
    if params["weights"]["kind"] == "pretrained":
        export._load_weights(module, model, job.inputs["weights"])  # noqa: SLF001
    torch.use_deterministic_algorithms(mode=False)
    return model.float().eval()


class TorchClock:
    """CUDA events on PyTorch's current stream."""

    def mark(self) -> torch.cuda.Event:
        """Stamp an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize()

    def elapsed_ms(self, start: torch.cuda.Event, stop: torch.cuda.Event) -> float:
        """Return the time between two events."""
        return float(start.elapsed_time(stop))


class TorchRunner:
    """A model in the job's precision with its inputs on the same device."""

    def __init__(self, job: Job, model: torch.nn.Module) -> None:
        self._gpu = torch.cuda.is_available()
        self._device = torch.device("cuda" if self._gpu else "cpu")
        precision = INSTEAD.get(job.precision, job.precision)
        self._type = TYPES[precision]
        self._specs = job.params["inputs"]
        self._names = job.params["export"]["input_names"]
        self._outputs = job.params["export"]["output_names"]
        self._arguments: tuple[torch.Tensor, ...] = ()
        self.clock = TorchClock() if self._gpu else None
        _allow_tf32(job.precision == "tf32")
        kind = job.params["kind"]
        model = model.to(device=self._device, dtype=self._type)
        self._model = compiled(model) if kind == "compile" else model
        where = "cuda" if self._gpu else "cpu"
        self.facts: dict[str, Any] = {
            "name": f"{kind}-{where}",
            "library": "torch",
            "version": str(torch.__version__),
            "device": torch.cuda.get_device_name(0) if self._gpu else "CPU",
            "precision": precision,
            "settings": _settings(kind, self._gpu),
        }

    def prepare(self, case: Case) -> None:
        """Put the inputs of a case on the device, floating ones in the model's type."""
        feeds = make_all(self._specs, case)
        self._arguments = tuple(self._placed(feeds[name]) for name in self._names)

    def run(self) -> None:
        """Begin one forward pass."""
        with torch.no_grad():
            self._model(*self._arguments)

    def wait(self) -> None:
        """Wait for the GPU; the CPU is done when the call returns."""
        if self._gpu:
            torch.cuda.synchronize()

    def fetch(self) -> dict[str, np.ndarray]:
        """Run once and copy the outputs to the host."""
        with torch.no_grad():
            made = export._flatten(self._model(*self._arguments))  # noqa: SLF001
        return {name: _array(values) for name, values in zip(self._outputs, made)}

    def _placed(self, values: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(values)
        return tensor.to(self._device, self._type if tensor.is_floating_point() else None)


def compiled(model: torch.nn.Module) -> Any:
    """Compile for each shape alone, which is faster than one program for all of them."""
    settings = importlib.import_module("torch._dynamo").config
    for name in ("recompile_limit", "cache_size_limit"):
        if hasattr(settings, name):
            setattr(settings, name, SHAPES)
            break
    return torch.compile(model, mode=COMPILE_MODE, dynamic=False)


def _allow_tf32(allowed: bool) -> None:  # noqa: FBT001
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    # cuDNN looks for the fastest algorithm, as TensorRT does
    torch.backends.cudnn.benchmark = True


def _settings(kind: str, gpu: bool) -> list[str]:  # noqa: FBT001
    found = [f"torch.compile mode={COMPILE_MODE} dynamic=False"] if kind == "compile" else []
    return [*found, "cudnn.benchmark"] if gpu else found


def _array(values: torch.Tensor) -> np.ndarray:
    values = values.detach().cpu()
    array: np.ndarray = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    return array
