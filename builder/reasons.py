"""Reason codes: one table; docs/errors.md is generated from it."""

from __future__ import annotations

from enum import Enum

from builder.exit_codes import ExitCode
from builder.reason_info import info


class Reason(Enum):
    """Reason codes. 1xx input, 2xx planning, 3xx this machine, 4xx stages, 5xx store, 6xx reproduction, 9xx other."""

    RECIPE_INVALID = info(
        "101", "recipe-invalid", ExitCode.BAD_INPUT, "a recipe does not say what a recipe must say", "correct the lines"
    )
    RECIPE_UNKNOWN = info(
        "102", "recipe-unknown", ExitCode.BAD_INPUT, "no recipe has this name", "`enginefarm plan` lists the recipes"
    )
    TARGET_UNKNOWN = info(
        "103", "target-unknown", ExitCode.BAD_INPUT, "no target has this name", "use one of the names in the message"
    )
    STACK_UNKNOWN = info(
        "104", "stack-unknown", ExitCode.BAD_INPUT, "no stack has this name", "use one of the names in the message"
    )
    STACK_INVALID = info(
        "105", "stack-invalid", ExitCode.BAD_INPUT, "a stack or target file is malformed", "correct the lines"
    )
    FILE_MISSING = info(
        "106",
        "file-missing",
        ExitCode.BAD_INPUT,
        "a file that a recipe names is not there",
        "add it or correct the path",
    )
    DIGEST_MISMATCH = info(
        "107",
        "digest-mismatch",
        ExitCode.BAD_INPUT,
        "a fetched or named file does not have the SHA-256 that was asked for",
        "find out why the file changed; only then change the recipe",
    )
    PROJECT_MISSING = info(
        "108",
        "project-missing",
        ExitCode.BAD_INPUT,
        "no folder with recipes/ and images/ was found",
        "run inside a checkout, or name it with --project",
    )
    NAME_UNKNOWN = info(
        "109",
        "name-unknown",
        ExitCode.BAD_INPUT,
        "nothing in the store has this name",
        "`enginefarm ls` lists the store",
    )
    PATH_OCCUPIED = info(
        "110", "path-occupied", ExitCode.BAD_INPUT, "the folder to write to holds other files", "name an empty folder"
    )

    SM_MISMATCH = info(
        "201", "sm-mismatch", ExitCode.REFUSED, "the stack cannot build for this SM", "choose one of the stacks named"
    )
    PRECISION_UNSUPPORTED = info(
        "202",
        "precision-unsupported",
        ExitCode.REFUSED,
        "the stack or the GPU generation lacks this precision",
        "choose another precision, target or stack",
    )
    OPTION_UNSUPPORTED = info(
        "203",
        "option-unsupported",
        ExitCode.REFUSED,
        "the stack lacks a build option that the recipe asks for",
        "drop the option or choose another stack",
    )
    NOTHING_TO_DO = info(
        "204", "nothing-to-do", ExitCode.REFUSED, "the selection leaves no job", "widen --recipe, --target or --stack"
    )
    NOT_ALLOWED_BY_RECIPE = info(
        "205",
        "not-allowed-by-recipe",
        ExitCode.REFUSED,
        "the recipe does not list this stack or target",
        "add it to the recipe if the model supports it",
    )
    GPU_NEEDED = info(
        "206",
        "gpu-needed",
        ExitCode.REFUSED,
        "this stack builds only on a machine with the GPU",
        "build there, or choose a stack that needs none",
    )
    IMAGE_TOO_LARGE = info(
        "207",
        "image-too-large",
        ExitCode.REFUSED,
        "an image is larger than its stack's budget",
        "prune more, or raise budget_mib knowingly",
    )

    PYTHON_MISSING = info(
        "301", "python-missing", ExitCode.ENVIRONMENT, "no fitting Python for a stack", "install the version named"
    )
    ENVIRONMENT_MISSING = info(
        "302",
        "environment-missing",
        ExitCode.ENVIRONMENT,
        "the stack's environment is not installed and installing is off",
        "run once without --no-install",
    )
    INSTALL_FAILED = info(
        "303",
        "install-failed",
        ExitCode.ENVIRONMENT,
        "the packages of a stack could not be installed",
        "read the log that the message names; check network, proxy and disk",
    )
    FETCH_FAILED = info(
        "304",
        "fetch-failed",
        ExitCode.ENVIRONMENT,
        "a file could not be fetched",
        "check network and proxy; a file already in the fetch cache needs no network",
    )
    DISK_FULL = info(
        "305",
        "disk-full",
        ExitCode.ENVIRONMENT,
        "not enough disk space",
        "free the bytes named, or move ENGINEFARM_HOME",
    )
    STORE_READ_ONLY = info(
        "306",
        "store-read-only",
        ExitCode.ENVIRONMENT,
        "the store cannot be written",
        "change its permissions, or set ENGINEFARM_HOME to a folder of yours",
    )
    MEMORY_SHORT = info(
        "307",
        "memory-short",
        ExitCode.ENVIRONMENT,
        "the machine has less free memory than the job is known to need",
        "close other programs, or build on a larger machine",
    )
    TOOL_MISSING = info(
        "308", "tool-missing", ExitCode.ENVIRONMENT, "a program that is needed is not installed", "install it"
    )
    DOCKER_UNAVAILABLE = info(
        "309",
        "docker-unavailable",
        ExitCode.ENVIRONMENT,
        "no Docker Engine answers, or it stopped answering",
        "start it, or use --executor local; `enginefarm doctor` says more",
    )
    BASE_UNAVAILABLE = info(
        "310",
        "base-unavailable",
        ExitCode.ENVIRONMENT,
        "a base image could not be had",
        "check network and proxy, name a mirror with --base-registry, or take --base stand-in",
    )
    IMAGE_BUILD_FAILED = info(
        "311", "image-build-failed", ExitCode.ENVIRONMENT, "an image could not be built", "read the log named"
    )
    IMAGE_MISSING = info(
        "312",
        "image-missing",
        ExitCode.ENVIRONMENT,
        "the image of a stack is not here and building it is off",
        "`enginefarm images build STACK`, or run without --no-install",
    )
    IMAGE_INVALID = info(
        "313",
        "image-invalid",
        ExitCode.ENVIRONMENT,
        "an image is not what it should be",
        "build it again with `enginefarm images build STACK`",
    )
    PUSH_FAILED = info(
        "314",
        "push-failed",
        ExitCode.ENVIRONMENT,
        "an image could not be pushed to a registry, or not what belongs to it",
        "check the name, `docker login` and the network; pushing again goes on where it stopped",
    )
    GPU_BUSY = info(
        "318",
        "gpu-busy",
        ExitCode.ENVIRONMENT,
        "another program holds the GPU",
        "wait until it is done, or name another GPU in CUDA_VISIBLE_DEVICES",
    )
    EXECUTOR_UNAVAILABLE = info(
        "321", "executor-unavailable", ExitCode.ENVIRONMENT, "this machine cannot run stages so", "use another executor"
    )
    GPU_MEMORY_SHORT = info(
        "319",
        "gpu-memory-short",
        ExitCode.ENVIRONMENT,
        "the GPU has less free memory than the job needs",
        "end the programs that hold it, or use smaller maximum shapes",
    )
    GPU_UNREADABLE = info(
        "320",
        "gpu-unreadable",
        ExitCode.ENVIRONMENT,
        "NVIDIA's driver does not answer",
        "run `nvidia-smi`; `enginefarm doctor` says more",
    )
    WORKER_DIED = info(
        "401",
        "worker-died",
        ExitCode.STAGE_FAILED,
        "the process of a stage ended without a result (killed, crashed)",
        "read the log; if the kernel killed it, lower -j",
    )
    STAGE_TIMEOUT = info(
        "402", "stage-timeout", ExitCode.STAGE_FAILED, "a stage took longer than its limit", "raise --timeout"
    )
    EXPORT_FAILED = info(
        "403", "export-failed", ExitCode.STAGE_FAILED, "the model could not be exported to ONNX", "see the place named"
    )
    WEIGHTS_INVALID = info(
        "404", "weights-invalid", ExitCode.STAGE_FAILED, "the weights do not fit the model", "compare the keys named"
    )
    MODEL_INVALID = info(
        "405", "model-invalid", ExitCode.STAGE_FAILED, "the ONNX file is not a valid model", "export it again"
    )
    INPUT_INVALID = info(
        "406",
        "input-invalid",
        ExitCode.STAGE_FAILED,
        "the recipe names something that the model does not have",
        "use the names in the message",
    )
    PROFILE_INVALID = info(
        "407",
        "profile-invalid",
        ExitCode.STAGE_FAILED,
        "the graph cannot take a shape of the shape profile",
        "change the shape profile to what the graph allows",
    )
    OP_UNSUPPORTED = info(
        "408",
        "op-unsupported",
        ExitCode.STAGE_FAILED,
        "TensorRT refuses a node of the graph",
        "export the model without this operator, or use a stack that has it",
    )
    BUILD_FAILED = info(
        "409", "build-failed", ExitCode.STAGE_FAILED, "TensorRT could not build the engine", "read TensorRT's message"
    )
    OUT_OF_MEMORY = info(
        "410",
        "out-of-memory",
        ExitCode.STAGE_FAILED,
        "a stage ran out of memory",
        "lower -j or the workspace, or use smaller maximum shapes",
    )
    SM_UNSUPPORTED = info(
        "411", "sm-unsupported", ExitCode.STAGE_FAILED, "TensorRT refuses the SM list", "correct the stack's SM list"
    )
    PRECISION_SILENT_FP32 = info(
        "412",
        "precision-silent-fp32",
        ExitCode.STAGE_FAILED,
        "layers that should run in low precision run in FP32",
        "name them in keep_fp32 if that is meant, else correct the export",
    )
    NUMERICS_NONFINITE = info(
        "413",
        "numerics-nonfinite",
        ExitCode.STAGE_FAILED,
        "the low-precision model gives inf or NaN",
        "keep the node named in FP32, or use bf16",
    )
    NUMERICS_TOLERANCE = info(
        "414",
        "numerics-tolerance",
        ExitCode.STAGE_FAILED,
        "an output is further from the reference than the recipe allows",
        "keep the layer named in FP32, or widen the tolerance knowingly",
    )
    STAGE_CONTRACT = info(
        "415",
        "stage-contract",
        ExitCode.STAGE_FAILED,
        "a stage gave a result that breaks the worker protocol",
        "report it with the log",
    )
    ENGINE_INVALID = info(
        "416", "engine-invalid", ExitCode.STAGE_FAILED, "TensorRT cannot load the engine", "build it again"
    )
    ENGINE_VERSION = info(
        "417",
        "engine-version",
        ExitCode.STAGE_FAILED,
        "the engine was built by another version of TensorRT",
        "build it with this stack, or use the stack of its version",
    )
    TIMING_CACHE_INVALID = info(
        "418",
        "timing-cache-invalid",
        ExitCode.STAGE_FAILED,
        "a timing cache is damaged, or of another GPU or TensorRT",
        "use the cache of this stack and GPU, or build without one",
    )
    SEALED_CACHE_CHANGED = info(
        "419",
        "sealed-cache-changed",
        ExitCode.STAGE_FAILED,
        "a sealed build had to time a tactic that its timing cache lacks",
        "build without the seal first, then seal the cache of that build",
    )
    LIBRARY_MISSING = info(
        "420", "library-missing", ExitCode.STAGE_FAILED, "TensorRT lacks a library", "build the stack's image again"
    )
    BENCH_NOISY = info(
        "421",
        "bench-noisy",
        ExitCode.STAGE_FAILED,
        "timings spread too far, or the GPU was throttled: they say nothing",
        "keep other programs off the GPU, let it cool, and measure again",
    )
    PRECISION_LOST_FP32 = info(
        "422",
        "precision-lost-fp32",
        ExitCode.STAGE_FAILED,
        "a node that was to stay in FP32 runs in low precision",
        "keep the nodes around it in FP32, too, or choose another stack",
    )
    PRECISION_UNPROVEN = info(
        "423",
        "precision-unproven",
        ExitCode.STAGE_FAILED,
        "the engine does not say what its layers compute in",
        "build it with profiling verbosity DETAILED, as enginefarm does",
    )

    STORE_CORRUPT = info(
        "501",
        "store-corrupt",
        ExitCode.STORE,
        "a file of the store is not what its digest says",
        "run `enginefarm build` again: it sets the bad file aside and rebuilds",
    )
    STORE_FOREIGN = info(
        "502",
        "store-foreign",
        ExitCode.STORE,
        "the folder is not a store of this version",
        "set ENGINEFARM_HOME to another folder",
    )
    MANIFEST_INVALID = info(
        "503", "manifest-invalid", ExitCode.STORE, "a manifest is not readable", "rebuild the engine"
    )

    NOT_REPRODUCIBLE = info(
        "601", "not-reproducible", ExitCode.NOT_REPRODUCIBLE, "a rebuild drifted", "see what differs first"
    )

    INPUTS_CHANGED = info(
        "602",
        "inputs-changed",
        ExitCode.REFUSED,
        "the recipe, a lock or the worker has changed since the engine was built",
        "build the job again, then reproduce it",
    )

    INTERRUPTED = info(
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
