"""The keys: every field of a recipe is assigned to the keys it must change, and changes those alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from builder import key as key_module
from builder.key import Key, Runtime, canonical, differences, engine_key, export_key, make_key, proof_key
from builder.plan import Job
from builder.recipe import Recipe
from builder.stacks import BuildStackFile, ExportStackFile, Stack

SHA = "ab" * 32
RECIPE: dict[str, Any] = {
    "name": "model",
    "description": "a model",
    "licence": "MIT",
    "source": {"kind": "python", "entry": "model.py:build"},
    "weights": {"kind": "seeded", "seed": 1, "pretrained": {"url": "https://example.org/w.bin", "sha256": SHA}},
    "export": {
        "opset": 17,
        "exporter": "torchscript",
        "input_names": ["x"],
        "output_names": ["y"],
        "dynamic_axes": {"x": {0: "batch"}},
    },
    "profiles": [{"name": "p", "inputs": {"x": {"min": [1, 4], "opt": [3, 4], "max": [9, 4], "also": [[2, 4]]}}}],
    "precisions": {
        "fp16": {
            "tolerance": {"default": {"max_abs": 0.1, "max_rel": 0.1, "mse": 0.1, "cosine": 0.9}, "outputs": {}},
            "keep_fp32": {"nodes": ["n"], "ops": ["Softmax"]},
            "auto_fp32": False,
            "targets": ["ampere"],
        }
    },
    "inputs": {"x": {"dtype": "float32", "values": {"kind": "normal", "seed": 0, "mean": 0.0, "std": 1.0}}},
    "stacks": ["s"],
    "targets": ["ampere"],
    "build": {
        "workspace_mib": 64,
        "optimization_level": 3,
        "hardware_compatibility": "none",
        "version_compatible": False,
        "strip_weights": False,
        "refit": False,
        "weight_streaming": False,
        "tactic_sources": ["cublas"],
    },
    "bench": {"warmup": 1, "iterations": 2},
}

# Which keys each field must change. x: export, e: engine, p: proof besides what the engine key brings along.
# A field that is in no line fails the test: whoever adds one decides here what it means.
EFFECT = {
    "name": "p",
    "description": "p",
    "licence": "p",
    "source.entry": "x",
    "weights.seed": "xp",
    "weights.pretrained.url": "p",
    "weights.pretrained.sha256": "p",
    "export.opset": "x",
    "export.exporter": "x",
    "export.input_names.0": "x",
    "export.output_names.0": "x",
    "export.dynamic_axes.x.0": "x",
    "profiles.0.name": "xp",
    "profiles.0.inputs.x.min.0": "xep",
    "profiles.0.inputs.x.min.1": "xep",
    "profiles.0.inputs.x.opt.0": "xep",
    "profiles.0.inputs.x.opt.1": "xep",
    "profiles.0.inputs.x.max.0": "xep",
    "profiles.0.inputs.x.max.1": "xep",
    "profiles.0.inputs.x.also.0.0": "xp",
    "profiles.0.inputs.x.also.0.1": "xp",
    "precisions.fp16.tolerance.default.max_abs": "p",
    "precisions.fp16.tolerance.default.max_rel": "p",
    "precisions.fp16.tolerance.default.mse": "p",
    "precisions.fp16.tolerance.default.cosine": "p",
    "precisions.fp16.keep_fp32.nodes.0": "e",
    "precisions.fp16.keep_fp32.ops.0": "e",
    "precisions.fp16.auto_fp32": "",
    "precisions.fp16.targets.0": "",
    "inputs.x.dtype": "xp",
    "inputs.x.values.seed": "xp",
    "inputs.x.values.mean": "xp",
    "inputs.x.values.std": "xp",
    "stacks.0": "",
    "targets.0": "",
    "build.workspace_mib": "e",
    "build.optimization_level": "e",
    "build.hardware_compatibility": "ep",  # the job's name says it
    "build.version_compatible": "e",
    "build.strip_weights": "e",
    "build.refit": "e",
    "build.weight_streaming": "e",
    "build.tactic_sources.0": "e",
    "bench.warmup": "",
    "bench.iterations": "",
}
# kind fields choose a model class: another kind is another recipe altogether
CHOOSERS = {"source.kind", "weights.kind", "inputs.x.values.kind"}
JOB = Job(recipe="model", precision="fp16", stack="s", target="ampere", sms=("8.0", "8.6"))
ONNX = {"model.onnx": "11" * 32}


def stack(lock: str = "a==1 --hash=sha256:00\n", **changes: Any) -> Stack:
    spec: dict[str, Any] = {
        "role": "build",
        "name": "s",
        "title": "t",
        "platform": "linux/amd64",
        "python": ["3.11"],
        "confirmed": True,
        "installed_mib": 1,
        "image": {"base": "b", "budget_mib": 1},
        "family": "rtx",
        "import_name": "trt",
        "tensorrt": "1.0",
        "cuda": "13",
        "needs_gpu": False,
        "sms": ["8.0", "8.6"],
        "grouping": "together",
        "precisions": ["fp16"],
    }
    return Stack(folder=Path("images/s"), spec=BuildStackFile.model_validate(spec | changes), lock=lock)


def export_stack(lock: str = "torch==1\n") -> Stack:
    spec = {
        "role": "export",
        "name": "export",
        "title": "t",
        "platform": "linux/amd64",
        "python": ["3.11"],
        "confirmed": True,
        "installed_mib": 1,
        "image": {"base": "b", "budget_mib": 1},
    }
    return Stack(folder=Path("images/export"), spec=ExportStackFile.model_validate(spec), lock=lock)


def keys(
    recipe: Mapping[str, Any] = RECIPE,
    *,
    job: Job = JOB,
    runtime: Runtime | None = None,
    onnx: Mapping[str, str] = ONNX,
    worker: str = "w",
    files: Mapping[str, str] | None = None,
    exporter: Runtime | None = None,
) -> dict[str, str]:
    parsed = Recipe.model_validate(recipe)
    job = replace(job, compatibility=parsed.build.hardware_compatibility)
    runtime = runtime or Runtime(stack=stack(), python="3.11")
    exporter = exporter or Runtime(stack=export_stack(), python="3.11")
    # a fixed engine key, so that the proof shows its own fields and not those of the engine
    fixed = Key(document={}, sha256="00" * 32)
    return {
        "x": export_key(parsed, files or {"model.py": SHA}, exporter, worker).sha256,
        "e": engine_key(job, parsed, onnx, runtime, worker).sha256,
        "p": proof_key(job, parsed, fixed, worker, verified=True).sha256,
    }


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> str:
    return "".join(name for name in before if before[name] != after[name])


def leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from leaves(item, f"{path}.{name}" if path else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}.{index}")
    else:
        yield path


def flipped(path: str) -> dict[str, Any]:
    recipe = copy.deepcopy(RECIPE)
    *parents, last = path.split(".")
    holder: Any = recipe
    for step in parents:
        holder = holder[int(step)] if isinstance(holder, list) else holder[step]
    name: Any = int(last) if isinstance(holder, list) or last == "0" else last
    old = holder[name]
    special = {
        "build.tactic_sources.0": "cudnn",
        "export.exporter": "dynamo",
        "build.hardware_compatibility": "ampere_plus",
        "inputs.x.dtype": "float16",
        "source.entry": "model.py:other",
        "weights.pretrained.sha256": "cd" * 32,
        "export.input_names.0": "x",
    }
    if path in special:
        holder[name] = special[path]
    elif isinstance(old, bool):
        holder[name] = not old
    elif isinstance(old, int):
        holder[name] = old + 1
    elif isinstance(old, float):
        holder[name] = old * 0.5 + 0.01
    else:
        holder[name] = f"{old}2"
    if path.startswith("profiles.0.inputs.x.") and path.endswith(".1"):
        # a fixed axis moves in all shapes at once
        shapes = recipe["profiles"][0]["inputs"]["x"]
        for shape in (shapes["min"], shapes["opt"], shapes["max"], *shapes["also"]):
            shape[1] = 5
    if path == "export.input_names.0":
        recipe["export"]["input_names"] = ["z"]
        recipe["inputs"] = {"z": recipe["inputs"]["x"]}
        recipe["profiles"][0]["inputs"] = {"z": recipe["profiles"][0]["inputs"]["x"]}
    return recipe


def test_every_field_of_the_example_is_assigned() -> None:
    assert set(leaves(RECIPE)) - CHOOSERS == set(EFFECT)


def test_the_example_holds_every_field_of_the_model() -> None:
    full = Recipe.model_validate(RECIPE).model_dump(mode="json")
    dumped = {path for path in leaves(full) if not path.startswith("precisions.fp16.tolerance.outputs")}
    # of a union only the chosen member shows; null stands for what the example leaves out on purpose
    left_out = {"weights.pretrained.repo", "weights.pretrained.revision", "weights.pretrained.path"}
    # only of int8: see INT8_EFFECT
    left_out |= {"precisions.fp16.calibration"}
    assert dumped - left_out == set(leaves(RECIPE))


@pytest.mark.parametrize("path", sorted(EFFECT))
def test_a_field_changes_its_keys_and_no_other(path: str) -> None:
    wanted = EFFECT[path]
    if path.startswith("profiles.0.inputs.x.") and path.endswith(".1"):
        wanted = "xep"
    if path == "export.input_names.0":
        wanted = "xep"
    assert changed(keys(), keys(flipped(path))) == wanted


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"onnx": {"model.onnx": "22" * 32}}, "e"),
        ({"onnx": {**ONNX, "model.onnx.data": "33" * 32}}, "e"),
        ({"worker": "other"}, "xep"),
        ({"files": {"model.py": "00" * 32}}, "x"),
        ({"files": {"model.py": SHA, "layers.py": SHA}}, "x"),
        ({"job": replace(JOB, sms=("8.6",))}, "ep"),
        ({"job": replace(JOB, target="other")}, "p"),
        ({"runtime": Runtime(stack=stack(tensorrt="1.1"), python="3.11")}, "e"),
        ({"runtime": Runtime(stack=stack(cuda="12"), python="3.11")}, "e"),
        ({"runtime": Runtime(stack=stack(platform="linux/arm64"), python="3.11")}, "e"),
        ({"runtime": Runtime(stack=stack(lock="a==1 --hash=sha256:01\n"), python="3.11")}, "e"),
        ({"runtime": Runtime(stack=stack(lock="a==2 --hash=sha256:00\n"), python="3.11")}, "e"),
        ({"runtime": Runtime(stack=stack(), python="3.11", image="sha256:aa")}, "e"),
        ({"runtime": Runtime(stack=stack(), python="3.12")}, "e"),
        ({"exporter": Runtime(stack=export_stack("torch==2\n"), python="3.11")}, "x"),
        # what must not matter
        ({"runtime": Runtime(stack=replace(stack(), folder=Path("/elsewhere/s")), python="3.11")}, ""),
        ({"runtime": Runtime(stack=stack(title="another title"), python="3.11")}, ""),
        ({"runtime": Runtime(stack=stack(installed_mib=99), python="3.11")}, ""),
    ],
)
def test_what_is_around_a_recipe(change: dict[str, Any], wanted: str) -> None:
    assert changed(keys(), keys(**change)) == wanted


# What calibration depends on, and so the engine: the values it is fed with. As EFFECT, for a job in int8.
INT8_EFFECT: dict[str, tuple[dict[str, Any], str]] = {
    "batches": ({"calibration": {"batches": 5, "method": "entropy"}}, "e"),
    "method": ({"calibration": {"batches": 4, "method": "minmax"}}, "e"),
    "the default": ({"calibration": None}, "e"),
    "seed": ({"values": {"kind": "normal", "seed": 1, "mean": 0.0, "std": 1.0}}, "xep"),
    "mean": ({"values": {"kind": "normal", "seed": 0, "mean": 1.0, "std": 1.0}}, "xep"),
    "std": ({"values": {"kind": "normal", "seed": 0, "mean": 0.0, "std": 2.0}}, "xep"),
    "generator": ({"values": {"kind": "uniform", "seed": 0, "low": 0.0, "high": 1.0}}, "xep"),
    "sample file": ({"values": {"kind": "file", "path": "x.npy", "sha256": SHA}}, "xep"),
    "dtype": ({"dtype": "float16"}, "xep"),
    "tolerance": ({"tolerance": {"default": {"cosine": 0.8}}}, "p"),
    "kept nodes": ({"keep_fp32": {"nodes": ["n"]}}, "e"),
    # 16 batches, entropy
    "nothing": ({}, ""),
}


def int8(change: Mapping[str, Any]) -> dict[str, str]:
    settings: dict[str, Any] = {
        "tolerance": {"default": {"cosine": 0.9}},
        "calibration": {"batches": 4, "method": "entropy"},
    }
    recipe = copy.deepcopy(RECIPE)
    for name, value in change.items():
        (recipe["inputs"]["x"] if name in {"values", "dtype"} else settings)[name] = value
    recipe["precisions"] = {"int8": settings}
    runtime = Runtime(stack=stack(precisions=["int8"]), python="3.11")
    return keys(recipe, job=replace(JOB, precision="int8"), runtime=runtime)


@pytest.mark.parametrize("what", sorted(INT8_EFFECT))
def test_what_calibration_is_fed_with_is_in_the_engines_key(what: str) -> None:
    change, wanted = INT8_EFFECT[what]
    assert changed(int8({}), int8(change)) == wanted


def test_the_default_calibration_is_the_same_written_out() -> None:
    assert int8({"calibration": None}) == int8({"calibration": {"batches": 16, "method": "entropy"}})


def test_where_a_sample_lies_changes_the_proof_alone() -> None:
    sample = {"kind": "file", "path": "x.npy", "sha256": SHA}
    before = int8({"values": sample})
    assert changed(before, int8({"values": {**sample, "path": "y.npy"}})) == "xp"
    assert changed(before, int8({"values": {**sample, "sha256": "00" * 32}})) == "xep"


def test_calibration_says_nothing_of_other_precisions() -> None:
    recipe = copy.deepcopy(RECIPE)
    recipe["precisions"]["int8"] = {"tolerance": {"default": {"cosine": 0.9}}, "calibration": {"batches": 2}}
    assert keys(recipe) == keys()


def test_the_order_of_keys_in_yaml_does_not_matter() -> None:
    backwards = {name: RECIPE[name] for name in reversed(RECIPE)}
    assert keys(backwards) == keys()


def test_time_host_and_home_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    monkeypatch.setattr("time.time", lambda: 0.0)
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    monkeypatch.setenv("ENGINEFARM_HOME", "/elsewhere")
    assert keys() == before


def test_graphs_of_one_name_and_other_content_have_other_keys() -> None:
    three, four = (
        {"model.onnx": make_key("t", {"add": [3, 3]}).sha256},
        {"model.onnx": make_key("t", {"add": [4, 4]}).sha256},
    )
    assert keys(onnx=three)["e"] != keys(onnx=four)["e"]


def test_kinds_and_documents_are_framed() -> None:
    assert make_key("a", {"x": 1}).sha256 != make_key("b", {"x": 1}).sha256
    assert make_key("a", {"x": "1"}).sha256 != make_key("a", {"x": 1}).sha256
    assert make_key("a", {"x": ["1", "2"]}).sha256 != make_key("a", {"x": ["12"]}).sha256


def test_a_new_version_changes_every_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys()
    monkeypatch.setattr(key_module, "KEY_VERSION", key_module.KEY_VERSION + 1)
    assert changed(before, keys()) == "xep"


def test_keys_stay_what_they_were() -> None:
    # an accidental change of the format would silently rebuild every engine of every user
    assert make_key("engine", {"b": [1, None, "ü"], "a": {"y": 1.5}}).sha256 == (
        "2594f76c2284db335773ef2780dff1c0404879287af1110b64f8d5eba46fb6a3"
    )


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"x": float("nan")})


def test_differences_name_the_leaves() -> None:
    left = {"a": 1, "b": {"c": 2, "d": 3}, "e": [1]}
    right = {"a": 1, "b": {"c": 4, "f": 5}, "e": [1, 2]}
    assert differences(left, right) == [("b.c", 2, 4), ("b.d", 3, None), ("b.f", None, 5), ("e", [1], [1, 2])]
