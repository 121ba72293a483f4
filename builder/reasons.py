"""Reason codes: one table; their texts lie in resources/reasons.toml, and docs/errors.md is generated from both."""

from __future__ import annotations

from enum import Enum

from builder.exit_codes import ExitCode
from builder.reason_info import info


class Reason(Enum):
    """1xx input, 2xx planning and fitness, 3xx this machine, 4xx stages, 5xx store, 6xx reproduction, 7xx trust."""

    RECIPE_INVALID = info("101", "recipe-invalid", ExitCode.BAD_INPUT)
    RECIPE_UNKNOWN = info("102", "recipe-unknown", ExitCode.BAD_INPUT)
    TARGET_UNKNOWN = info("103", "target-unknown", ExitCode.BAD_INPUT)
    STACK_UNKNOWN = info("104", "stack-unknown", ExitCode.BAD_INPUT)
    STACK_INVALID = info("105", "stack-invalid", ExitCode.BAD_INPUT)
    FILE_MISSING = info("106", "file-missing", ExitCode.BAD_INPUT)
    DIGEST_MISMATCH = info("107", "digest-mismatch", ExitCode.BAD_INPUT)
    PROJECT_MISSING = info("108", "project-missing", ExitCode.BAD_INPUT)
    NAME_UNKNOWN = info("109", "name-unknown", ExitCode.BAD_INPUT)
    PATH_OCCUPIED = info("110", "path-occupied", ExitCode.BAD_INPUT)
    FACTS_INVALID = info("111", "facts-invalid", ExitCode.BAD_INPUT)
    REFERENCE_INVALID = info("112", "reference-invalid", ExitCode.BAD_INPUT)
    POLICY_INVALID = info("113", "policy-invalid", ExitCode.BAD_INPUT)

    SM_MISMATCH = info("201", "sm-mismatch", ExitCode.REFUSED)
    PRECISION_UNSUPPORTED = info("202", "precision-unsupported", ExitCode.REFUSED)
    OPTION_UNSUPPORTED = info("203", "option-unsupported", ExitCode.REFUSED)
    NOTHING_TO_DO = info("204", "nothing-to-do", ExitCode.REFUSED)
    NOT_ALLOWED_BY_RECIPE = info("205", "not-allowed-by-recipe", ExitCode.REFUSED)
    GPU_NEEDED = info("206", "gpu-needed", ExitCode.REFUSED)
    IMAGE_TOO_LARGE = info("207", "image-too-large", ExitCode.REFUSED)
    TENSORRT_VERSION = info("211", "tensorrt-version", ExitCode.REFUSED)
    CUDA_MAJOR = info("212", "cuda-major", ExitCode.REFUSED)
    DRIVER_TOO_OLD = info("213", "driver-too-old", ExitCode.REFUSED)
    PLATFORM_MISMATCH = info("214", "platform-mismatch", ExitCode.REFUSED)
    PLUGIN_MISSING = info("215", "plugin-missing", ExitCode.REFUSED)
    HOST_CODE_REFUSED = info("216", "host-code-refused", ExitCode.REFUSED)
    PRECISION_MISMATCH = info("217", "precision-mismatch", ExitCode.REFUSED)
    UNSIGNED = info("218", "unsigned", ExitCode.UNTRUSTED)
    NOT_VERIFIED = info("219", "not-verified", ExitCode.REFUSED)
    KNOWN_BAD = info("220", "known-bad", ExitCode.REFUSED)
    NO_ENGINE_FITS = info("221", "no-engine-fits", ExitCode.REFUSED)

    PYTHON_MISSING = info("301", "python-missing", ExitCode.ENVIRONMENT)
    ENVIRONMENT_MISSING = info("302", "environment-missing", ExitCode.ENVIRONMENT)
    INSTALL_FAILED = info("303", "install-failed", ExitCode.ENVIRONMENT)
    FETCH_FAILED = info("304", "fetch-failed", ExitCode.ENVIRONMENT)
    DISK_FULL = info("305", "disk-full", ExitCode.ENVIRONMENT)
    STORE_READ_ONLY = info("306", "store-read-only", ExitCode.ENVIRONMENT)
    MEMORY_SHORT = info("307", "memory-short", ExitCode.ENVIRONMENT)
    TOOL_MISSING = info("308", "tool-missing", ExitCode.ENVIRONMENT)
    DOCKER_UNAVAILABLE = info("309", "docker-unavailable", ExitCode.ENVIRONMENT)
    BASE_UNAVAILABLE = info("310", "base-unavailable", ExitCode.ENVIRONMENT)
    IMAGE_BUILD_FAILED = info("311", "image-build-failed", ExitCode.ENVIRONMENT)
    IMAGE_MISSING = info("312", "image-missing", ExitCode.ENVIRONMENT)
    IMAGE_INVALID = info("313", "image-invalid", ExitCode.ENVIRONMENT)
    PUSH_FAILED = info("314", "push-failed", ExitCode.ENVIRONMENT)
    GPU_BUSY = info("318", "gpu-busy", ExitCode.ENVIRONMENT)
    GPU_MEMORY_SHORT = info("319", "gpu-memory-short", ExitCode.ENVIRONMENT)
    GPU_UNREADABLE = info("320", "gpu-unreadable", ExitCode.ENVIRONMENT)
    EXECUTOR_UNAVAILABLE = info("321", "executor-unavailable", ExitCode.ENVIRONMENT)
    REGISTRY_UNREACHABLE = info("322", "registry-unreachable", ExitCode.ENVIRONMENT)
    REGISTRY_REFUSED = info("323", "registry-refused", ExitCode.ENVIRONMENT)
    INDEX_CONTESTED = info("324", "index-contested", ExitCode.ENVIRONMENT)

    WORKER_DIED = info("401", "worker-died", ExitCode.STAGE_FAILED)
    STAGE_TIMEOUT = info("402", "stage-timeout", ExitCode.STAGE_FAILED)
    EXPORT_FAILED = info("403", "export-failed", ExitCode.STAGE_FAILED)
    WEIGHTS_INVALID = info("404", "weights-invalid", ExitCode.STAGE_FAILED)
    MODEL_INVALID = info("405", "model-invalid", ExitCode.STAGE_FAILED)
    INPUT_INVALID = info("406", "input-invalid", ExitCode.STAGE_FAILED)
    PROFILE_INVALID = info("407", "profile-invalid", ExitCode.STAGE_FAILED)
    OP_UNSUPPORTED = info("408", "op-unsupported", ExitCode.STAGE_FAILED)
    BUILD_FAILED = info("409", "build-failed", ExitCode.STAGE_FAILED)
    OUT_OF_MEMORY = info("410", "out-of-memory", ExitCode.STAGE_FAILED)
    SM_UNSUPPORTED = info("411", "sm-unsupported", ExitCode.STAGE_FAILED)
    PRECISION_SILENT_FP32 = info("412", "precision-silent-fp32", ExitCode.STAGE_FAILED)
    NUMERICS_NONFINITE = info("413", "numerics-nonfinite", ExitCode.STAGE_FAILED)
    NUMERICS_TOLERANCE = info("414", "numerics-tolerance", ExitCode.STAGE_FAILED)
    STAGE_CONTRACT = info("415", "stage-contract", ExitCode.STAGE_FAILED)
    ENGINE_INVALID = info("416", "engine-invalid", ExitCode.STAGE_FAILED)
    ENGINE_VERSION = info("417", "engine-version", ExitCode.STAGE_FAILED)
    TIMING_CACHE_INVALID = info("418", "timing-cache-invalid", ExitCode.STAGE_FAILED)
    SEALED_CACHE_CHANGED = info("419", "sealed-cache-changed", ExitCode.STAGE_FAILED)
    LIBRARY_MISSING = info("420", "library-missing", ExitCode.STAGE_FAILED)
    BENCH_NOISY = info("421", "bench-noisy", ExitCode.STAGE_FAILED)
    PRECISION_LOST_FP32 = info("422", "precision-lost-fp32", ExitCode.STAGE_FAILED)
    PRECISION_UNPROVEN = info("423", "precision-unproven", ExitCode.STAGE_FAILED)
    RUN_FAILED = info("424", "run-failed", ExitCode.STAGE_FAILED)

    STORE_CORRUPT = info("501", "store-corrupt", ExitCode.STORE)
    STORE_FOREIGN = info("502", "store-foreign", ExitCode.STORE)
    MANIFEST_INVALID = info("503", "manifest-invalid", ExitCode.STORE)

    NOT_REPRODUCIBLE = info("601", "not-reproducible", ExitCode.NOT_REPRODUCIBLE)
    INPUTS_CHANGED = info("602", "inputs-changed", ExitCode.REFUSED)

    ARTIFACT_MISSING = info("701", "artifact-missing", ExitCode.BAD_INPUT)
    ARTIFACT_INVALID = info("702", "artifact-invalid", ExitCode.UNTRUSTED)
    ARTIFACT_TOO_NEW = info("703", "artifact-too-new", ExitCode.REFUSED)
    DOWNLOAD_CORRUPT = info("704", "download-corrupt", ExitCode.UNTRUSTED)
    SIZE_REFUSED = info("705", "size-refused", ExitCode.UNTRUSTED)
    NAME_UNSAFE = info("706", "name-unsafe", ExitCode.UNTRUSTED)
    IDENTITY_MISMATCH = info("707", "identity-mismatch", ExitCode.UNTRUSTED)
    SIGNATURE_INVALID = info("711", "signature-invalid", ExitCode.UNTRUSTED)
    SIGNER_UNKNOWN = info("712", "signer-unknown", ExitCode.UNTRUSTED)
    KEY_EXPIRED = info("713", "key-expired", ExitCode.UNTRUSTED)
    KEY_REVOKED = info("714", "key-revoked", ExitCode.UNTRUSTED)
    INDEX_ROLLED_BACK = info("715", "index-rolled-back", ExitCode.UNTRUSTED)
    ENGINE_HEADER = info("716", "engine-header", ExitCode.UNTRUSTED)

    INTERRUPTED = info("901", "interrupted", ExitCode.INTERRUPTED)

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
