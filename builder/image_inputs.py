"""What an image is made of, hashed: the same inputs have the same tag, and a change gives another one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from builder.bases import Bases
from builder.durable import sha256_file
from builder.stacks import Stack

REPOSITORY = "enginefarm"
# Settings of BuildKit that change bytes; part of the inputs.
EXPORT = "oci-mediatypes=true,compression=zstd,compression-level=3,force-compression=true,rewrite-timestamp=true"
PIP_LOCK = Path("steps", "pip.lock")
_FORMAT = 1
# notes for people, and what a lock was made from, change no image
_IGNORED = (".md", ".in")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInputs:
    """Inputs of one image and their digest, hex."""

    stack: Stack
    base_digest: str
    epoch: int
    sha256: str
    omit: tuple[str, ...] = ()

    @property
    def tag(self) -> str:
        """Name of the image in a Docker Engine."""
        variant = f"{self.stack.variant}-" if self.stack.variant else ""
        return f"{REPOSITORY}/{self.stack.name}:{variant}{self.sha256[:16]}"


def image_inputs(stack: Stack, bases: Bases, base_digest: str, omit: tuple[str, ...] = ()) -> ImageInputs:
    """Hash the stack's folder, the base and the build settings. `omit`: patterns of files to leave out."""
    folder = stack.folder
    files = {path.name: sha256_file(path) for path in context_files(folder)}
    document = {
        "format": _FORMAT,
        "files": files,
        "pip": sha256_file(folder.parent / PIP_LOCK),
        "lock": stack.lock_path.name,
        "omit": list(omit),
        "base": base_digest,
        "epoch": bases.source_date_epoch,
        "export": EXPORT,
        "platform": stack.spec.platform,
    }
    text = json.dumps(document, sort_keys=True)
    return ImageInputs(
        stack=stack,
        base_digest=base_digest,
        epoch=bases.source_date_epoch,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        omit=omit,
    )


def context_files(folder: Path) -> list[Path]:
    """List the files of a stack that its build sees, sorted."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in _IGNORED)
