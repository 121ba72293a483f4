"""The manifest: what an engine is and what was proven about it. Lies beside the engine, never inside it."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from builder.bench_result import BenchPart
from builder.errors import EnginefarmError, Reason

SCHEMA_VERSION: Final = 1

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """Unknown fields are refused: a manifest of a later version must not be half understood."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RecipePart(Part):
    """The recipe, as far as it says what the model is."""

    name: str = Field(description="Name of the recipe.")
    description: str = Field(description="One sentence for people.")
    licence: str = Field(description="Licence of the weights.")
    weights: Literal["seeded", "pretrained"] = Field(
        description="Whether the weights are random or the published ones."
    )
    weights_detail: dict[str, Any] | None = Field(description="Seed, or digest and place of the weights file.")
    source: dict[str, Any] = Field(description="Where the model came from, as the recipe says.")
    commit: str | None = Field(
        default=None,
        description="Git commit of the project with the recipe, without changes since; null outside of one.",
    )


class PrecisionPart(Part):
    """What was asked for and what TensorRT made of it."""

    requested: str = Field(description="Precision asked for.")
    realised: str = Field(description="Precision of the compute layers: as requested, another one, mixed, or unproven.")
    share: float = Field(description="Share of compute in the requested precision, 0 to 1.")
    share_basis: str = Field(
        description="What the share counts: macs (multiply-adds at the opt shape) or count (layers)."
    )
    source: str = Field(description="Where layer types were read: the network or the engine inspector.")
    layers: dict[str, Any] = Field(description="Layer counts and lists, as the examine stage found them.")


class StackPart(Part):
    """The software that built the engine."""

    name: str = Field(description="Name of the stack.")
    tensorrt: str = Field(description="Full TensorRT version; an engine loads under this one.")
    cuda: str = Field(description="CUDA version.")
    platform: str = Field(description="Operating system and architecture.")
    python: str = Field(description="Python that ran the stages.")
    lock_sha256: Sha256 = Field(description="SHA-256 of the hash-locked requirements.")
    packages: list[str] = Field(description="name==version of every package.")
    image: str | None = Field(description="Digest of the image, null without a container.")
    image_base: str | None = Field(
        default=None, description="Digest of the image's base, with `stand-in` before it where it is one; null without."
    )
    confirmed: bool = Field(description="False where a pin of the stack rests on a single source.")


class TargetPart(Part):
    """GPUs the engine is for."""

    name: str = Field(description="GPU family.")
    sms: list[str] = Field(description="Compute capabilities.")


class OnnxPart(Part):
    """The ONNX model, before lowering."""

    sha256: Sha256 = Field(description="SHA-256 of model.onnx.")
    external_sha256: Sha256 | None = Field(description="SHA-256 of weights kept outside model.onnx.")
    size: int = Field(description="Bytes, weights outside included.")
    export: dict[str, Any] | None = Field(description="What the export stage said; null for fetched models.")


class LoweredPart(Part):
    """The ONNX model TensorRT parsed."""

    sha256: Sha256 = Field(description="SHA-256 of the lowered model.")
    size: int = Field(description="Bytes.")
    detail: dict[str, Any] = Field(description="Casts added, nodes kept in FP32, weights out of range.")


class WeightsFile(Part):
    """A file of the weights of an engine that was built without them: the ONNX model that TensorRT parsed."""

    file: Literal["weights.onnx", "lowered.onnx.data"] = Field(
        description="Name of the file; the second has what does not fit into an ONNX file."
    )
    sha256: Sha256 = Field(description="SHA-256 of the file.")
    size: int = Field(description="Bytes.")


class EnginePart(Part):
    """The engine file."""

    file: Literal["model.plan"] = Field(description="Name of the file.")
    sha256: Sha256 = Field(description="SHA-256 of the file.")
    size: int = Field(description="Bytes.")
    inputs: list[dict[str, Any]] = Field(description="Name, type and shape of each input; -1 is a dynamic axis.")
    outputs: list[dict[str, Any]] = Field(description="Name, type and shape of each output.")
    profiles: list[dict[str, Any]] = Field(description="Shape profiles as TensorRT read them back.")
    flags: list[str] = Field(description="Builder flags by name.")
    needs_host_code: bool = Field(description="True if loading must allow host code embedded in the engine.")
    weights: tuple[WeightsFile, ...] = Field(
        default=(),
        description="Files that loading takes the weights from; empty where the engine holds them itself.",
    )


