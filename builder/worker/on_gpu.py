"""An engine on the GPU, for verification."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .blame_engine import Finding, explain
from .cuda import Cuda
from .emulate import emulated
from .metrics import breaches, compare, limits_of
from .refitted import loadable
from .trt import adapter, gpu_adapter, read_request
from .verify import run_session, session

if TYPE_CHECKING:
    import onnx

    from .blame_engine import RunDebug
    from .inputs import Case
    from .protocol import Job, StageFailure

Arrays = dict[str, np.ndarray]
DEBUG_ENGINE = "out/debug.plan"


class OnGpu:
    """The engine itself."""

    runs_outside = False

    def __init__(self, job: Job, lowered: onnx.ModelProto) -> None:
        """Load the engine.

        Raises:
            StageFailure: as `trt.engine.Engine`.

        """
        self._job, self._lowered = job, lowered
        self._request = read_request(job)
        self._cuda = Cuda()
        self._adapter = adapter(self._request.family)
        self._engine = self._adapter.load(self._request, self._cuda, loadable(job, self._request))
        self._index = {profile.name: index for index, profile in enumerate(job.profiles)}
        device = self._cuda.device
        self.method = f"the engine on {device.name}, SM {device.sm}"
        self.outputs = self._engine.outputs

    def run(self, case: Case, feeds: Arrays) -> Arrays:
        """Run the engine."""
        return self._engine.run(self._index[case.profile], feeds)

    def accepts(self, case: Case) -> list[str]:
        """Ask TensorRT, profile by profile."""
        return [name for name, index in self._index.items() if self._engine.accepts(index, dict(case.shapes))]

    def blame(self, case: Case, output: str, metrics: dict[str, Any], feeds: Arrays) -> StageFailure | None:
        """Name the layer at fault where the lowered graph itself would pass: then TensorRT made the difference."""
        wanted = run_session(session(emulated(self._lowered, self._job.precision, rounding=False)), feeds)
        emulation = run_session(session(emulated(self._lowered, self._job.precision)), feeds)
        limits = limits_of(self._job.params["tolerance"], output)
        same = compare(wanted[output], emulation[output])
        if same["nonfinite"] or breaches(same, limits):
            return None
        finding = Finding(case, output, breaches(metrics, limits), metrics, feeds)
        return explain(self._lowered, self._job, finding, self._debug(feeds, case))

    def _debug(self, feeds: Arrays, case: Case) -> RunDebug:
        # it is looked into here and goes nowhere: it may keep its weights
        request = self._request._replace(options=self._request.options._replace(strip_weights=False))

        def run(tensors: list[str]) -> Arrays:
            gpu_adapter(request.family).build_debug(request, self._job.inputs["lowered"], DEBUG_ENGINE, tensors)
            engine = self._adapter.load(request, self._cuda, DEBUG_ENGINE)
            try:
                return engine.run(self._index[case.profile], feeds)
            finally:
                # the next one is larger, and the engine itself stays
                engine.close()

        return run
