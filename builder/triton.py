"""A model repository of Triton Inference Server: which engines become one model, and what its config.pbtxt says.

One model per recipe and precision. Engines for several SMs lie side by side in its version; Triton takes the one that
`cc_model_filenames` names for its GPU, else the default, which is an engine that runs on all GPUs from Ampere on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.candidates import is_rtx
from builder.errors import EnginefarmError, Reason
from builder.manifest import Manifest

CONFIG = "config.pbtxt"
VERSION = "1"
DEFAULT_FILE = "model.plan"
_MARK = "# Written by `enginefarm export --triton`; SHA-256 of the lines below:"
_TYPES = {
    "float32": "TYPE_FP32",
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "bool": "TYPE_BOOL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """A model of the repository. `files`: name in the version's folder to the job whose engine it is."""

    name: str
    files: Mapping[str, str]
    config: str
    needs_host_code: bool


def serves(manifest: Manifest) -> bool:
    """Say whether Triton can load an engine: it has no backend for TensorRT-RTX, and it refits none."""
    return not _rtx(manifest) and not manifest.build.options.get("strip_weights")


def _rtx(manifest: Manifest) -> bool:
    return is_rtx(manifest.stack.name, manifest.stack.tensorrt)


def is_own_config(content: bytes) -> bool:
    """Say whether a config.pbtxt is as it was written here: what people changed is theirs."""
    mark, _, body = content.partition(b"\n")
    return mark == f"{_MARK} {hashlib.sha256(body).hexdigest()}".encode()


def repository(manifests: Iterable[Manifest]) -> tuple[TritonModel, ...]:
    """Group engines into models.

    Raises:
        EnginefarmError: OPTION_UNSUPPORTED where Triton cannot load an engine or has no such tensor, or where two
            engines of a model are of different TensorRT, CUDA or platform; INPUTS_CHANGED where inputs, outputs or
            shape profiles differ; PRECISION_UNSUPPORTED for tensors of a type that Triton lacks.

    """
    groups: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        if not serves(manifest):
            rtx = _rtx(manifest)
            why = "it has no backend for TensorRT-RTX" if rtx else "it was built without its weights"
            what = f"Triton cannot load {manifest.job}: {why}"
            fix = "build it with a stack of classic TensorRT" if rtx else "build it without build.strip_weights"
            fix += ", or leave it out with --name"
            raise EnginefarmError(Reason.OPTION_UNSUPPORTED, what, fix=fix)
        groups.setdefault(f"{manifest.recipe.name}-{manifest.precision.requested}", []).append(manifest)
    return tuple(_model(name, sorted(group, key=lambda one: one.job)) for name, group in sorted(groups.items()))


def _model(name: str, engines: Sequence[Manifest]) -> TritonModel:
    _refuse_mixtures(name, engines)
    wide = [one for one in engines if _is_wide(one)]
    files: dict[str, str] = {}
    by_sm: dict[str, str] = {}
    # of several for one SM, that which was built for the least else is the fastest: it comes last and stays
    for engine in sorted(engines, key=_breadth, reverse=True):
        if engine not in wide:
            file = f"{'-'.join('sm' + sm.replace('.', '') for sm in engine.target.sms)}.plan"
            files[file] = engine.job
            by_sm |= dict.fromkeys(engine.target.sms, file)
    if wide:
        # of several, that for the oldest GPUs runs on the most
        files[DEFAULT_FILE] = min(wide, key=lambda one: [_number(sm) for sm in one.target.sms]).job
    config = _config(name, engines[0], by_sm, has_default=bool(wide))
    return TritonModel(
        name=name,
        files=dict(sorted(files.items())),
        config=config,
        needs_host_code=any(one.engine.needs_host_code for one in engines),
    )


def _breadth(manifest: Manifest) -> tuple[bool, bool, str]:
    options = manifest.build.options
    compatible = options.get("hardware_compatibility", "none") != "none"
    return bool(options.get("version_compatible", False)), compatible, manifest.job


def _refuse_mixtures(name: str, engines: Sequence[Manifest]) -> None:
    has_one = {
        "TensorRT": {one.stack.tensorrt for one in engines},
        "CUDA": {one.stack.cuda.partition(".")[0] for one in engines},
        "platform": {one.stack.platform for one in engines},
    }
    for kind, found in has_one.items():
        if len(found) > 1:
            what = f"the engines of {name} are of {kind} {', '.join(sorted(found))}; a Triton has one"
            stacks = " or ".join(sorted({f"--name '*-{one.stack.name}-*'" for one in engines}))
            raise EnginefarmError(Reason.OPTION_UNSUPPORTED, what, fix=f"choose with {stacks}")
    first = engines[0]
    for other in engines[1:]:
        for part in ("inputs", "outputs", "profiles"):
            if getattr(first.engine, part) != getattr(other.engine, part):
                what = f"{first.job} and {other.job} have other {part}"
                raise EnginefarmError(Reason.INPUTS_CHANGED, what, fix="build both again from one recipe")


