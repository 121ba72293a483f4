"""Stage `export`: a PyTorch model becomes canonical ONNX, with the framework's own FP32 answers beside it.

The only stage in which a recipe's code runs.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import os
import random
import sys
import traceback
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import canonical
from .inputs import Case, cases, make_all, outside_cases
from .protocol import Outcome, StageFailure, did_you_mean

if TYPE_CHECKING:
    from types import ModuleType

    from .protocol import Job

Arrays = dict[str, np.ndarray]
RECIPE_DIR = "in/recipe_dir"
# More weights than these would take too much time and memory in FP64.
FP64_PARAMETERS = 60_000_000
MODEL, REFERENCE = "out/model.onnx", "out/reference.npz"


def run(job: Job) -> Outcome:
    """Export a model and record its outputs.

    Raises:
        StageFailure: export-failed, weights-invalid, input-invalid.

    """
    settings = job.params["export"]
    _make_deterministic(job.params["weights"].get("seed", 0))
    module = _load_module(job.params["entry"])
    model = _build(module, job.params["entry"])
    if job.params["weights"]["kind"] == "pretrained":
        _load_weights(module, model, job.inputs["weights"])
    model = model.float().eval()
    every = cases(job.profiles)
    opt = next(case for case in every if case.point in ("opt", "min"))
    example = make_all(job.params["inputs"], next((case for case in every if case.point == "opt"), opt))
    reference, refused, wide = _reference(model, job, every)
    canonical.write(_export(model, settings, example), settings, job.profiles, MODEL)
    _write_reference(reference)
    data = {
        "opset": settings["opset"],
        "exporter": settings["exporter"],
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "reference_precision": "fp64" if wide else "fp32",
        "reference_cases": sorted({key.split("|", 1)[0] for key in reference}),
        "refused_cases": refused,
    }
    outputs = {"model": MODEL, "reference": REFERENCE}
    if os.path.exists(MODEL + ".data"):
        outputs["external"] = MODEL + ".data"
    return Outcome(outputs, data)


def _make_deterministic(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (for model code that draws from it)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(mode=True)
    torch.set_grad_enabled(False)


def _load_module(entry: str) -> ModuleType:
    path = os.path.join(RECIPE_DIR, entry.rpartition(":")[0])
    sys.dont_write_bytecode = True
    sys.path.insert(0, os.path.abspath(os.path.dirname(path)))
    spec = importlib.util.spec_from_file_location("enginefarm_recipe", path)
    if spec is None or spec.loader is None or not os.path.exists(path):
        raise StageFailure("export-failed", f"{entry}: there is no such file in the recipe's folder")
    module = importlib.util.module_from_spec(spec)
    # dataclasses and pickling look the module up by name
    sys.modules["enginefarm_recipe"] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _blame(f"{entry} cannot be loaded", error) from error
    return module


def _build(module: ModuleType, entry: str) -> torch.nn.Module:
    name = entry.rpartition(":")[2]
    function = getattr(module, name, None)
    if function is None:
        known = [item for item in vars(module) if callable(getattr(module, item)) and not item.startswith("_")]
        raise StageFailure("export-failed", f"{entry}: no function {name}{did_you_mean(name, known)}")
    try:
        model = function()
    except Exception as error:
        raise _blame(f"{entry} failed", error) from error
    if not isinstance(model, torch.nn.Module):
        raise StageFailure("export-failed", f"{entry} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _load_weights(module: ModuleType, model: torch.nn.Module, path: str) -> None:
    load = getattr(module, "load_weights", None)
    try:
        if load is not None:
            load(model, path)
        else:
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    except RuntimeError as error:
        # load_state_dict lists missing and unexpected keys and wrong shapes
        raise StageFailure("weights-invalid", "the weights do not fit the model", why=str(error)[:4000]) from error
    except Exception as error:
        raise StageFailure(
            "weights-invalid", "the weights file cannot be read", why=f"{type(error).__name__}: {error}"[:4000]
        ) from error


def _export(model: torch.nn.Module, settings: dict[str, Any], example: Arrays) -> str:
    arguments = tuple(torch.from_numpy(example[name]) for name in settings["input_names"])
    target = "out/exported.onnx"
    common: dict[str, Any] = {
        "input_names": settings["input_names"],
        "output_names": settings["output_names"],
        "opset_version": settings["opset"],
    }
    axes = {
        name: {int(axis): symbol for axis, symbol in table.items()} for name, table in settings["dynamic_axes"].items()
    }
    try:
        if settings["exporter"] == "torchscript":
            torch.onnx.export(model, arguments, target, dynamo=False, dynamic_axes=axes, **common)
        else:
            shapes = tuple(_dynamic_shape(axes.get(name, {})) for name in settings["input_names"])
            program = torch.onnx.export(model, arguments, dynamo=True, dynamic_shapes=shapes, verbose=False, **common)
            program.save(target)
    except Exception as error:
        raise _blame(f"PyTorch's {settings['exporter']} exporter failed", error) from error
    return target


def _dynamic_shape(axes: dict[int, str]) -> dict[int, Any]:
    return dict.fromkeys(axes, torch.export.Dim.DYNAMIC)


def _reference(model: torch.nn.Module, job: Job, every: list[Case]) -> tuple[Arrays, list[str], bool]:
    """Run the model at every shape; return inputs and outputs, the refused cases, and whether FP64 did the work."""
    recorded: Arrays = {}
    refused: list[str] = []
    exact = _doubled(model)
    names = job.params["export"]["output_names"]
    for case in [*every, *outside_cases(job.profiles)]:
        feeds = make_all(job.params["inputs"], case)
        inside = case in every
        arrays = [feeds[name] for name in job.params["export"]["input_names"]]
        try:
            made = _flatten(model(*map(torch.from_numpy, arrays)))
            if exact is not None and inside:
                wide = _in_fp64(exact, arrays, made)
                made, exact = (made, None) if wide is None else (wide, exact)
        except Exception as error:
            if inside:
                raise _blame(f"the model does not take its inputs at {case.name}", error) from error
            refused.append(case.name)
            continue
        if len(made) != len(names):
            raise StageFailure("export-failed", f"the model gives {len(made)} outputs, output_names has {len(names)}")
        for name, values in zip(names, made):
            if inside and values.is_floating_point() and not bool(torch.isfinite(values).all()):
                raise StageFailure(
                    "input-invalid",
                    f"the framework model itself gives inf or NaN in output {name} at {case.name}",
                    why="no tolerance can be judged against it",
                    fix="choose input values in the recipe that the model can take",
                )
            recorded[f"{case.name}|out|{name}"] = values.detach().numpy()
        recorded.update({f"{case.name}|in|{name}": values for name, values in feeds.items()})
    return recorded, refused, exact is not None


def _doubled(model: torch.nn.Module) -> torch.nn.Module | None:
    """Copy a model in FP64, where that is cheap: then its own rounding is no part of the errors of engines."""
    if sum(parameter.numel() for parameter in model.parameters()) > FP64_PARAMETERS:
        return None
    return copy.deepcopy(model).double()


def _in_fp64(exact: torch.nn.Module, feeds: list[np.ndarray], made: list[torch.Tensor]) -> list[torch.Tensor] | None:
    """Run in FP64 and round to the types of `made`; None for a model that makes FP32 values of its own."""
    wide = [torch.from_numpy(array.astype(np.float64) if array.dtype == np.float32 else array) for array in feeds]
    try:
        found = _flatten(exact(*wide))
    except Exception:  # noqa: BLE001  (the model's own code: FP32 has to do then)
        return None
    if [tuple(value.shape) for value in found] != [tuple(value.shape) for value in made]:
        return None
    return [value.to(like.dtype) for value, like in zip(found, made)]


def _flatten(result: Any) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result]
    if isinstance(result, dict):
        return [tensor for item in result.values() for tensor in _flatten(item)]
    if isinstance(result, (tuple, list)):
        return [tensor for item in result for tensor in _flatten(item)]
    if hasattr(result, "__dataclass_fields__"):
        return [tensor for name in result.__dataclass_fields__ for tensor in _flatten(getattr(result, name))]
    return []


def _write_reference(arrays: Arrays) -> None:
    """Write an .npz with the same bytes for the same arrays: numpy's own puts the clock into it."""
    with zipfile.ZipFile(REFERENCE, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), content.getvalue())


def _blame(what: str, error: BaseException) -> StageFailure:
    """Name the user's own lines: frames of the recipe's folder only."""
    folder = os.path.abspath(RECIPE_DIR)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if os.path.abspath(f.filename).startswith(folder)]
    lines = [f"{os.path.relpath(f.filename, folder)}:{f.lineno} in {f.name}: {f.line}" for f in frames[-3:]]
    message = str(error).strip()[:3000]
    return StageFailure("export-failed", what, why="\n".join([*lines, f"{type(error).__name__}: {message}"]))
