"""Stage build: a lowered ONNX file becomes an engine. Imports nothing but TensorRT: its time is the build's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import addresses
from .protocol import Outcome
from .trt import adapter, read_request

if TYPE_CHECKING:
    from .protocol import Job

ENGINE = "out/model.plan"


def run(job: Job) -> Outcome:
    """Build the engine, in a process whose memory layout repeats.

    Raises:
        StageFailure: what TensorRT refuses, with its own words.

    """
    addresses.prepare()
    request = read_request(job)
    data = adapter(request.family).build(request, job.inputs["lowered"], ENGINE)
    return Outcome({"engine": ENGINE}, data)
