"""The command lines of NVIDIA's own tool that do what a job does, so that people can check the farm. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from builder.errors import EnginefarmError, Reason
from builder.features import RTX, features_of
from builder.plan import Catalogue, Job, make_plan
from builder.recipe import COMPATIBILITY, InputShapes, PrecisionSettings, Recipe, ShapeProfile
from builder.stacks import Stack

MODEL = "lowered.onnx"
WARM_UP_MS = 500
INT8 = "int8"
_LEVELS = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tool:
    """How the tool of a family is spoken to. `several_profiles`: it takes more than one shape profile.

    `building`, `timing`: what the farm does and the tool does not by itself.
    """

    program: str = "trtexec"
    several_profiles: bool = True
    building: tuple[str, ...] = ("--profilingVerbosity=detailed",)
    timing: tuple[str, ...] = ()


_TOOLS = {
    "trt8": _Tool(several_profiles=False, timing=("--useCudaGraph", "--noDataTransfers")),
    "trt10": _Tool(
        building=("--stronglyTyped", "--profilingVerbosity=detailed"), timing=("--useCudaGraph", "--noDataTransfers")
    ),
    # CUDA graphs, and no transfers, are what these do unless told otherwise
    "trt11": _Tool(),
    RTX: _Tool(program="tensorrt_rtx", building=()),
}


def find_job(catalogue: Catalogue, job_id: str) -> tuple[Job, Recipe, Stack]:
    """Find a job by its id among all that can be planned, those of other compatibility than the recipe's included.

    Raises:
        EnginefarmError: NAME_UNKNOWN, with the nearest ids.

    """
    jobs = {job.id: job for level in (None, *COMPATIBILITY) for job in make_plan(catalogue, (), level).jobs}
    if job_id not in jobs:
        near = difflib.get_close_matches(job_id, jobs, n=3)
        fix = f"did you mean {' or '.join(near)}?" if near else "`enginefarm plan` lists jobs and what is refused"
        raise EnginefarmError(Reason.NAME_UNKNOWN, f"there is no job {job_id!r}", fix=fix)
    job = jobs[job_id]
    return job, catalogue.recipes[job.recipe], next(one for one in catalogue.stacks if one.name == job.stack)


def trtexec_command(
    job: Job, recipe: Recipe, stack: Stack, *, model: str = MODEL, kept_fp32: Sequence[str] | None = None
) -> list[list[str]]:
    """Return the command that builds the job's engine, then one per shape profile that times it.

    `model` is the lowered graph; `kept_fp32` are the nodes that lowering left in FP32, by default those that the recipe
    names. A stripped engine is not timed: it has no weights.
    """
    family, options, tool = stack.build.family, recipe.build, _TOOLS[stack.build.family]
    engine = f"{job.id}.plan"
    kept = kept_fp32 if kept_fp32 is not None else _settings(job, recipe).keep_fp32.nodes
    build = [tool.program, f"--onnx={model}", f"--saveEngine={engine}", *_profile_arguments(recipe, tool)]
    build += _int8_arguments(job, kept) if job.precision == INT8 else _precision_arguments(job.precision, family, kept)
    # a calibrator wants a weakly typed network
    build += [one for one in tool.building if job.precision != INT8 or one != "--stronglyTyped"]
    build += [f"--computeCapabilities={','.join(sm.replace('.', '') for sm in job.sms)}"] if family == RTX else []
    build += _option_arguments(job, recipe, stack)
    # TensorRT-RTX would look for a GPU to fill it
    build += [f"--timingCacheFile={job.stack}-{_sms(job)}.timing.cache"] if family != RTX else []
    timed = [] if options.strip_weights else recipe.profiles if tool.several_profiles else recipe.profiles[:1]
    return [
        [*build, "--skipInference"],
        *(_timing_command(tool, recipe, engine, index, profile) for index, profile in enumerate(timed)),
    ]


def trtexec_notes(job: Job, recipe: Recipe, stack: Stack) -> list[str]:
    """Say where to run the commands, and in what the tool cannot do as the farm does."""
    family, tool = stack.build.family, _TOOLS[stack.build.family]
    where = "any machine; timing needs a GPU" if family == RTX else f"a GPU of SM {', '.join(job.sms)}"
    product = "TensorRT-RTX" if family == RTX else "TensorRT"
    notes = [f"{tool.program} of {product} {stack.build.tensorrt}, on {where}"]
    if len(recipe.profiles) > 1 and not tool.several_profiles:
        notes.append(f"this tool builds one shape profile: {recipe.profiles[0].name}, of {len(recipe.profiles)}")
    if not _has_ranges(recipe):
        notes.append("all shapes are fixed, so none are given; if axes of the graph are dynamic, add --shapes")
    if family == "trt8" and job.precision == "fp16":
        notes.append("the farm wishes FP16 for layers that multiply and sum, `*` for all; nodes go by name")
    if job.precision == INT8:
        where = f"{_calibration_cache(job)} is calibration.cache in the engine's entry of the farm's store"
        notes.append(f"{where}; without it the tool makes ranges up")
    if "editable_timing_cache" in features_of(family, stack.build.tensorrt) and family != RTX:
        notes.append("the farm's timing caches are editable ones, for which this tool has no option")
    if recipe.build.strip_weights:
        notes.append("an engine without weights cannot be timed before it is refitted")
    return notes


def keeping_command(job: Job, recipe: Recipe) -> list[str]:
    """Return the farm's command that makes the job and leaves the lowered graph behind."""
    command = ["enginefarm", "build", "--keep", "--recipe", job.recipe, "--precision", job.precision]
    command += ["--stack", job.stack, "--target", job.target]
    return command + (
        ["--compat", job.compatibility] if job.compatibility != recipe.build.hardware_compatibility else []
    )


