"""Command lines of NVIDIA's own tool, per family."""

from __future__ import annotations

import io
from typing import Any

import pytest

from builder.errors import Reason
from builder.known_failures import load_catalogue, recognise
from builder.plan import Catalogue, Job
from builder.recipe import Recipe
from builder.stacks import Stack
from builder.targets import choose_targets, load_precision_floors, load_targets
from builder.trtexec import find_job, keeping_command, trtexec_command, trtexec_notes
from tests.artifacts import refusal
from tests.unit.test_key import stack
from tests.unit.test_plan import recipe

EIGHT: dict[str, Any] = {"family": "trt8", "tensorrt": "8.6.1", "sms": ["9.0"], "grouping": "each"}
TEN: dict[str, Any] = {**EIGHT, "family": "trt10", "tensorrt": "10.16.1.11"}
ELEVEN: dict[str, Any] = {**EIGHT, "family": "trt11", "tensorrt": "11.3.0.99"}
RTX: dict[str, Any] = {"family": "rtx", "tensorrt": "1.7.1.116", "sms": ["8.0", "8.6"]}
SHAPES = {"x": {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}}
FIXED = {"x": {"min": [1, 3], "opt": [1, 3], "max": [1, 3]}}
TWO = [
    {"name": "low", "inputs": SHAPES},
    {"name": "high", "inputs": {"x": {"min": [4, 3], "opt": [8, 3], "max": [9, 3]}}},
]
BUILD = "--minShapes=x:1x3 --optShapes=x:2x3 --maxShapes=x:4x3"


def model(**changes: Any) -> Recipe:
    """Make a recipe with one input and a fixed number of timed runs."""
    plain: dict[str, Any] = {
        "source": {"kind": "onnx", "path": "model.onnx", "sha256": "0" * 64},
        "weights": None,
        "export": None,
        "profiles": [{"inputs": SHAPES}],
        "inputs": {"x": {"values": {"kind": "normal"}}},
        "bench": {"iterations": 50},
    }
    settings = {"tolerance": {"default": {"max_abs": 1.0}}}
    return recipe(**plain | {"precisions": dict.fromkeys(("fp32", "tf32", "fp16", "bf16"), settings)} | changes)


def lines(made: Recipe, on: Stack, precision: str = "fp16", compatibility: str = "none", **more: Any) -> list[str]:
    """Write the commands of a job without the file names."""
    job = Job(
        recipe="model",
        precision=precision,
        stack="s",
        target="t",
        sms=tuple(on.build.sms),
        compatibility=compatibility,
    )
    commands = [" ".join(command) for command in trtexec_command(job, made, on, **more)]
    sms = "-".join("sm" + sm.replace(".", "") for sm in on.build.sms)
    suffix = {"none": "", "ampere_plus": "-ampere-plus", "same_compute_capability": "-same-cc"}[compatibility]
    engine = f"model-{precision}-s-{sms}{suffix}.plan"
    assert commands[0].split()[1:3] == [f"--onnx={more.get('model', 'lowered.onnx')}", f"--saveEngine={engine}"]
    assert all(one.split()[1] == f"--loadEngine={engine}" for one in commands[1:])
    first = commands[0].replace(f" --onnx={more.get('model', 'lowered.onnx')} --saveEngine={engine}", "")
    return [first, *(one.replace(f" --loadEngine={engine}", "") for one in commands[1:])]


SAVED = "--profilingVerbosity=detailed --timingCacheFile=s-sm90.timing.cache --skipInference"
TIMED_8 = "--useCudaGraph --noDataTransfers --warmUp=500 --duration=0 --iterations=50"


