"""What an engine says of itself, as far as it decides where it runs: from its manifest or an image index. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.errors import EnginefarmError, Reason

PREFIX = "org.enginefarm."
SCHEMA_VERSION = 1
_SM = re.compile(r"\d{1,2}\.\d")
_VERSION = re.compile(r"\d{1,4}(\.[0-9A-Za-z]{1,12}){0,5}")
_SHA256 = re.compile(r"(sha256:)?[0-9a-f]{64}")
_L4T = re.compile(r"l4t(\d+(?:\.\d+)*)")
_LONGEST = 1000
_LEVELS = ("none", "ampere_plus", "same_compute_capability")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An engine that may fit. `sms`: compute capabilities it was built for, none where that is not known.

    `device`, `driver`: of the GPU it was tuned on, null if on none; `l4t`: release of Jetson's Linux it is for, null
    for others; `host_code`: carries code that runs on the host; `digest`: of its OCI manifest, null outside a registry;
    `rtx`: of TensorRT-RTX.
    """

    job: str
    key: str
    stack: str
    tensorrt: str
    cuda: str
    precision: str
    sms: tuple[str, ...]
    device: str | None = None
    driver: str | None = None
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    host_code: bool = False
    plugins: tuple[str, ...] = ()
    os: str
    architecture: str
    l4t: str | None = None
    engine_verified: bool = False
    weights: str = ""
    engine_sha256: str = ""
    size: int = 0
    digest: str | None = None
    rtx: bool = False


def candidate_of_manifest(
    manifest: Mapping[str, Any], *, plugins: Sequence[str] = (), digest: str | None = None
) -> Candidate:
    """Read what decides from an engine's manifest. Plugins are named by its key document, not by the manifest.

    Raises:
        EnginefarmError: MANIFEST_INVALID, ARTIFACT_TOO_NEW.

    """
    try:
        _check_schema(manifest["schema_version"])
        stack, engine, build = manifest["stack"], manifest["engine"], manifest["build"]
        tuned, options = build["tuned_on"], build["options"]
        system, _, architecture = _text(stack["platform"]).partition("/")
        return _checked(
            Candidate(
                job=_text(manifest["job"]),
                key=_text(manifest["key"]),
                stack=_text(stack["name"]),
                tensorrt=_text(stack["tensorrt"]),
                cuda=_text(stack["cuda"]),
                precision=_text(manifest["precision"]["requested"]),
                sms=tuple(_text(sm) for sm in manifest["target"]["sms"]),
                device=None if tuned is None else _text(tuned["name"]),
                driver=None if tuned is None else _text(tuned["driver"]),
                hardware_compatibility=_text(options.get("hardware_compatibility", "none")),
                version_compatible=_flag(options.get("version_compatible", False)),
                host_code=_flag(engine["needs_host_code"]),
                plugins=tuple(plugins),
                os=system,
                architecture=architecture,
                l4t=_l4t(stack["name"]),
                engine_verified=_flag(manifest["proof"]["engine_verified"]),
                weights=_text(manifest["recipe"]["weights"]),
                engine_sha256=_text(engine["sha256"]),
                size=int(engine["size"]),
                digest=digest,
                rtx=is_rtx(stack["name"], stack["tensorrt"]),
            )
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = f"missing: {error}" if isinstance(error, KeyError) else str(error)
        raise EnginefarmError(
            Reason.MANIFEST_INVALID, "the manifest does not say where its engine runs", why=why
        ) from error


def candidate_of_annotations(descriptor: Mapping[str, Any]) -> Candidate:
    """Read what decides from a descriptor of an image index. These are hints: the manifest decides again.

    Raises:
        EnginefarmError: ARTIFACT_INVALID.

    """
    try:
        said = {
            _text(name).removeprefix(PREFIX): _text(value)
            for name, value in descriptor["annotations"].items()
            if name.startswith(PREFIX)
        }
        platform = descriptor["platform"]
        return _checked(
            Candidate(
                job=said["job"],
                key=said["key"],
                stack=said["stack"],
                tensorrt=said["tensorrt"],
                cuda=said["cuda"],
                precision=said["precision"],
                sms=tuple(said["sms"].split(",")),
                device=said.get("device"),
                driver=said.get("driver"),
                hardware_compatibility=said.get("hardware-compatibility", "none"),
                version_compatible=_bool(said.get("version-compatible", "false")),
                host_code=_bool(said["host-code"]),
                plugins=tuple(name for name in said.get("plugins", "").split(",") if name),
                os=_text(platform["os"]),
                architecture=_text(platform["architecture"]),
                l4t=_l4t(said["stack"]),
                engine_verified=_bool(said.get("engine-verified", "false")),
                weights=said.get("weights", ""),
                engine_sha256=said["engine"].removeprefix("sha256:"),
                size=int(said["engine-size"]),
                digest=_text(descriptor["digest"]),
                rtx=is_rtx(said["stack"], said["tensorrt"]),
            )
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = f"missing: {error}" if isinstance(error, KeyError) else str(error)
        what = "the index describes an engine in a way that cannot be read"
        raise EnginefarmError(Reason.ARTIFACT_INVALID, what, why=why) from error


def _check_schema(version: object) -> None:
    if type(version) is int and version > SCHEMA_VERSION:
        what = f"the manifest has schema version {version}; this enginefarm reads {SCHEMA_VERSION}"
        raise EnginefarmError(Reason.ARTIFACT_TOO_NEW, what)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ValueError(f"schema_version is {version!r}")


def _checked(candidate: Candidate) -> Candidate:
    """Refuse what cannot be compared, before it is.

    Raises:
        ValueError: names the field.

    """
    for sm in candidate.sms:
        if not _SM.fullmatch(sm):
            raise ValueError(f"sms: {sm!r} is no compute capability")
    for name in ("tensorrt", "cuda"):
        if not _VERSION.fullmatch(getattr(candidate, name)):
            raise ValueError(f"{name}: {getattr(candidate, name)!r} is no version")
    if not _SHA256.fullmatch(candidate.engine_sha256):
        raise ValueError(f"engine: {candidate.engine_sha256!r} is no SHA-256")
    if candidate.hardware_compatibility not in _LEVELS:
        raise ValueError(
            f"hardware compatibility: {candidate.hardware_compatibility!r} is none of {', '.join(_LEVELS)}"
        )
    if not candidate.sms or candidate.size < 0 or not candidate.os or not candidate.architecture:
        raise ValueError("sms, size or platform is empty")
    return candidate


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    # it comes from elsewhere and is shown on terminals
    if not value.isprintable() or len(value) > _LONGEST:
        raise ValueError(f"{value[:40]!r} is too long, or has characters that cannot be shown")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither true nor false")
    return value


def _bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _l4t(stack: str) -> str | None:
    match = _L4T.match(stack)
    return match[1] if match else None


def is_rtx(stack: str, tensorrt: str) -> bool:
    """Say whether a stack is of TensorRT-RTX."""
    # classic releases that are still about begin with 8; TensorRT-RTX is at 1
    return stack.startswith("trtrtx") or tensorrt.startswith("1.")
