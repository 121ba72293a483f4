"""What a recipe may say. Pure data: reading files is `builder.recipe_file`, checking a graph is the worker."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Literal, get_args

from pydantic import Field, StrictBool, StrictFloat, StrictInt, field_validator, model_validator
from typing_extensions import Self

from builder.recipe_fields import (
    EntryPoint,
    GitRevision,
    HttpUrl,
    Name,
    PinnedPackage,
    RelativePath,
    Repository,
    Sha256,
    Shape,
    Strict,
    low_to_high,
)


class Precision(str, Enum):
    """Numeric format asked for. int8 is found by calibration, with fp16 beside it; fp8 is not offered yet."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"


class PythonSource(Strict):
    """A PyTorch model written in the recipe's folder."""

    kind: Literal["python"] = Field(description="A PyTorch model in the recipe's folder.")
    entry: EntryPoint = Field(description="file.py:function; called without arguments, returns a torch.nn.Module.")


class OnnxSource(Strict):
    """An ONNX file in the recipe's folder."""

    kind: Literal["onnx"] = Field(description="An ONNX file in the recipe's folder.")
    path: RelativePath = Field(description="Path inside the recipe's folder.")
    sha256: Sha256 = Field(description="SHA-256 of the file.")


class WheelSource(Strict):
    """An ONNX file inside a wheel of the Python package index."""

    kind: Literal["wheel"] = Field(description="An ONNX file inside a wheel of the Python package index.")
    package: PinnedPackage = Field(description="name==version of the wheel.")
    wheel_sha256: Sha256 = Field(description="SHA-256 of the wheel.")
    path: RelativePath = Field(description="Path of the ONNX file inside the wheel.")
    sha256: Sha256 = Field(description="SHA-256 of the ONNX file.")

    @model_validator(mode="after")
    def _two_files(self) -> Self:
        if self.wheel_sha256 == self.sha256:
            msg = "wheel_sha256 and sha256 are the same: one is of the wheel, one of the ONNX file inside"
            raise ValueError(msg)
        return self


class UrlSource(Strict):
    """An ONNX file behind a URL."""

    kind: Literal["url"] = Field(description="An ONNX file behind a URL.")
    url: HttpUrl = Field(description="https address of the file.")
    sha256: Sha256 = Field(description="SHA-256 of the file.")


class HuggingFaceSource(Strict):
    """An ONNX file in a Hugging Face repository."""

    kind: Literal["huggingface"] = Field(description="An ONNX file in a Hugging Face repository.")
    repo: Repository = Field(description="owner/name.")
    revision: GitRevision = Field(description="Full commit hash; branches and tags move.")
    path: RelativePath = Field(description="Path inside the repository.")
    sha256: Sha256 = Field(description="SHA-256 of the file.")


Source = Annotated[PythonSource | OnnxSource | WheelSource | UrlSource | HuggingFaceSource, Field(discriminator="kind")]


class PretrainedFile(Strict):
    """Where published weights lie. Exactly one of url and repo."""

    url: HttpUrl | None = Field(default=None, description="https address of the weights file.")
    repo: Repository | None = Field(default=None, description="Hugging Face repository, owner/name.")
    revision: GitRevision | None = Field(default=None, description="Full commit hash of the repository.")
    path: RelativePath | None = Field(default=None, description="Path of the file inside the repository.")
    sha256: Sha256 | None = Field(default=None, description="SHA-256 of the file; null only where it is not known yet.")

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.url is None) == (self.repo is None):
            msg = "name exactly one of url and repo"
            raise ValueError(msg)
        if self.repo is not None and (self.revision is None or self.path is None):
            msg = "repo needs revision and path"
            raise ValueError(msg)
        return self


class SeededWeights(Strict):
    """Random weights from a seed: the real architecture without the real knowledge; said so in every manifest."""

    kind: Literal["seeded"] = Field(description="Random weights from a seed.")
    seed: StrictInt = Field(default=0, ge=0, lt=2**32, description="Seed of every random generator at export.")
    pretrained: PretrainedFile | None = Field(
        default=None, description="Where the published weights lie, recorded but not used."
    )


