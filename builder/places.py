"""Where models are published: a repository of a registry, or a folder. Both answer to the same verbs."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.events import Listener
from builder.model_folder import ModelFolder
from builder.registry import Registry, is_tag, parse_reference
from builder.store_index import DIGEST

T = TypeVar("T")

PREFIX_VARIABLE = "ENGINEFARM_REGISTRY"
FOLDER = "oci:"
_TAG = "latest"
_MODEL = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")


class Place(Protocol):
    """What holds one model's indexes, engines and signatures; `builder.registry.Registry` says what each verb does."""

    def manifest(self, reference: str, accept: tuple[str, ...]) -> tuple[bytes, oci.Document] | None:
        """Read a manifest with its descriptor."""

    def fetch(self, descriptor: oci.Document, destination: Path) -> None:
        """Read a blob."""

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[oci.Document]:
        """List what is attached to a manifest."""

    def push(self, content: Path | bytes, digest: str, size: int, *, mount_from: str | None = None) -> bool:
        """Write a blob."""

    def put_manifest(self, reference: str, content: bytes, media_type: str) -> oci.Document:
        """Write a manifest."""

    def ensure_listed(self, digest: str, entries: list[oci.Document]) -> None:
        """Make what is attached findable."""

    def together(self, tasks: Iterable[Callable[[], T]]) -> list[T]:
        """Run transfers at the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A model's index at a place. `version`: tag or digest to ask for; `name`: the place as messages show it.

    `pinned`: asked for by digest, so that there is nothing to roll back.
    """

    place: Place
    model: str
    name: str
    version: str
    pinned: bool

    @property
    def shown(self) -> str:
        """The whole reference."""
        return f"{self.name}{'@' if self.pinned else ':'}{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """How to talk to a registry, who may stop it and who listens."""

    cancel: threading.Event
    listen: Listener
    plain_http: bool = False


def full_reference(text: str, registry: str | None, environ: Mapping[str, str]) -> str:
    """Put the usual registry before a model that is named alone. `registry`: taken before $ENGINEFARM_REGISTRY.

    Raises:
        EnginefarmError: REFERENCE_INVALID where no registry is known.

    """
    if text.startswith(FOLDER) or "/" in text:
        return text
    prefix = registry or environ.get(PREFIX_VARIABLE)
    if not prefix:
        fix = f"name it as REGISTRY/PREFIX/{text}, pass --registry, or set {PREFIX_VARIABLE}"
        raise EnginefarmError(Reason.REFERENCE_INVALID, f"{text!r} names no registry", fix=fix)
    return f"{prefix.rstrip('/')}/{text}"


def locate(text: str, talk: Talk) -> Located:
    """Read `REGISTRY/PREFIX/MODEL[:TAG][@DIGEST]` or `oci:FOLDER/MODEL[:TAG][@DIGEST]`; nothing is asked yet.

    Raises:
        EnginefarmError: REFERENCE_INVALID.

    """
    if text.startswith(FOLDER):
        return _folder(text)
    reference = parse_reference(text)
    model = reference.repository.rpartition("/")[2]
    place = Registry(
        reference.registry,
        reference.repository,
        plain_http=talk.plain_http,
        cancel=talk.cancel,
        listen=talk.listen,
        subject=model,
    )
    return Located(
        place=place,
        model=model,
        name=f"{reference.registry}/{reference.repository}",
        version=reference.version or _TAG,
        pinned=reference.digest is not None,
    )


def _folder(text: str) -> Located:
    path, at, digest = text.removeprefix(FOLDER).partition("@")
    parent, slash, last = path.rpartition("/")
    model, colon, tag = last.partition(":")
    problem, root = None, Path(f"{parent}{slash}{model}")
    try:
        root = root.expanduser().absolute()
        root.exists()
    except (OSError, RuntimeError) as error:
        # longer than any name, or in the home of nobody
        problem = str(error)
    if not _MODEL.fullmatch(model):
        problem = f"{model!r} is no model's name: lower case, digits, and . _ - between them"
    elif colon and not is_tag(tag):
        problem = f"{tag!r} is not a tag: letters, digits, . _ -, at most 128"
    elif at and not DIGEST.fullmatch(digest):
        problem = f"{digest!r} is not a digest such as sha256:<64 hexadecimal digits>"
    if problem is not None:
        what = f"{text!r} names nothing in a folder"
        fix = "write oci:FOLDER/MODEL:TAG, with the model's name as the last folder"
        raise EnginefarmError(Reason.REFERENCE_INVALID, what, why=problem, fix=fix)
    return Located(
        place=ModelFolder(root),
        model=model,
        name=f"{FOLDER}{root}",
        version=digest or tag or _TAG,
        pinned=bool(digest),
    )
