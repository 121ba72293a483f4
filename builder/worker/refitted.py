"""An engine's file as it can be loaded: one that was built without its weights gets them first."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING

from .cuda import Cuda
from .protocol import StageFailure
from .trt.loading import check_header, deserialize, load_failure, refusal
from .trt.refit import refit
from .trt.session import Log

if TYPE_CHECKING:
    from .protocol import Job
    from .trt import Request

REFITTED = "out/refitted.plan"


def loadable(job: Job, request: Request, role: str = "engine") -> str:
    """Return the file of the engine `role` with its weights: its own, or another that is good until the next call.

    Weights come from the stage's input `lowered`.

    Raises:
        StageFailure: weights-invalid where the weights are missing; as `trt.engine.Engine` and `refit`.

    """
    path = job.inputs[role]
    if not request.options.strip_weights:
        return path
    if "lowered" not in job.inputs:
        what = "the engine was built without its weights, and they are not beside it"
        raise StageFailure("weights-invalid", what, fix="build it again")
    cuda = Cuda()
    try:
        trt = importlib.import_module(request.import_name)
    except ImportError as error:
        fix = "build the image of the stack again"
        raise StageFailure("library-missing", "TensorRT does not load", why=str(error), fix=fix) from error
    log = Log(trt)
    trt.init_libnvinfer_plugins(log.logger, "")
    check_header(trt, path, version_compatible=request.options.version_compatible)
    content, model = _read(path), job.inputs["lowered"]
    runtime, engine = deserialize(trt, log.logger, content)
    if engine is None:
        raise refusal(trt, log.errors, content, cuda.device.sm)
    refit(trt, log.logger, lambda: list(log.errors), engine, _read(model), os.path.abspath(model))
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    whole = engine.serialize_with_config(config)
    if whole is None:
        raise load_failure(log.errors, "TensorRT cannot write the engine with its weights")
    with open(REFITTED, "wb") as file:
        file.write(whole)
    # the runtime has to outlive its engine
    del config, engine, runtime
    return REFITTED


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