class PretrainedWeights(Strict):
    """Published weights, fetched by digest and given to the recipe's loader."""

    kind: Literal["pretrained"] = Field(description="Published weights, fetched by digest.")
    file: PretrainedFile = Field(description="Where the weights lie.")

    @model_validator(mode="after")
    def _digest_known(self) -> Self:
        if self.file.sha256 is None:
            msg = "pretrained weights need file.sha256"
            raise ValueError(msg)
        return self


Weights = Annotated[SeededWeights | PretrainedWeights, Field(discriminator="kind")]


class Export(Strict):
    """How PyTorch becomes ONNX."""

    opset: StrictInt = Field(default=17, ge=13, le=23, description="ONNX opset.")
    exporter: Literal["torchscript", "dynamo"] = Field(default="torchscript", description="PyTorch's exporter.")
    input_names: list[str] = Field(min_length=1, description="Names of the graph inputs, in call order.")
    output_names: list[str] = Field(min_length=1, description="Names of the graph outputs, in return order.")
    dynamic_axes: dict[str, dict[int, str]] = Field(
        default_factory=dict, description="Tensor name to axis to symbolic name, for axes that vary."
    )


class InputShapes(Strict):
    """Shapes of one input within one shape profile."""

    min: Shape = Field(description="Smallest shape the engine takes.")
    opt: Shape = Field(description="Shape the engine is tuned for.")
    max: Shape = Field(description="Largest shape the engine takes.")
    also: list[Shape] = Field(default_factory=list, description="Further shapes to verify, between min and max.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for shape_name, shape in [("opt", self.opt), ("max", self.max), *(("also", item) for item in self.also)]:
            if len(shape) != len(self.min):
                msg = f"{shape_name} {shape} has another rank than min {self.min}"
                raise ValueError(msg)
        for axis, (low, best, high) in enumerate(zip(self.min, self.opt, self.max, strict=True)):
            if not low <= best <= high:
                msg = f"axis {axis}: min {low}, opt {best}, max {high} are not in order (min <= opt <= max)"
                raise ValueError(msg)
            for shape in self.also:
                if not low <= shape[axis] <= high:
                    msg = f"axis {axis}: also {shape} lies outside min {low} and max {high}"
                    raise ValueError(msg)
        return self


class ShapeProfile(Strict):
    """One TensorRT optimisation profile."""

    name: Name = Field(default="default", description="Name of the profile in manifests and messages.")
    inputs: dict[str, InputShapes] = Field(min_length=1, description="Shapes per graph input.")


class Tolerance(Strict):
    """Largest distance from the reference; a metric that is absent is not checked."""

    max_abs: StrictFloat | None = Field(default=None, ge=0, description="Largest absolute difference.")
    max_rel: StrictFloat | None = Field(default=None, ge=0, description="Largest difference relative to the reference.")
    mse: StrictFloat | None = Field(default=None, ge=0, description="Mean squared error.")
    cosine: StrictFloat | None = Field(default=None, ge=-1, le=1, description="Smallest cosine similarity.")

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.max_abs is None and self.max_rel is None and self.mse is None and self.cosine is None:
            msg = "name at least one of max_abs, max_rel, mse, cosine"
            raise ValueError(msg)
        return self


class ToleranceSet(Strict):
    """Tolerance for all outputs, and for single outputs where they differ."""

    default: Tolerance = Field(description="For every output not named under outputs.")
    outputs: dict[str, Tolerance] = Field(default_factory=dict, description="Per output name.")


class KeepFp32(Strict):
    """What stays in FP32 when the rest is lowered."""

    nodes: list[str] = Field(default_factory=list, description="Node names of the ONNX graph.")
    ops: list[str] = Field(default_factory=list, description="ONNX operator types.")


CalibrationMethod = Literal["entropy", "minmax"]


class Calibration(Strict):
    """How TensorRT finds the ranges of INT8: it runs the model on batches of the recipe's own inputs.

    A batch has the opt shape of the first shape profile. Generators go on from their seeds, other values than those
    that verification feeds; a sample file is read on, batch by batch along its first axis, and from the front again.
    """

    batches: StrictInt = Field(default=16, ge=1, le=4096, description="Batches to run.")
    method: CalibrationMethod = Field(
        default="entropy",
        description="entropy: ranges that lose least information; minmax: the whole range that was seen.",
    )


class PrecisionSettings(Strict):
    """How one precision is made and judged."""

    tolerance: ToleranceSet = Field(description="What verification allows.")
    keep_fp32: KeepFp32 = Field(default_factory=KeepFp32, description="What stays in FP32.")
    auto_fp32: StrictBool = Field(
        default=False, description="On a breach of the tolerance, look for the fewest nodes to keep in FP32."
    )
    targets: list[Name] | None = Field(
        default=None, min_length=1, description="Targets allowed for this precision; null: all that the recipe allows."
    )
    calibration: Calibration | None = Field(
        default=None, description="Only for int8: how its ranges are found; null there: 16 batches, entropy."
    )


class NormalInput(Strict):
    """Normally distributed values from a seed."""

    kind: Literal["normal"] = Field(description="Normally distributed values from a seed.")
    seed: StrictInt = Field(default=0, ge=0, lt=2**32, description="Seed.")
    mean: StrictFloat = Field(default=0.0, description="Mean.")
    std: StrictFloat = Field(default=1.0, ge=0, description="Standard deviation.")


class UniformInput(Strict):
    """Uniformly distributed values from a seed."""

    kind: Literal["uniform"] = Field(description="Uniformly distributed values from a seed.")
    seed: StrictInt = Field(default=0, ge=0, lt=2**32, description="Seed.")
    low: StrictFloat = Field(default=0.0, description="Smallest value.")
    high: StrictFloat = Field(default=1.0, description="Largest value.")

    _low_to_high = model_validator(mode="after")(low_to_high)


class IntsInput(Strict):
    """Whole numbers from a seed."""

    kind: Literal["ints"] = Field(description="Whole numbers from a seed.")
    seed: StrictInt = Field(default=0, ge=0, lt=2**32, description="Seed.")
    low: StrictInt = Field(default=0, description="Smallest value.")
    high: StrictInt = Field(description="One more than the largest value.")

    _low_to_high = model_validator(mode="after")(low_to_high)


class FileInput(Strict):
    """Values from a .npy file in the recipe's folder, tiled or cropped along dynamic axes."""

    kind: Literal["file"] = Field(description="Values from a .npy file in the recipe's folder.")
    path: RelativePath = Field(description="Path inside the recipe's folder.")
    sha256: Sha256 = Field(description="SHA-256 of the file.")


Generator = Annotated[NormalInput | UniformInput | IntsInput | FileInput, Field(discriminator="kind")]


class InputSpec(Strict):
    """What to feed one input during verification and benchmarks."""

    dtype: Literal["float32", "float16", "int32", "int64", "int8", "uint8", "bool"] = Field(
        default="float32", description="Element type of the graph input."
    )
    values: Generator = Field(description="Where the values come from.")


Compatibility = Literal["none", "ampere_plus", "same_compute_capability"]
COMPATIBILITY: tuple[str, ...] = get_args(Compatibility)
TacticSource = Literal["cublas", "cublas_lt", "cudnn", "edge_mask_convolutions", "jit_convolutions"]


class BuildOptions(Strict):
    """TensorRT builder settings; a stack that lacks one refuses the job while planning."""

    workspace_mib: StrictInt | None = Field(
        default=None, ge=1, description="Workspace limit in MiB; null: TensorRT's own."
    )
    optimization_level: StrictInt | None = Field(default=None, ge=0, le=5, description="Builder optimisation level.")
    hardware_compatibility: Compatibility = Field(
        default="none", description="Run on other GPUs than the one built on."
    )
    version_compatible: StrictBool = Field(default=False, description="Run under other minor releases of TensorRT.")
    strip_weights: StrictBool = Field(
        default=False,
        description="Leave refittable weights out of the engine; they are kept beside it, once for all SMs.",
    )
    refit: StrictBool = Field(default=False, description="Let weights be replaced later.")
    weight_streaming: StrictBool = Field(default=False, description="Let weights be read from host memory at run time.")
    tactic_sources: list[TacticSource] | None = Field(
        default=None, description="Libraries that tactics may come from; null: TensorRT's own choice."
    )


class BenchSettings(Strict):
    """How an engine is timed on a GPU."""

    warmup: StrictInt = Field(default=20, ge=0, description="Untimed runs before the timed ones.")
    iterations: StrictInt = Field(default=200, ge=1, description="Timed runs.")


class Recipe(Strict):
    """One model: where it comes from, its shapes, its precisions and what counts as correct."""

    name: Name = Field(description="Name of the model; the recipe's folder has the same name.")
    description: str = Field(min_length=1, description="One sentence for people.")
    licence: str = Field(min_length=1, description="SPDX id of the weights' licence, or its name.")
    source: Source = Field(description="Where the model comes from.")
    weights: Weights | None = Field(
        default=None, description="Only for Python sources; an ONNX file brings its weights along."
    )
    export: Export | None = Field(default=None, description="Only for Python sources: how PyTorch becomes ONNX.")
    profiles: list[ShapeProfile] = Field(min_length=1, description="Shape profiles.")
    precisions: dict[Precision, PrecisionSettings] = Field(min_length=1, description="Precisions to build.")
    inputs: dict[str, InputSpec] = Field(min_length=1, description="Values for verification, per graph input.")
    stacks: list[Name] | None = Field(default=None, min_length=1, description="Stacks allowed; null: all.")
    targets: list[Name] | None = Field(default=None, min_length=1, description="Targets allowed; null: all.")
    build: BuildOptions = Field(default_factory=BuildOptions, description="TensorRT builder settings.")
    bench: BenchSettings = Field(default_factory=BenchSettings, description="Benchmark settings.")

    @field_validator("precisions")
    @classmethod
    def _settings_fit(cls, precisions: dict[Precision, PrecisionSettings]) -> dict[Precision, PrecisionSettings]:
        for precision, settings in precisions.items():
            keeps = settings.auto_fp32 or settings.keep_fp32 != KeepFp32()
            msg = None
            if precision is not Precision.INT8 and settings.calibration is not None:
                msg = f"{precision.value} has a calibration, and only int8 is calibrated"
            elif precision is Precision.INT8 and settings.auto_fp32:
                msg = "int8 has auto_fp32, which searches on the CPU: int8 cannot be emulated there"
            elif keeps and precision in (Precision.FP32, Precision.TF32):
                msg = f"{precision.value} has keep_fp32 or auto_fp32, and lowers no node that could stay in FP32"
            if msg is not None:
                raise ValueError(msg)
        return precisions

    @model_validator(mode="after")
    def _python_needs_export(self) -> Self:
        is_python = isinstance(self.source, PythonSource)
        if is_python and (self.export is None or self.weights is None):
            msg = "a python source needs the sections export and weights"
            raise ValueError(msg)
        if not is_python and (self.export is not None or self.weights is not None):
            msg = f"a source of kind {self.source.kind} is ONNX already: remove the sections export and weights"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        declared = set(self.inputs)
        for profile in self.profiles:
            if set(profile.inputs) != declared:
                missing, extra = sorted(declared - set(profile.inputs)), sorted(set(profile.inputs) - declared)
                msg = f"profile {profile.name} and inputs differ: not in the profile {missing}, not in inputs {extra}"
                raise ValueError(msg)
        if self.export is not None and set(self.export.input_names) != declared:
            msg = f"export.input_names {self.export.input_names} and inputs {sorted(declared)} differ"
            raise ValueError(msg)
        names = [profile.name for profile in self.profiles]
        if len(set(names)) != len(names):
            msg = f"shape profiles need different names, got {names}"
            raise ValueError(msg)
        return self

    def calibration(self, precision: str) -> Calibration | None:
        """Return how a precision is calibrated; None for one that needs no calibration."""
        if precision != Precision.INT8.value:
            return None
        return self.precisions[Precision.INT8].calibration or Calibration()

    @property
    def weights_kind(self) -> Literal["seeded", "pretrained"]:
        """`seeded` only when the recipe says so; an ONNX file counts as pretrained."""
        return "pretrained" if self.weights is None else self.weights.kind