def _sms(job: Job) -> str:
    return "-".join("sm" + sm.replace(".", "") for sm in job.sms)


def _settings(job: Job, recipe: Recipe) -> PrecisionSettings:
    return next(settings for precision, settings in recipe.precisions.items() if precision.value == job.precision)


def _has_ranges(recipe: Recipe) -> bool:
    """Say whether an input has a dynamic axis, as far as a recipe tells; the tool refuses shapes where none has."""
    if recipe.export is not None and recipe.export.dynamic_axes.keys() & set(recipe.export.input_names):
        return True
    return len(recipe.profiles) > 1 or any(
        shapes.min != shapes.max for profile in recipe.profiles for shapes in profile.inputs.values()
    )


def _profile_arguments(recipe: Recipe, tool: _Tool) -> list[str]:
    if not _has_ranges(recipe):
        return []
    profiles = recipe.profiles if tool.several_profiles else recipe.profiles[:1]
    arguments = []
    for index, profile in enumerate(profiles):
        arguments += [f"--profile={index}"] if len(profiles) > 1 else []
        arguments += [
            "--minShapes=" + _shapes((name, shapes.min) for name, shapes in profile.inputs.items()),
            "--optShapes=" + _opt_shapes(profile.inputs),
            "--maxShapes=" + _shapes((name, shapes.max) for name, shapes in profile.inputs.items()),
        ]
    return arguments


def _opt_shapes(inputs: dict[str, InputShapes]) -> str:
    return _shapes((name, shapes.opt) for name, shapes in inputs.items())


def _shapes(shapes: Iterable[tuple[str, list[int]]]) -> str:
    return ",".join(f"{_name(name)}:{'x'.join(map(str, shape))}" for name, shape in shapes)


def _name(name: str) -> str:
    # a colon would end it
    return f"'{name}'" if ":" in name or "," in name else name


def _precision_arguments(precision: str, family: str, kept_fp32: Sequence[str]) -> list[str]:
    # TF32 is on by default and would round the products of an FP32 engine
    arguments = [] if precision == "tf32" else ["--noTF32"]
    if family != "trt8" or precision != "fp16":
        return arguments
    layers = ",".join(["*:fp16", *(f"{_name(node)}:fp32" for node in kept_fp32)])
    return [*arguments, "--fp16", "--precisionConstraints=prefer", f"--layerPrecisions={layers}"]


def _int8_arguments(job: Job, kept_fp32: Sequence[str]) -> list[str]:
    arguments = ["--noTF32", "--int8", "--fp16", f"--calib={_calibration_cache(job)}", "--precisionConstraints=prefer"]
    layers = ",".join(f"{_name(node)}:fp32" for node in kept_fp32)
    return [*arguments, f"--layerPrecisions={layers}"] if layers else arguments


def _calibration_cache(job: Job) -> str:
    return f"{job.id}.calibration.cache"


def _option_arguments(job: Job, recipe: Recipe, stack: Stack) -> list[str]:
    options = recipe.build
    arguments = []
    if options.workspace_mib is not None:
        arguments.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.optimization_level is not None:
        arguments.append(f"--builderOptimizationLevel={options.optimization_level}")
    if job.compatibility != "none":
        arguments.append(f"--hardwareCompatibilityLevel={_LEVELS[job.compatibility]}")
    flags = {
        "--versionCompatible": options.version_compatible,
        "--excludeLeanRuntime": options.version_compatible,
        "--stripWeights": options.strip_weights,
        "--refit": options.refit,
        "--allowWeightStreaming": options.weight_streaming,
    }
    arguments += [flag for flag, asked in flags.items() if asked]
    if options.tactic_sources is not None:
        arguments.append(f"--tacticSources={_tactic_sources(options.tactic_sources, stack)}")
    return arguments


def _tactic_sources(asked: Sequence[str], stack: Stack) -> str:
    """Write a set as what to add to the tool's default and what to take from it."""
    prefix = "tactic_source_"
    known = sorted(
        name.removeprefix(prefix)
        for name in features_of(stack.build.family, stack.build.tensorrt)
        if name.startswith(prefix)
    )
    return ",".join(f"{'+' if name in asked else '-'}{name.upper()}" for name in known)


def _timing_command(tool: _Tool, recipe: Recipe, engine: str, index: int, profile: ShapeProfile) -> list[str]:
    command = [tool.program, f"--loadEngine={engine}"]
    command += [f"--useProfile={index}"] if tool.several_profiles and len(recipe.profiles) > 1 else []
    command += [f"--shapes={_opt_shapes(profile.inputs)}"] if _has_ranges(recipe) else []
    # without a duration of 0 the tool goes on for three seconds
    counted = [f"--warmUp={WARM_UP_MS}", "--duration=0", f"--iterations={recipe.bench.iterations}"]
    return [*command, *tool.timing, *counted]
