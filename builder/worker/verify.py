"""Stage `verify`: the lowered model on the CPU against its reference, at every shape that the recipe names."""

from __future__ import annotations

import os
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort

from . import blame, suggest
from .emulate import emulated
from .graph import PROTOBUF_LIMIT_BYTES, describe, load, name_nodes
from .inputs import Case, cases, make_all, outside_cases, static_outside_cases
from .metrics import breaches, compare, headroom, limits_of
from .protocol import Outcome, StageFailure, did_you_mean

if TYPE_CHECKING:
    from .protocol import Job

Arrays = dict[str, np.ndarray]
# Failures that keeping nodes in FP32 may mend.
ADVISABLE = ("numerics-nonfinite", "numerics-tolerance")
METHODS = {
    "fp32": "ONNX Runtime on the CPU, FP32",
    "tf32": "ONNX Runtime on the CPU, operands of products rounded to TF32",
    "fp16": "ONNX Runtime on the CPU, every FP16 value rounded, sums in FP32",
    "bf16": "ONNX Runtime on the CPU, every BF16 value rounded, sums in FP32",
}


def run(job: Job) -> Outcome:
    """Verify an engine on the GPU; without an engine among the inputs, the lowered model on the CPU.

    Raises:
        StageFailure: numerics-nonfinite, numerics-tolerance, profile-invalid, input-invalid, model-invalid; for an
            engine also gpu-needed, engine-invalid, engine-version, sm-mismatch, library-missing, out-of-memory.

    """
    started = time.monotonic()
    on_gpu = "engine" in job.inputs
    if job.precision not in METHODS and not on_gpu:
        return _nothing(job)
    lowered = onnx.load(job.inputs["lowered"])
    verification = Verification(job, lowered, _engine(job, lowered) if on_gpu else OnCpu(job, lowered))
    results = [verification.check_or_advise(case) for case in cases(job.profiles)]
    beyond = outside_cases(job.profiles) or (static_outside_cases(job.profiles) if on_gpu else [])
    outside = [verification.look_outside(case) for case in beyond]
    data = {
        "engine_verified": on_gpu,
        "engine_reason": None if on_gpu else job.params.get("engine_reason", "no GPU"),
        "method": verification.candidate.method,
        "reference": "framework" if verification.recorded else "onnxruntime-fp32",
        "cases": results,
        "outside": outside,
        "worst": verification.worst(results),
        "seconds": round(time.monotonic() - started, 3),
    }
    return Outcome({}, data)


class Candidate(Protocol):
    """What is verified."""

    method: str
    outputs: list[str]
    # whether there is something to learn from running it outside its shape profiles
    runs_outside: bool

    def run(self, case: Case, feeds: Arrays) -> Arrays:
        """Compute the outputs at one shape; anything that is raised means that the shape is not taken."""

    def accepts(self, case: Case) -> list[str]:
        """Name the shape profiles that take a shape which none should take."""

    def blame(self, case: Case, output: str, metrics: dict[str, Any], feeds: Arrays) -> StageFailure | None:
        """Name the layer at fault where that is not the lowered graph's; None leaves it to the graph."""


class OnCpu:
    """The lowered model on ONNX Runtime, with the rounding of its precision."""

    runs_outside = True

    def __init__(self, job: Job, lowered: onnx.ModelProto) -> None:
        self.method = METHODS[job.precision]
        self._profiles = job.params["engine_profiles"]
        self._session = session(emulated(lowered, job.precision), job.params.get("threads"))
        self.outputs = [value.name for value in self._session.get_outputs()]

    def run(self, case: Case, feeds: Arrays) -> Arrays:
        """Run on the CPU."""
        del case
        return run_session(self._session, feeds)

    def accepts(self, case: Case) -> list[str]:
        """Look into the profiles that TensorRT read back."""
        return [str(profile["name"]) for profile in self._profiles if _takes(profile, case)]

    def blame(self, case: Case, output: str, metrics: dict[str, Any], feeds: Arrays) -> StageFailure | None:
        """Nothing but the lowered graph has run."""
        del case, output, metrics, feeds
        return None