def _is_wide(manifest: Manifest) -> bool:
    return manifest.build.options.get("hardware_compatibility") == "ampere_plus"


def _config(name: str, manifest: Manifest, by_sm: Mapping[str, str], *, has_default: bool) -> str:
    engine = manifest.engine
    profiles: list[Mapping[str, Any]] = [profile["inputs"] for profile in engine.profiles]
    batch = _largest_batch(engine.inputs, engine.outputs, profiles)
    lines = [f"name: {_text(name)}", 'platform: "tensorrt_plan"', f"max_batch_size: {batch}"]
    for kind, tensors in (("input", engine.inputs), ("output", engine.outputs)):
        for tensor in tensors:
            lines += [f"{kind} {{", *(f"  {line}" for line in _tensor(tensor, batched=batch > 0)), "}"]
    lines += [f"# {line}" for line in _shapes(engine.profiles)]
    lines += ["instance_group {", "  kind: KIND_GPU", "  count: 1"]
    if len(profiles) > 1:
        # without a list an instance knows the first shape profile alone
        lines += [f"  profile: {_text(str(index))}" for index in range(len(profiles))]
    lines += ["}"]
    if batch > 1:
        preferred = sorted({_opt_batch(profile) for profile in profiles} - {1}) if len(profiles) > 1 else []
        lines += ["dynamic_batching {", *(f"  preferred_batch_size: {size}" for size in preferred), "}"]
    if has_default:
        lines += [f"default_model_filename: {_text(DEFAULT_FILE)}"]
    for sm, file in sorted(by_sm.items(), key=lambda one: _number(one[0])):
        lines += ["cc_model_filenames {", f"  key: {_text(sm)}", f"  value: {_text(file)}", "}"]
    body = "\n".join(lines) + "\n"
    return f"{_MARK} {hashlib.sha256(body.encode()).hexdigest()}\n{body}"


def _largest_batch(
    inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]], profiles: Sequence[Mapping[str, Any]]
) -> int:
    """Return Triton's max_batch_size; 0 where the first axis is not a batch that all tensors share."""
    if not all(tensor["shape"] and tensor["shape"][0] == -1 for tensor in [*inputs, *outputs]):
        return 0
    largest = 0
    for profile in profiles:
        # a request of one has to be possible, and all inputs have to grow alike
        ranges = {(shapes["min"][0], shapes["max"][0]) for shapes in profile.values()}
        if set(profile) != {tensor["name"] for tensor in inputs} or len(ranges) != 1:
            return 0
        largest = max(largest, *(high for _, high in ranges))
    smallest = min((shapes["min"][0] for profile in profiles for shapes in profile.values()), default=0)
    return largest if smallest == 1 else 0


def _tensor(tensor: Mapping[str, Any], *, batched: bool) -> list[str]:
    dtype = _TYPES.get(tensor["dtype"])
    if dtype is None:
        what = f"Triton has no type for {tensor['name']}, which is {tensor['dtype']}"
        raise EnginefarmError(Reason.PRECISION_UNSUPPORTED, what, fix="export the model with float32 inputs")
    dims = list(tensor["shape"])[1:] if batched else list(tensor["shape"])
    if not dims and not batched:
        what = f"Triton has no tensors without axes in models without a batch, and {tensor['name']} is one"
        raise EnginefarmError(Reason.OPTION_UNSUPPORTED, what, fix="export the model with one axis more")
    lines = [f"name: {_text(tensor['name'])}", f"data_type: {dtype}", f"dims: [ {', '.join(map(str, dims or [1]))} ]"]
    # Triton's tensors have at least one axis beside the batch
    return lines if dims else [*lines, "reshape { shape: [ ] }"]


def _shapes(profiles: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say in comments which shapes there are: Triton asks the engine itself."""
    return [
        f"profile {profile['name']}: {name} {_by(shapes['min'])} to {_by(shapes['max'])}, best {_by(shapes['opt'])}"
        for profile in profiles
        for name, shapes in profile["inputs"].items()
    ]


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _opt_batch(profile: Mapping[str, Any]) -> int:
    return int(next(iter(profile.values()))["opt"][0])


def _number(sm: str) -> tuple[int, ...]:
    return tuple(int(part) for part in sm.split("."))


def _text(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
