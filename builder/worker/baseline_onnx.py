"""ONNX Runtime as a baseline: the FP32 model before lowering, on CUDA where the package has it, else on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from .inputs import make_all
from .protocol import StageFailure

if TYPE_CHECKING:
    import numpy as np

    from .inputs import Case
    from .protocol import Job
    from .timing import GpuClock

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
ERRORS_ONLY = 3


def open_runner(job: Job) -> OnnxRunner:
    """Open the model.

    Raises:
        StageFailure: model-invalid.

    """
    # nobody asked for a report to its makers
    ort.disable_telemetry_events()
    if CUDA in ort.get_available_providers():
        session = _session(job.inputs["model"], _cuda_provider(job.precision))
        # ONNX Runtime falls back on its own where the GPU or its libraries are missing
        if session.get_providers()[0] == CUDA:
            return OnnxRunner(job, session, CUDA)
    return OnnxRunner(job, _session(job.inputs["model"], CPU), CPU)


class OnnxRunner:
    """A session whose inputs and outputs stay on its device between runs."""

    def __init__(self, job: Job, session: ort.InferenceSession, provider: str) -> None:
        self._session = session
        self._where = "cuda" if provider == CUDA else "cpu"
        self._specs = job.params["inputs"]
        self._types = {value.name: value.type for value in session.get_inputs()}
        self._names = [value.name for value in session.get_outputs()]
        self._binding = session.io_binding()
        # its stream is its own: only the host's clock can time it
        self.clock: GpuClock | None = None
        tf32 = job.precision != "fp32"
        self.facts: dict[str, Any] = {
            "name": f"onnxruntime-{self._where}",
            "library": "onnxruntime",
            "version": str(ort.__version__),
            "device": self._where.upper(),
            "precision": "tf32" if provider == CUDA and tf32 else "fp32",
            "settings": ["inputs and outputs bound to the device"],
        }

    def prepare(self, case: Case) -> None:
        """Bind the inputs of a case, in the types that the model wants, and let outputs stay where they are made."""
        self._binding = self._session.io_binding()
        for name, values in make_all(self._specs, case).items():
            if name in self._types:
                value = ort.OrtValue.ortvalue_from_numpy(_as_type(values, self._types[name]), self._where, 0)
                self._binding.bind_ortvalue_input(name, value)
        for name in self._names:
            self._binding.bind_output(name, self._where)

    def run(self) -> None:
        """Run once."""
        self._session.run_with_iobinding(self._binding)

    def wait(self) -> None:
        """Wait for the outputs."""
        self._binding.synchronize_outputs()

    def fetch(self) -> dict[str, np.ndarray]:
        """Run once and copy the outputs to the host."""
        self.run()
        self.wait()
        return dict(zip(self._names, self._binding.copy_outputs_to_cpu()))


def _cuda_provider(precision: str) -> tuple[str, dict[str, str]]:
    # on by default there: an FP32 engine must be compared with FP32
    return CUDA, {"use_tf32": "0" if precision == "fp32" else "1"}


def _session(model: str, provider: Any) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    try:
        return ort.InferenceSession(_content(model), options, providers=[provider])
    except Exception as error:  # ONNX Runtime's errors share no public base class
        why = str(error).strip()[:1000]
        raise StageFailure("model-invalid", "ONNX Runtime cannot load the model", why=why) from error


def _content(path: str) -> str | bytes:
    """Give the nodes names of their own where that is possible: ONNX Runtime refuses equal ones, TensorRT does not."""
    try:
        from .graph import PROTOBUF_LIMIT_BYTES, load, name_nodes
    except ImportError:
        return path
    model = load(path)
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > PROTOBUF_LIMIT_BYTES:
        return path
    name_nodes(model.graph)
    content: bytes = model.SerializeToString()
    return content


def _as_type(values: np.ndarray, wanted: str) -> np.ndarray:
    return values.astype("float32") if wanted == "tensor(float)" else values
