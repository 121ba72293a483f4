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
TIMING_CACHE = "out/timing.cache"


def run(job: Job) -> Outcome:
    """Build the engine; where that makes its bytes repeat, in a process whose memory layout does.

    Raises:
        StageFailure: what TensorRT refuses, with its own words.

    """
    request = read_request(job)
    if request.family == "rtx":
        addresses.prepare()
    data = adapter(request.family).build(request, job.inputs["lowered"], ENGINE)
    outputs = {"engine": ENGINE}
    if os.path.exists(TIMING_CACHE):
        outputs["timing_cache"] = TIMING_CACHE
    return Outcome(outputs, data)
