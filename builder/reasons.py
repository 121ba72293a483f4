"""Reason codes and exit codes: one table each; docs/errors.md is generated from them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """Exit codes of the `enginefarm` command. One table; docs/errors.md is generated from it."""

    OK = 0
    BUG = 1
    USAGE = 2
    BAD_INPUT = 3
    REFUSED = 4
    ENVIRONMENT = 5
    STAGE_FAILED = 6
    STORE = 7
    NOT_REPRODUCIBLE = 8
    INTERRUPTED = 130


EXIT_MEANING: dict[ExitCode, str] = {
    ExitCode.OK: "done",
    ExitCode.BUG: "a bug in enginefarm: the traceback is in the log that the message names",
    ExitCode.USAGE: "the command line is wrong",
    ExitCode.BAD_INPUT: "a recipe, a stack file or a name on the command line is wrong",
    ExitCode.REFUSED: "the request is understood but no job can fulfil it, for example an SM that the stack lacks",
    ExitCode.ENVIRONMENT: "this machine lacks something: Python, network, disk space, permission",
    ExitCode.STAGE_FAILED: "at least one job failed; the other jobs are done and kept",
    ExitCode.STORE: "the store holds something that is not what it claims to be",
    ExitCode.NOT_REPRODUCIBLE: "a rebuild gave other bytes",
    ExitCode.INTERRUPTED: "stopped by Ctrl-C; finished jobs are kept",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonInfo:
    """What a reason code means, for messages and for the generated page."""

    code: str
    slug: str
    exit_code: ExitCode
    meaning: str
    fix: str


def _info(code: str, slug: str, exit_code: ExitCode, meaning: str, fix: str) -> ReasonInfo:
    return ReasonInfo(code=f"EF-{code}", slug=slug, exit_code=exit_code, meaning=meaning, fix=fix)


class Reason(Enum):
    """Reason codes. 1xx input, 2xx planning, 3xx this machine, 4xx stages, 5xx store, 6xx reproduction, 9xx other."""

    RECIPE_INVALID = _info(
        "101", "recipe-invalid", ExitCode.BAD_INPUT, "a recipe does not say what a recipe must say", "correct the lines"
    )
    RECIPE_UNKNOWN = _info(
        "102", "recipe-unknown", ExitCode.BAD_INPUT, "no recipe has this name", "`enginefarm plan` lists the recipes"
    )
    TARGET_UNKNOWN = _info(
        "103", "target-unknown", ExitCode.BAD_INPUT, "no target has this name", "use one of the names in the message"
    )
    STACK_UNKNOWN = _info(
        "104", "stack-unknown", ExitCode.BAD_INPUT, "no stack has this name", "use one of the names in the message"
    )
    STACK_INVALID = _info(
        "105", "stack-invalid", ExitCode.BAD_INPUT, "a stack or target file is malformed", "correct the lines"
    )
    FILE_MISSING = _info(
        "106",
        "file-missing",
        ExitCode.BAD_INPUT,
        "a file that a recipe names is not there",
        "add it or correct the path",
    )
    DIGEST_MISMATCH = _info(
        "107",
        "digest-mismatch",
        ExitCode.BAD_INPUT,
        "a fetched or named file does not have the SHA-256 that was asked for",
        "find out why the file changed; only then change the recipe",
    )
    PROJECT_MISSING = _info(
        "108",
        "project-missing",
        ExitCode.BAD_INPUT,
        "no folder with recipes/ and images/ was found",
        "run inside a checkout, or name it with --project",
    )
    NAME_UNKNOWN = _info(
        "109",
        "name-unknown",
        ExitCode.BAD_INPUT,
        "nothing in the store has this name",
        "`enginefarm ls` lists the store",
    )
    PATH_OCCUPIED = _info(
        "110", "path-occupied", ExitCode.BAD_INPUT, "the folder to write to holds other files", "name an empty folder"
    )

    SM_MISMATCH = _info(
        "201", "sm-mismatch", ExitCode.REFUSED, "the stack cannot build for this SM", "choose one of the stacks named"
    )
    PRECISION_UNSUPPORTED = _info(
        "202",
        "precision-unsupported",
        ExitCode.REFUSED,
        "the stack or the GPU generation lacks this precision",
        "choose another precision, target or stack",
    )
    OPTION_UNSUPPORTED = _info(
        "203",
        "option-unsupported",
        ExitCode.REFUSED,
        "the stack lacks a build option that the recipe asks for",
        "drop the option or choose another stack",
    )
    NOTHING_TO_DO = _info(
        "204", "nothing-to-do", ExitCode.REFUSED, "the selection leaves no job", "widen --recipe, --target or --stack"
    )
    NOT_ALLOWED_BY_RECIPE = _info(
        "205",
        "not-allowed-by-recipe",
        ExitCode.REFUSED,
        "the recipe does not list this stack or target",
        "add it to the recipe if the model supports it",
    )
    GPU_NEEDED = _info(
        "206",
        "gpu-needed",
        ExitCode.REFUSED,
        "this stack builds only on a machine with the GPU",
        "build there, or choose a stack that needs none",
    )
    IMAGE_TOO_LARGE = _info(
        "207",
        "image-too-large",
        ExitCode.REFUSED,
        "an image is larger than its stack's budget",
        "prune more, or raise budget_mib knowingly",
    )

    PYTHON_MISSING = _info(
        "301", "python-missing", ExitCode.ENVIRONMENT, "no fitting Python for a stack", "install the version named"
    )
    ENVIRONMENT_MISSING = _info(
        "302",
        "environment-missing",
        ExitCode.ENVIRONMENT,
        "the stack's environment is not installed and installing is off",
        "run once without --no-install",
    )
    INSTALL_FAILED = _info(
        "303",
        "install-failed",
        ExitCode.ENVIRONMENT,
        "the packages of a stack could not be installed",
        "read the log that the message names; check network, proxy and disk",
    )
    FETCH_FAILED = _info(
        "304",
        "fetch-failed",
        ExitCode.ENVIRONMENT,
        "a file could not be fetched",
        "check network and proxy; a file already in the fetch cache needs no network",
    )
    DISK_FULL = _info(
        "305",
        "disk-full",
        ExitCode.ENVIRONMENT,
        "not enough disk space",
        "free the bytes named, or move ENGINEFARM_HOME",
    )
    STORE_READ_ONLY = _info(
        "306",
        "store-read-only",
        ExitCode.ENVIRONMENT,
        "the store cannot be written",
        "change its permissions, or set ENGINEFARM_HOME to a folder of yours",
    )
    MEMORY_SHORT = _info(
        "307",
        "memory-short",
        ExitCode.ENVIRONMENT,
        "the machine has less free memory than the job is known to need",
        "close other programs, or build on a larger machine",
    )
    TOOL_MISSING = _info(
        "308", "tool-missing", ExitCode.ENVIRONMENT, "a program that is needed is not installed", "install it"
    )
    DOCKER_UNAVAILABLE = _info(
        "309",
        "docker-unavailable",
        ExitCode.ENVIRONMENT,
        "no Docker Engine answers, or it stopped answering",
        "start it, or use --executor local; `enginefarm doctor` says more",
    )
    BASE_UNAVAILABLE = _info(
        "310",
        "base-unavailable",
        ExitCode.ENVIRONMENT,
        "a base image could not be had",
        "check network and proxy, name a mirror with --base-registry, or take --base stand-in",
    )
    IMAGE_BUILD_FAILED = _info(
        "311", "image-build-failed", ExitCode.ENVIRONMENT, "an image could not be built", "read the log named"
    )
    IMAGE_MISSING = _info(
        "312",
        "image-missing",
        ExitCode.ENVIRONMENT,
        "the image of a stack is not here and building it is off",
        "`enginefarm images build STACK`, or run without --no-install",
    )
    IMAGE_INVALID = _info(
        "313",
        "image-invalid",
        ExitCode.ENVIRONMENT,
        "an image is not what it should be",
        "build it again with `enginefarm images build STACK`",
    )
    PUSH_FAILED = _info(
        "314",
        "push-failed",
        ExitCode.ENVIRONMENT,
        "an image could not be pushed to a registry, or not what belongs to it",
        "check the name, `docker login` and the network; pushing again goes on where it stopped",
    )
    WORKER_DIED = _info(
        "401",
        "worker-died",
        ExitCode.STAGE_FAILED,
        "the process of a stage ended without a result (killed, crashed)",
        "read the log; if the kernel killed it, lower -j",
    )
    STAGE_TIMEOUT = _info(
        "402", "stage-timeout", ExitCode.STAGE_FAILED, "a stage took longer than its limit", "raise --timeout"
    )
    EXPORT_FAILED = _info(
        "403", "export-failed", ExitCode.STAGE_FAILED, "the model could not be exported to ONNX", "see the place named"
    )
    WEIGHTS_INVALID = _info(
        "404", "weights-invalid", ExitCode.STAGE_FAILED, "the weights do not fit the model", "compare the keys named"
    )
    MODEL_INVALID = _info(
        "405", "model-invalid", ExitCode.STAGE_FAILED, "the ONNX file is not a valid model", "export it again"
    )
    INPUT_INVALID = _info(
        "406",
        "input-invalid",
        ExitCode.STAGE_FAILED,
        "the recipe names something that the model does not have",
        "use the names in the message",
    )
    PROFILE_INVALID = _info(
        "407",
        "profile-invalid",
        ExitCode.STAGE_FAILED,
        "the graph cannot take a shape of the shape profile",
        "change the shape profile to what the graph allows",
    )
    OP_UNSUPPORTED = _info(
        "408",
        "op-unsupported",
        ExitCode.STAGE_FAILED,
        "TensorRT refuses a node of the graph",
        "export the model without this operator, or use a stack that has it",
    )
    BUILD_FAILED = _info(
        "409", "build-failed", ExitCode.STAGE_FAILED, "TensorRT could not build the engine", "read TensorRT's message"
    )
    OUT_OF_MEMORY = _info(
        "410",
        "out-of-memory",
        ExitCode.STAGE_FAILED,
        "a stage ran out of memory",
        "lower -j or the workspace, or use smaller maximum shapes",
    )
    SM_UNSUPPORTED = _info(
        "411", "sm-unsupported", ExitCode.STAGE_FAILED, "TensorRT refuses the SM list", "correct the stack's SM list"
    )
    PRECISION_SILENT_FP32 = _info(
        "412",
        "precision-silent-fp32",
        ExitCode.STAGE_FAILED,
        "layers that should run in low precision run in FP32",
        "name them in keep_fp32 if that is meant, else correct the export",
    )
    NUMERICS_NONFINITE = _info(
        "413",
        "numerics-nonfinite",
        ExitCode.STAGE_FAILED,
        "the low-precision model gives inf or NaN",
        "keep the node named in FP32, or use bf16",
    )
    NUMERICS_TOLERANCE = _info(
        "414",
        "numerics-tolerance",
        ExitCode.STAGE_FAILED,
        "an output is further from the reference than the recipe allows",
        "keep the layer named in FP32, or widen the tolerance knowingly",
    )
    STAGE_CONTRACT = _info(
        "415",
        "stage-contract",
        ExitCode.STAGE_FAILED,
        "a stage gave a result that breaks the worker protocol",
        "report it with the log",
    )

    STORE_CORRUPT = _info(
        "501",
        "store-corrupt",
        ExitCode.STORE,
        "a file of the store is not what its digest says",
        "run `enginefarm build` again: it sets the bad file aside and rebuilds",
    )
    STORE_FOREIGN = _info(
        "502",
        "store-foreign",
        ExitCode.STORE,
        "the folder is not a store of this version",
        "set ENGINEFARM_HOME to another folder",
    )
    MANIFEST_INVALID = _info(
        "503", "manifest-invalid", ExitCode.STORE, "a manifest is not readable", "rebuild the engine"
    )

    NOT_REPRODUCIBLE = _info(
        "601", "not-reproducible", ExitCode.NOT_REPRODUCIBLE, "the rebuild differs", "see what differs first"
    )

    INPUTS_CHANGED = _info(
        "602",
        "inputs-changed",
        ExitCode.REFUSED,
        "the recipe, a lock or the worker has changed since the engine was built",
        "build the job again, then reproduce it",
    )

    INTERRUPTED = _info(
        "901", "interrupted", ExitCode.INTERRUPTED, "stopped by the user", "run the same command again to go on"
    )

    @classmethod
    def from_slug(cls, slug: str) -> Reason:
        """Find the reason that a worker names; an unknown slug breaks the contract.

        Raises:
            KeyError: no reason has this slug.

        """
        return _BY_SLUG[slug]

    @classmethod
    def from_code(cls, code: str) -> Reason:
        """Find a reason by its stable code, such as `EF-201`.

        Raises:
            KeyError: no reason has this code.

        """
        return _BY_CODE[code]


_BY_SLUG = {reason.value.slug: reason for reason in Reason}
_BY_CODE = {reason.value.code: reason for reason in Reason}
