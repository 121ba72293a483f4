"""Stage `outputs`: engines of one model run on the same inputs, and how far apart what they compute is."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import numpy as np

from .cuda import Cuda
from .inputs import cases, make_all
from .metrics import breaches, compare, limits_of
from .protocol import Outcome, StageFailure
from .refitted import loadable
from .trt import adapter, read_request

if TYPE_CHECKING:
    from .inputs import Case
    from .protocol import Job
    from .trt.engine import Engine

Arrays = dict[str, np.ndarray]
REBUILT = "rebuilt_"


def run(job: Job) -> Outcome:
    """Run `engine` and each `rebuilt_<n>` of the inputs at every shape to be verified, one engine at a time.

    The data say per rebuilt engine, in the order of their numbers, whether all outputs are `equal` bit for bit, whether
    all differences are `within` the tolerance, and the largest difference of each output. `repeats` is false where the
    engine's own outputs differ from one run to the next.

    Raises:
        StageFailure: gpu-needed, engine-invalid, engine-version, sm-mismatch, library-missing, out-of-memory,
            profile-invalid, input-invalid.

    """
    request, cuda = read_request(job), Cuda()
    found = adapter(request.family)
    feeds = _feeds(job)
    index = {profile.name: number for number, profile in enumerate(job.profiles)}
    engine = found.load(request, cuda, loadable(job, request))
    reference = _run(engine, index, feeds)
    repeats = _equal(reference, _run(engine, index, feeds))
    rebuilt = []
    for name in sorted((name for name in job.inputs if name.startswith(REBUILT)), key=_number):
        # two engines at once might not fit into the GPU's memory
        engine.close()
        gc.collect()
        engine = found.load(request, cuda, loadable(job, request, name))
        rebuilt.append(_difference(reference, _run(engine, index, feeds), job.params["tolerance"]))
    data = {"device": cuda.device.name, "cases": [case.name for case, _ in feeds], "repeats": repeats}
    return Outcome({}, {**data, "rebuilt": rebuilt})


def _feeds(job: Job) -> list[tuple[Case, Arrays]]:
    """Make the inputs of every case; those of a framework's model were recorded when it was exported."""
    if "reference" not in job.inputs:
        return [(case, make_all(job.params["inputs"], case)) for case in cases(job.profiles)]
    recorded: dict[str, Arrays] = {}
    with np.load(job.inputs["reference"], allow_pickle=False) as archive:
        for key in archive.files:
            name, role, tensor = key.split("|", 2)
            if role == "in":
                recorded.setdefault(name, {})[tensor] = archive[key]
    for case in cases(job.profiles):
        if case.name not in recorded:
            raise StageFailure(
                "input-invalid", f"no inputs were recorded for {case.name}", fix="export the model again"
            )
    return [(case, recorded[case.name]) for case in cases(job.profiles)]


def _run(engine: Engine, index: dict[str, int], feeds: list[tuple[Case, Arrays]]) -> dict[str, Arrays]:
    return {case.name: engine.run(index[case.profile], arrays) for case, arrays in feeds}


def _difference(reference: dict[str, Arrays], other: dict[str, Arrays], tolerance: dict[str, Any]) -> dict[str, Any]:
    within = True
    worst: dict[str, dict[str, Any]] = {}
    for case, outputs in reference.items():
        for name, values in outputs.items():
            metrics = compare(values, other[case][name])
            within &= not breaches(metrics, limits_of(tolerance, name))
            if name not in worst or _size(metrics) > _size(worst[name]):
                worst[name] = {"case": case, **metrics}
    equal = _equal(reference, other)
    # equal infinities have no distance, and are no difference either
    return {"equal": equal, "within": equal or within, "outputs": worst}


def _equal(reference: dict[str, Arrays], other: dict[str, Arrays]) -> bool:
    return all(
        values.dtype == other[case][name].dtype
        and values.shape == other[case][name].shape
        and values.tobytes() == other[case][name].tobytes()
        for case, outputs in reference.items()
        for name, values in outputs.items()
    )


def _size(metrics: dict[str, Any]) -> float:
    # what cannot be measured, such as a NaN, is worse than any figure
    return float("inf") if metrics["max_abs"] is None else float(metrics["max_abs"])


def _number(name: str) -> int:
    return int(name[len(REBUILT) :])
