"""Stage build: a lowered ONNX file becomes an engine. Imports nothing but TensorRT: its time is the build's."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from . import addresses
from .protocol import Outcome
from .trt import adapter, read_request

if TYPE_CHECKING:
    from .protocol import Job

ENGINE = "out/model.plan"
CACHES = {"timing_cache": "out/timing.cache", "calibration_cache": "out/calibration.cache"}


def run(job: Job) -> Outcome:
    """Build the engine; where that makes its bytes repeat, in a process whose memory layout does.

    Raises:
        StageFailure: what TensorRT refuses, with its own words.

    """
    request = read_request(job)
    if request.family == "rtx":
        addresses.prepare()
    data = adapter(request.family).build(request, job.inputs["lowered"], ENGINE)
    left = {role: path for role, path in CACHES.items() if os.path.exists(path)}
    return Outcome({"engine": ENGINE, **left}, data)
