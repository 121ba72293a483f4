"""Stacks: one TensorRT flavour x CUDA x platform each, read from images/<stack>/stack.toml and its lock."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from packaging.markers import Marker
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from typing_extensions import Self

from builder.errors import EnginefarmError, Reason
from builder.features import features_of
from builder.targets import suggestion

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SM = Annotated[str, StringConstraints(pattern=r"^[0-9]+\.[0-9]$")]
LOCK_NAME = "requirements.lock"
MACHINES = {"linux/amd64": "x86_64", "linux/arm64": "aarch64"}
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class LockVariant(BaseModel):
    """Another lock of a stack, for a TensorRT of the same family whose parts come from elsewhere."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str
    base: str
    tensorrt: str
    import_name: str
    python: list[str] = Field(min_length=1)
    confirmed: bool
    budget_mib: int = Field(gt=0)


class ImageSpec(BaseModel):
    """The image of a stack. `budget_mib`: what its compressed layers may take; `env`: beyond the common variables.

    `per_sm`: patterns of files that only builds for one SM need; an image for some targets leaves the others' out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str
    budget_mib: int = Field(gt=0)
    env: dict[str, str] = Field(default_factory=dict)
    per_sm: dict[SM, list[str]] = Field(default_factory=dict)
    locks: dict[str, LockVariant] = Field(default_factory=dict)


class _StackFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    platform: str
    python: list[str] = Field(min_length=1)
    confirmed: bool
    installed_mib: int = Field(ge=0)
    image: ImageSpec
    default: bool = False
    extra_index: str | None = None


class BuildStackFile(_StackFile):
    """stack.toml of a stack that builds engines.

    `lacks`: features (of trt-features.toml) that its TensorRT has and the stack has not, each with a comment why.
    """

    role: Literal["build"]
    family: Literal["rtx", "trt8", "trt10", "trt11"]
    import_name: str
    tensorrt: str
    cuda: str
    needs_gpu: bool
    sms: list[SM] = Field(min_length=1)
    alone: list[SM] = Field(default_factory=list)
    grouping: Literal["together", "each"]
    precisions: list[str] = Field(min_length=1)
    lacks: list[str] = Field(default_factory=list)

    @property
    def features(self) -> frozenset[str]:
        """Names of the features that this stack has."""
        return features_of(self.family, self.tensorrt) - frozenset(self.lacks)

    @model_validator(mode="after")
    def _lacks_what_there_is(self) -> Self:
        unknown = sorted(set(self.lacks) - features_of(self.family, self.tensorrt))
        if unknown:
            msg = f"lacks {', '.join(unknown)}, which TensorRT {self.tensorrt} has not either (trt-features.toml)"
            raise ValueError(msg)
        return self


class ExportStackFile(_StackFile):
    """stack.toml of the stack that turns Python models into ONNX."""

    role: Literal["export"]


_STACK_FILE: TypeAdapter[BuildStackFile | ExportStackFile] = TypeAdapter(
    Annotated[BuildStackFile | ExportStackFile, Field(discriminator="role")]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One line of a lock: `pin` as `name==version` or `name @ url`; any of the hashes will do."""

    pin: str
    marker: str | None
    hashes: tuple[str, ...]

    @property
    def url(self) -> str | None:
        """Where a part that no index has comes from."""
        return self.pin.partition(" @ ")[2] or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """A stack and the lock that pins its packages by hash. `variant`: name of its other lock, if that is taken."""

    folder: Path
    spec: BuildStackFile | ExportStackFile
    lock: str
    variant: str | None = None

    @property
    def name(self) -> str:
        """Name of the stack, equal to its folder's."""
        return self.spec.name

    @property
    def lock_path(self) -> Path:
        """Path of the hash-locked requirements."""
        return self.folder / (self.spec.image.locks[self.variant].file if self.variant else LOCK_NAME)

    @property
    def lock_sha256(self) -> str:
        """SHA-256 of the lock text, hex."""
        return _sha256(self.lock)

    @property
    def build(self) -> BuildStackFile:
        """The build part; only for stacks that build engines."""
        if not isinstance(self.spec, BuildStackFile):
            msg = f"stack {self.name} does not build engines"
            raise TypeError(msg)
        return self.spec

    def packages(self, python: str) -> tuple[str, ...]:
        """List the pins (`name==version`) that the lock means for a Python such as "3.11", sorted."""
        return tuple(sorted(requirement.pin for requirement in self.requirements(python)))

    def requirements(self, python: str) -> tuple[Requirement, ...]:
        """List the lines of the lock that count for a Python such as "3.11"."""
        return _requirements(self.lock, python, self.spec.platform)

    def omitted(self, sms: Collection[str]) -> tuple[str, ...]:
        """List the patterns of files that an image for these SMs does without.

        Raises:
            EnginefarmError: OPTION_UNSUPPORTED where the stack has no parts of single SMs.

        """
        per_sm = self.spec.image.per_sm
        if not per_sm:
            what = f"stack {self.name} has no parts of single SMs: its image is the same for every target"
            raise EnginefarmError(Reason.OPTION_UNSUPPORTED, what, fix="build it without --target")
        needed = {pattern for sm in sms for pattern in per_sm.get(sm, ())}
        return tuple(sorted({pattern for patterns in per_sm.values() for pattern in patterns} - needed))

    def of_lock(self, lock_sha256: str) -> Stack | None:
        """Return the stack with the one of its locks that has this digest; null where none has."""
        locks = (self, *(self.with_lock(variant) for variant in self.spec.image.locks))
        return next((stack for stack in locks if stack.lock_sha256 == lock_sha256), None)

    def with_lock(self, variant: str) -> Stack:
        """Return the stack with another of its locks.

        Raises:
            EnginefarmError: STACK_UNKNOWN where it has no such lock.

        """
        known = self.spec.image.locks
        if variant not in known:
            fix = f"its locks: {', '.join(known) or 'the one it always takes'}"
            raise EnginefarmError(Reason.STACK_UNKNOWN, f"stack {self.name} has no lock {variant!r}", fix=fix)
        other = known[variant]
        path = self.folder / other.file
        if not path.is_file():
            raise EnginefarmError(Reason.STACK_INVALID, f"{other.file} is missing", where=str(self.folder))
        image = self.spec.image.model_copy(update={"base": other.base, "budget_mib": other.budget_mib})
        changes = {
            "python": other.python,
            "confirmed": other.confirmed,
            "tensorrt": other.tensorrt,
            "import_name": other.import_name,
            "image": image,
        }
        return Stack(
            folder=self.folder,
            spec=self.spec.model_copy(update=changes),
            lock=path.read_text(encoding="utf-8"),
            variant=variant,
        )