@pytest.mark.parametrize(
    ("spec", "precision", "building", "timing"),
    [
        (
            EIGHT,
            "fp16",
            f"trtexec {BUILD} --noTF32 --fp16 --precisionConstraints=prefer --layerPrecisions=*:fp16 {SAVED}",
            f"trtexec --shapes=x:2x3 {TIMED_8}",
        ),
        (
            EIGHT,
            "tf32",
            f"trtexec {BUILD} {SAVED}",
            f"trtexec --shapes=x:2x3 {TIMED_8}",
        ),
        (
            TEN,
            "fp16",
            f"trtexec {BUILD} --noTF32 --stronglyTyped {SAVED}",
            f"trtexec --shapes=x:2x3 {TIMED_8}",
        ),
        (
            TEN,
            "tf32",
            f"trtexec {BUILD} --stronglyTyped {SAVED}",
            f"trtexec --shapes=x:2x3 {TIMED_8}",
        ),
        (
            ELEVEN,
            "bf16",
            f"trtexec {BUILD} --noTF32 {SAVED}",
            "trtexec --shapes=x:2x3 --warmUp=500 --duration=0 --iterations=50",
        ),
        (
            RTX,
            "fp16",
            f"tensorrt_rtx {BUILD} --noTF32 --computeCapabilities=80,86 --skipInference",
            "tensorrt_rtx --shapes=x:2x3 --warmUp=500 --duration=0 --iterations=50",
        ),
    ],
)
def test_commands_of_each_family(spec: dict[str, Any], precision: str, building: str, timing: str) -> None:
    assert lines(model(), stack(**spec), precision) == [building, timing]


@pytest.mark.parametrize("spec", [EIGHT, TEN], ids=["8.6", "10"])
def test_int8_takes_the_farms_calibration(spec: dict[str, Any]) -> None:
    settings = {"tolerance": {"default": {"cosine": 0.9}}}
    made, on = model(precisions={"int8": settings}), stack(**spec)
    calib = "--calib=model-int8-s-sm90.calibration.cache"
    wanted = f"trtexec {BUILD} --noTF32 --int8 --fp16 {calib} --precisionConstraints=prefer {SAVED}"
    assert lines(made, on, "int8")[0] == wanted
    kept = lines(made, on, "int8", kept_fp32=["a", "b:0"])[0]
    assert " --precisionConstraints=prefer --layerPrecisions=a:fp32,'b:0':fp32 " in kept
    job = Job(recipe="model", precision="int8", stack="s", target="t", sms=("9.0",))
    assert any("without it the tool makes ranges up" in note for note in trtexec_notes(job, made, on))


def test_every_option_has_its_argument() -> None:
    options = {
        "workspace_mib": 512,
        "optimization_level": 5,
        "version_compatible": True,
        "refit": True,
        "weight_streaming": True,
        "tactic_sources": ["jit_convolutions", "cudnn"],
    }
    building, _ = lines(model(build=options), stack(**TEN), compatibility="same_compute_capability")
    assert building.endswith(
        "--memPoolSize=workspace:512 --builderOptimizationLevel=5"
        " --hardwareCompatibilityLevel=sameComputeCapability --versionCompatible --excludeLeanRuntime --refit"
        " --allowWeightStreaming"
        " --tacticSources=-CUBLAS,-CUBLAS_LT,+CUDNN,-EDGE_MASK_CONVOLUTIONS,+JIT_CONVOLUTIONS"
        " --timingCacheFile=s-sm90.timing.cache --skipInference"
    )
    none = lines(model(build={"tactic_sources": []}), stack(**ELEVEN))[0]
    assert "--tacticSources=-EDGE_MASK_CONVOLUTIONS,-JIT_CONVOLUTIONS" in none


def test_the_jobs_compatibility_counts_not_the_recipes() -> None:
    made = model(build={"hardware_compatibility": "ampere_plus"})
    assert "--hardwareCompatibilityLevel" not in lines(made, stack(**EIGHT))[0]
    assert "--hardwareCompatibilityLevel=ampere+" in lines(made, stack(**EIGHT), compatibility="ampere_plus")[0]


def test_several_profiles_are_numbered_and_each_is_timed() -> None:
    made = model(profiles=TWO)
    building, *timing = lines(made, stack(**TEN))
    second = "--profile=1 --minShapes=x:4x3 --optShapes=x:8x3 --maxShapes=x:9x3"
    assert f"trtexec --profile=0 {BUILD} {second} --noTF32" in building
    assert [one.split()[1:3] for one in timing] == [
        ["--useProfile=0", "--shapes=x:2x3"],
        ["--useProfile=1", "--shapes=x:8x3"],
    ]


def test_86_builds_one_profile_and_says_so() -> None:
    made, on = model(profiles=TWO), stack(**EIGHT)
    building, *timing = lines(made, on)
    assert "--profile=" not in building
    assert len(timing) == 1
    job = Job(recipe="model", precision="fp16", stack="s", target="t", sms=("9.0",))
    assert trtexec_notes(job, made, on)[:2] == [
        "trtexec of TensorRT 8.6.1, on a GPU of SM 9.0",
        "this tool builds one shape profile: low, of 2",
    ]