class TunedPart(Part):
    """The GPU that an engine was tuned on, and what tuning took."""

    name: str = Field(description="Name of the GPU.")
    sm: str = Field(description="Its compute capability.")
    driver: str = Field(description="Version of its driver.")
    workspace_bytes: int = Field(description="Limit of the workspace, clamped to what was free.")
    retried_with_less_memory: bool = Field(description="True if the first try ran out of GPU memory.")
    precision_constraints: int = Field(description="Layers that were told their precision; 0 in typed networks.")
    build_seconds: float = Field(description="Seconds inside TensorRT's builder.")
    timing_cache: dict[str, Any] = Field(description="Caches read, and the digest of the one written.")
    calibration: dict[str, Any] | None = Field(
        default=None,
        description="Of int8: method, batches and their shapes, cache read, digest of the one written; null otherwise.",
    )
    watched: dict[str, Any] | None = Field(
        description="Memory of the GPU, temperature, throttling and other programs while it built; null if not watched."
    )


class BuildPart(Part):
    """How the engine was built."""

    seconds: float = Field(description="Wall time of the build stage.")
    max_rss_bytes: int = Field(description="Peak memory of the build stage.")
    options: dict[str, Any] = Field(description="Build options of the recipe.")
    repeatable: bool = Field(description="True if memory addresses and thread order of the builder were under control.")
    tuned_on: TunedPart | None = Field(description="The GPU it was tuned on; null without one.")
    warnings: list[str] = Field(description="What TensorRT warned of while building.")


class ProofPart(Part):
    """What was verified, how, and with which result."""

    key: Sha256 = Field(description="Key of the proof.")
    status: Literal["passed", "skipped"] = Field(description="passed, or skipped at the user's wish.")
    engine_verified: bool = Field(description="True only if the engine itself ran on a GPU and passed.")
    reason: str | None = Field(description="Why the engine itself was not verified.")
    method: str | None = Field(description="How numbers were compared.")
    reference: str | None = Field(description="What the numbers were compared with.")
    tolerance: dict[str, Any] = Field(description="What the recipe allows.")
    cases: list[dict[str, Any]] = Field(description="Per shape: error of each output.")
    outside: list[dict[str, Any]] = Field(description="Shapes just outside each shape profile.")
    worst: dict[str, Any] | None = Field(description="The output closest to its limit.")


class Reproducibility(Part):
    """How far a rebuild is the same. Measured, never assumed."""

    level: Literal["unmeasured", "bitwise", "outputs", "tolerance", "drifted"] = Field(description="The level.")
    rebuilds: int = Field(description="Rebuilds compared.")
    measured_at: datetime | None = Field(description="When.")
    detail: str | None = Field(description="What differed first.")


class StageCost(Part):
    """What a stage took."""

    seconds: float = Field(description="Wall time.")
    max_rss_bytes: int = Field(description="Peak memory.")


class Manifest(Part):
    """Everything known about one engine."""

    schema_version: Literal[1] = Field(description="Version of this format.")
    job: str = Field(description="Readable id of the job.")
    key: Sha256 = Field(description="Key of the engine; key.json holds the document.")
    created: datetime = Field(description="When the manifest was written.")
    farm_version: str = Field(description="Version of enginefarm.")
    recipe: RecipePart = Field(description="The model.")
    precision: PrecisionPart = Field(description="Asked for and realised.")
    stack: StackPart = Field(description="The software.")
    target: TargetPart = Field(description="The GPUs.")
    onnx: OnnxPart = Field(description="The model before lowering.")
    lowered: LoweredPart = Field(description="The model TensorRT parsed.")
    engine: EnginePart = Field(description="The file.")
    build: BuildPart = Field(description="Cost and options.")
    proof: ProofPart = Field(description="What was verified.")
    reproducibility: Reproducibility = Field(description="How far a rebuild is the same.")
    bench: BenchPart | None = Field(description="How fast the engine is; null until it was measured.")
    stages: dict[str, StageCost] = Field(description="Cost per stage of the run that wrote this manifest.")
    host: dict[str, str] = Field(description="The machine that built it.")

    def to_json(self) -> str:
        """Serialise for people and programs: indented, keys in the order above."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def load_manifest(content: bytes, where: str) -> Manifest:
    """Parse a manifest.

    Raises:
        EnginefarmError: MANIFEST_INVALID, naming the fields.

    """
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        fields = "\n".join(f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors())
        raise EnginefarmError(
            Reason.MANIFEST_INVALID, "the manifest is not readable", where=where, why=fields
        ) from error


def manifest_schema() -> str:
    """Return the JSON Schema as committed in builder/resources."""
    schema = Manifest.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "enginefarm manifest", **schema}
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"