def load_stacks(images: Path) -> dict[str, Stack]:
    """Read every images/<stack>/stack.toml, sorted by name.

    Raises:
        EnginefarmError: STACK_INVALID, naming the file and each wrong field.

    """
    return {path.parent.name: _load(path) for path in sorted(images.glob("*/stack.toml"))}


def build_stacks(stacks: Mapping[str, Stack]) -> dict[str, Stack]:
    """Keep the stacks that build engines."""
    return {name: stack for name, stack in stacks.items() if isinstance(stack.spec, BuildStackFile)}


def choose_stacks(stacks: Mapping[str, Stack], names: tuple[str, ...]) -> tuple[Stack, ...]:
    """Pick build stacks by name; no name means the default ones.

    Raises:
        EnginefarmError: STACK_UNKNOWN, with the nearest valid name.

    """
    known = build_stacks(stacks)
    for name in names:
        if name not in known:
            raise EnginefarmError(
                Reason.STACK_UNKNOWN, f"there is no stack {name!r}", fix=suggestion(name, known, "stacks")
            )
    return tuple(known[name] for name in dict.fromkeys(names)) or tuple(s for s in known.values() if s.spec.default)


def _load(path: Path) -> Stack:
    lock_path = path.parent / LOCK_NAME
    try:
        spec = _STACK_FILE.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
        lock = lock_path.read_text(encoding="utf-8")
    except tomllib.TOMLDecodeError as error:
        raise EnginefarmError(Reason.STACK_INVALID, str(error), where=str(path)) from error
    except ValidationError as error:
        fields = "\n".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in error.errors())
        raise EnginefarmError(Reason.STACK_INVALID, "the stack file is wrong", where=str(path), why=fields) from error
    except FileNotFoundError as error:
        raise EnginefarmError(
            Reason.STACK_INVALID, f"{LOCK_NAME} is missing", where=str(path.parent), fix="run scripts/update-locks.py"
        ) from error
    if spec.name != path.parent.name:
        raise EnginefarmError(
            Reason.STACK_INVALID, f"name is {spec.name!r} but the folder is {path.parent.name!r}", where=str(path)
        )
    return Stack(folder=path.parent, spec=spec, lock=lock)


@cache
def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _requirements(lock: str, python: str, platform: str) -> tuple[Requirement, ...]:
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "implementation_name": "cpython",
        "platform_machine": MACHINES[platform],
    }
    found = []
    for line in lock.replace("\\\n", " ").splitlines():
        text = line.partition(" --hash=")[0].strip()
        if not text or text.startswith(("#", "-")):
            continue
        pin, _, marker = text.partition(" ; ")
        if not marker or Marker(marker.strip()).evaluate(environment):
            hashes = tuple(_HASH.findall(line))
            found.append(Requirement(pin=pin.strip(), marker=marker.strip() or None, hashes=hashes))
    return tuple(found)