class Verification:
    """Candidate and reference of one run."""

    def __init__(self, job: Job, lowered: onnx.ModelProto, candidate: Candidate) -> None:
        self.job, self.lowered = job, lowered
        self.candidate = candidate
        self.tolerance = job.params["tolerance"]
        self.recorded: Arrays | None = None
        if "reference" in job.inputs:
            with np.load(job.inputs["reference"], allow_pickle=False) as archive:
                self.recorded = dict(archive)
        threads = job.params.get("threads")
        if self.recorded is None:
            _require_types(job.params["inputs"], lowered)
        self.source = session(_named(job.inputs["model"]), threads) if self.recorded is None else None
        self.outputs = candidate.outputs
        for name in self.tolerance["outputs"]:
            if name not in self.outputs:
                what = f"the recipe has a tolerance for output {name}, which the model does not have"
                fix = f"the model's outputs: {', '.join(self.outputs)}{did_you_mean(name, self.outputs)}"
                raise StageFailure("input-invalid", what, fix=fix)

    def check_or_advise(self, case: Case) -> dict[str, Any]:
        """Compare at one shape; where the recipe wishes it, a breach names the nodes to keep in FP32."""
        try:
            return self.check(case)
        except StageFailure as failure:
            if failure.reason not in ADVISABLE or not self.job.params.get("auto_fp32"):
                raise
            raise suggest.advise(failure, self.job, self._reference(case)[0], self.judge) from failure

    def judge(self, lowered: onnx.ModelProto) -> dict[str, Any] | None:
        """Verify another lowering on the CPU; return the metric closest to its limit, None for a breach."""
        candidate = OnCpu(self.job, lowered)
        results = []
        for case, feeds, reference in self._references:
            got = candidate.run(case, feeds)
            outputs = {name: compare(reference[name], got[name]) for name in self.outputs}
            if any(self._is_off(name, metrics) for name, metrics in outputs.items()):
                return None
            results.append({"profile": case.profile, "point": case.point, "outputs": outputs})
        return self.worst(results) or {}

    def check(self, case: Case) -> dict[str, Any]:
        """Compare all outputs at one shape."""
        feeds, reference = self._reference(case)
        try:
            got = self.candidate.run(case, feeds)
        except StageFailure:
            raise
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise _cannot_take(case, error) from error
        result: dict[str, Any] = {"profile": case.profile, "point": case.point, "outputs": {}, "ok": True}
        result["shapes"] = {name: list(shape) for name, shape in case.shapes.items()}
        for name in self.outputs:
            metrics = compare(reference[name], got[name])
            found = breaches(metrics, limits_of(self.tolerance, name))
            if metrics["nonfinite"] or found:
                fault = self.candidate.blame(case, name, metrics, feeds)
                if fault is not None:
                    raise fault
            if metrics["nonfinite"]:
                raise blame.nonfinite(self.lowered, self.job, case, name, metrics["nonfinite"], feeds)
            if found:
                raise blame.tolerance(self.lowered, self.job, case, name, found, metrics, feeds)
            result["outputs"][name] = {**metrics, "ok": True}
        return result

    def look_outside(self, case: Case) -> dict[str, Any]:
        """See what the graph does just outside; the engine must not take the shape at all."""
        accepted = self.candidate.accepts(case)
        if accepted:
            raise StageFailure(
                "profile-invalid",
                f"the engine would accept {_shapes(case)}, which lies outside shape profile {case.profile}",
                why=f"TensorRT's shape profiles that contain it: {', '.join(accepted)}",
                fix="report it: the shape profiles were not built as the recipe says",
            )
        state, detail = self._behaviour(case) if self.candidate.runs_outside else ("not run", "the engine refuses it")
        shapes = {name: list(shape) for name, shape in case.shapes.items()}
        return {
            "profile": case.profile,
            "point": case.point,
            "shapes": shapes,
            "graph": state,
            "excluded_by_profile": True,
            "detail": detail,
        }

    def worst(self, results: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Find the metric closest to its limit."""
        best: dict[str, Any] | None = None
        for result in results:
            for name, metrics in result["outputs"].items():
                for metric, limit in limits_of(self.tolerance, name).items():
                    room = headroom(metric, metrics[metric], limit)
                    if best is None or room < (best["headroom"] or float("inf")):
                        best = {
                            "case": f"{result['profile']}/{result['point']}",
                            "output": name,
                            "metric": metric,
                            "value": metrics[metric],
                            "limit": limit,
                            # JSON knows no infinity: null is an error of exactly zero
                            "headroom": room if np.isfinite(room) else None,
                        }
        return best

    def _is_off(self, output: str, metrics: dict[str, Any]) -> bool:
        return bool(metrics["nonfinite"] or breaches(metrics, limits_of(self.tolerance, output)))

    @cached_property
    def _references(self) -> list[tuple[Case, Arrays, Arrays]]:
        """All cases with inputs and reference, for the many lowerings that `judge` may be asked about."""
        return [(case, *self._reference(case)) for case in cases(self.job.profiles)]

    def _reference(self, case: Case) -> tuple[Arrays, Arrays]:
        if self.recorded is not None:
            feeds, outputs = _recorded(self.recorded, case)
            if not outputs:
                raise StageFailure(
                    "profile-invalid",
                    f"the framework model does not take {_shapes(case)}",
                    fix=f"change shape profile {case.profile} to what the model can take",
                )
        else:
            feeds = make_all(self.job.params["inputs"], case)
            try:
                outputs = run_session(self.source, feeds)
            except Exception as error:  # ONNX Runtime's errors share no public base class
                raise _cannot_take(case, error) from error
        for name, values in outputs.items():
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise StageFailure(
                    "input-invalid",
                    f"the reference itself has inf or NaN in output {name} at {case.name}",
                    why="no tolerance can be judged against it",
                    fix="choose input values in the recipe that the model can take",
                )
        return feeds, outputs

    def _behaviour(self, case: Case) -> tuple[str, str]:
        try:
            if self.recorded is not None:
                feeds, reference = _recorded(self.recorded, case)
                if not reference:
                    return "refuses", "the framework model does not take this shape"
            else:
                feeds = make_all(self.job.params["inputs"], case)
                reference = run_session(self.source, feeds)
            got = self.candidate.run(case, feeds)
        except Exception as error:  # noqa: BLE001  (refusing is a fine answer here)
            return "refuses", str(error).strip().splitlines()[0][:300]
        for name in self.outputs:
            if self._is_off(name, compare(reference[name], got[name])):
                return "differs", f"output {name} is outside its tolerance"
        return "agrees", ""


def _nothing(job: Job) -> Outcome:
    """Say that nothing was compared: the ranges of int8 are in the engine alone, not in the graph."""
    data = {
        "engine_verified": False,
        "engine_reason": f"{job.precision} cannot be emulated on the CPU, and there was no GPU to run the engine on",
        "method": None,
        "reference": None,
        "cases": [],
        "outside": [],
        "worst": None,
        "seconds": 0.0,
    }
    return Outcome({}, data)


def _engine(job: Job, lowered: onnx.ModelProto) -> Candidate:
    # TensorRT is not in every environment that verifies
    from .on_gpu import OnGpu

    return OnGpu(job, lowered)


def _named(path: str) -> onnx.ModelProto | str:
    """Give the nodes names of their own: ONNX Runtime refuses what TensorRT takes. Models with outside weights stay."""
    model = load(path)
    if (
        os.path.exists(path + ".data")
        or sum(len(tensor.raw_data) for tensor in model.graph.initializer) > PROTOBUF_LIMIT_BYTES
    ):
        return path
    name_nodes(model.graph)
    return model


def session(model: onnx.ModelProto | str, threads: int | None = None) -> ort.InferenceSession:
    """Open a model on the CPU; without a number of threads, with one per processor."""
    # nobody asked for a report to its makers
    ort.disable_telemetry_events()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or len(os.sched_getaffinity(0))
    # two jobs may run at once: a waiting thread must not burn the other's time
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = model if isinstance(model, str) else model.SerializeToString()
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no public base class
        raise StageFailure(
            "model-invalid", "ONNX Runtime cannot load the model", why=str(error).strip()[:1000]
        ) from error


def run_session(opened: ort.InferenceSession, feeds: Arrays) -> Arrays:
    """Run a session; inputs are cast to the types that it wants."""
    wanted = {value.name: value.type for value in opened.get_inputs()}
    ready = {name: _as_type(values, wanted[name]) for name, values in feeds.items() if name in wanted}
    names = [value.name for value in opened.get_outputs()]
    return dict(zip(names, opened.run(names, ready)))


def _as_type(values: np.ndarray, wanted: str) -> np.ndarray:
    return values.astype(np.float32) if wanted == "tensor(float)" and values.dtype != np.float32 else values


def _recorded(recorded: Arrays, case: Case) -> tuple[Arrays, Arrays]:
    feeds: Arrays = {}
    outputs: Arrays = {}
    for key, values in recorded.items():
        name, role, tensor = key.split("|", 2)
        if name == case.name:
            (feeds if role == "in" else outputs)[tensor] = values
    return feeds, outputs


def _takes(profile: dict[str, Any], case: Case) -> bool:
    return all(
        len(shape) == len(profile["inputs"][name]["min"])
        and all(
            low <= size <= high
            for low, size, high in zip(profile["inputs"][name]["min"], shape, profile["inputs"][name]["max"])
        )
        for name, shape in case.shapes.items()
    )


def _require_types(specs: dict[str, Any], lowered: onnx.ModelProto) -> None:
    # lowering keeps the types of inputs and outputs; a cast would hide that the recipe speaks of another input
    for given in map(describe, lowered.graph.input):
        said = specs[given.name]["dtype"] if given.name in specs else given.dtype
        if said != given.dtype:
            what = f"input {given.name} is {given.dtype} in the graph, the recipe says {said}"
            raise StageFailure("input-invalid", what, fix=f"dtype: {given.dtype} under inputs.{given.name}")


def _cannot_take(case: Case, error: Exception) -> StageFailure:
    return StageFailure(
        "profile-invalid",
        f"the graph cannot take {_shapes(case)} ({case.point} of shape profile {case.profile})",
        why=str(error).strip()[:1000],
        fix="change the shape profile, or the values of the inputs, to what the graph allows",
    )


def _shapes(case: Case) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in case.shapes.items())