def test_fixed_shapes_are_not_given() -> None:
    made, on = model(profiles=[{"inputs": FIXED}]), stack(**TEN)
    assert [one.count("hapes") for one in lines(made, on)] == [0, 0]
    job = Job(recipe="model", precision="fp32", stack="s", target="t", sms=("9.0",))
    assert any("all shapes are fixed" in note for note in trtexec_notes(job, made, on))
    # a dynamic axis that is always of one length
    export = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}}}
    source = {"kind": "python", "entry": "model.py:build"}
    exported = model(profiles=[{"inputs": FIXED}], source=source, weights={"kind": "seeded"}, export=export)
    assert "--minShapes=x:1x3" in lines(exported, on)[0]


def test_nodes_kept_in_fp32_are_named_where_the_tool_lowers() -> None:
    keep = {"tolerance": {"default": {"max_abs": 1.0}}, "keep_fp32": {"nodes": ["a/Softmax"]}}
    made = model(precisions={"fp16": keep})
    assert "--layerPrecisions=*:fp16,a/Softmax:fp32 " in lines(made, stack(**EIGHT))[0]
    found = lines(made, stack(**EIGHT), kept_fp32=["b", "c:0"])[0]
    assert "--layerPrecisions=*:fp16,b:fp32,'c:0':fp32 " in found
    assert "layerPrecisions" not in lines(made, stack(**TEN))[0]


def test_an_engine_without_weights_is_not_timed() -> None:
    made = model(build={"strip_weights": True})
    commands = lines(made, stack(**TEN))
    assert len(commands) == 1
    assert " --stripWeights " in commands[0]
    job = Job(recipe="model", precision="fp16", stack="s", target="t", sms=("9.0",))
    assert any("refitted" in note for note in trtexec_notes(job, made, stack(**TEN)))


@pytest.mark.parametrize(("spec", "noted"), [(EIGHT, False), (TEN, True), (ELEVEN, True), (RTX, False)])
def test_caches_that_the_tool_does_not_share_are_named(spec: dict[str, Any], noted: bool) -> None:
    job = Job(recipe="model", precision="fp16", stack="s", target="t", sms=("9.0",))
    assert any("editable" in note for note in trtexec_notes(job, model(), stack(**spec))) is noted


def test_the_graph_may_lie_elsewhere() -> None:
    assert lines(model(), stack(**TEN), model="/tmp/work/lowered.onnx")


def catalogue() -> Catalogue:
    on = (stack(**EIGHT, name="eight"),)
    return Catalogue(
        recipes={"model": model(name="model")},
        stacks=on,
        targets=choose_targets(load_targets(), ["hopper"]),
        all_stacks=on,
        precision_floors=load_precision_floors(),
    )


@pytest.mark.parametrize(
    ("name", "more"),
    [("model-fp16-eight-sm90", []), ("model-fp16-eight-sm90-ampere-plus", ["--compat", "ampere_plus"])],
)
def test_jobs_are_found_whatever_their_compatibility(name: str, more: list[str]) -> None:
    job, found, on = find_job(catalogue(), name)
    assert (job.id, found.name, on.name) == (name, "model", "eight")
    asked = ["--recipe", "model", "--precision", "fp16", "--stack", "eight", "--target", "hopper"]
    assert keeping_command(job, found) == ["enginefarm", "build", "--keep", *asked, *more]


def test_an_unknown_job_names_the_nearest() -> None:
    error = refusal(lambda: find_job(catalogue(), "model-fp16-eight-sm80"))
    assert error.reason is Reason.NAME_UNKNOWN
    assert "did you mean model-fp16-eight-sm90" in (error.fix or "")
    assert "enginefarm plan" in (refusal(lambda: find_job(catalogue(), "zzz")).fix or "")


def test_what_is_written_for_11_is_not_known_as_gone_there() -> None:
    options = {"workspace_mib": 512, "optimization_level": 5, "version_compatible": True, "refit": True}
    made, on = model(profiles=TWO, build={**options, "tactic_sources": []}), stack(**ELEVEN)
    written = {word.partition("=")[0] for line in lines(made, on, "fp32") for word in line.split() if word[0] == "-"}
    log = "".join(f"[E] Unknown option: {option} \n" for option in sorted(written))
    assert "--noTF32" in written
    assert recognise(io.BytesIO(log.encode()), load_catalogue()) == []
