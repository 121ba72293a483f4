"""Base images: pinned by digest in images/bases.toml, each with a recipe for a stand-in. Data only; no door."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from builder.errors import EnginefarmError, Reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_NAME = "bases.toml"
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Standin(_Model):
    """How to make a base from a distribution's packages. `hooks`: names of mmdebstrap's own hook folders."""

    suite: str
    python: str
    variant: str
    include: list[str] = Field(min_length=1)
    hooks: list[str] = Field(default_factory=list)


class Base(_Model):
    """A base image. `digest` is that of the image or of its index; `python` such as "3.11"."""

    ref: str
    digest: Digest
    platforms: list[str] = Field(min_length=1)
    python: str
    confirmed: bool
    source: str
    standin: Standin | None = None

    @property
    def pinned(self) -> str:
        """The reference with tag and digest."""
        return f"{self.ref}@{self.digest}"


class Drop(_Model):
    """What a stand-in does without: shell patterns against paths without a leading slash."""

    paths: list[str]


class _BasesFile(_Model):
    source_date_epoch: int = Field(gt=0)
    bases: dict[str, Base]
    drop: Drop


@dataclass(frozen=True, slots=True, kw_only=True)
class Bases:
    """All of images/bases.toml."""

    source_date_epoch: int
    bases: dict[str, Base]
    drop: tuple[str, ...]

    def get(self, name: str) -> Base:
        """Return a base.

        Raises:
            EnginefarmError: STACK_INVALID where a stack names a base that does not exist.

        """
        if name not in self.bases:
            what = f"there is no base {name!r} in {FILE_NAME}"
            raise EnginefarmError(Reason.STACK_INVALID, what, fix=f"bases: {', '.join(self.bases)}")
        return self.bases[name]


def load_bases(images: Path) -> Bases:
    """Read images/bases.toml.

    Raises:
        EnginefarmError: STACK_INVALID, naming each wrong field.

    """
    path = images / FILE_NAME
    try:
        content = _BasesFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise EnginefarmError(Reason.STACK_INVALID, f"{FILE_NAME} is missing", where=str(images)) from error
    except tomllib.TOMLDecodeError as error:
        raise EnginefarmError(Reason.STACK_INVALID, str(error), where=str(path)) from error
    except ValidationError as error:
        fields = "\n".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise EnginefarmError(
            Reason.STACK_INVALID, "the list of bases is wrong", where=str(path), why=fields
        ) from error
    return Bases(source_date_epoch=content.source_date_epoch, bases=content.bases, drop=tuple(content.drop.paths))
