"""Builds an image twice, without a cache, in two places and at two times, and compares the results."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from builder.errors import EnginefarmError, Reason
from builder.image_compare import Difference, first_difference
from builder.images import ImageBuilder
from builder.stacks import Stack
from builder.workspace import Workspace

# file times have whole seconds, so a build that leaks its time shows after two
_LATER_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageReproduction:
    """The verdict: two digests, and where they part."""

    stack: str
    first: str
    second: str
    difference: Difference | None


def reproduce_image(builder: ImageBuilder, stack: Stack) -> ImageReproduction:
    """Build a stack's image twice and compare.

    Raises:
        EnginefarmError: as `ImageBuilder.build`.

    """
    with Workspace(builder.home, keep=False) as workspace:
        parts = builder.gather(stack)
        here, there = workspace.folder / "first", workspace.folder / "a-second-place-with-a-longer-path"
        first = builder.export(parts, here, cache=False)
        if builder.cancel.wait(_LATER_S):
            raise EnginefarmError(Reason.INTERRUPTED, "stopped between two builds")
        # copied, not linked: other files, at another place, as new as can be
        copied = shutil.copytree(stack.folder, there / "context", copy_function=shutil.copyfile)
        moved = replace(parts, inputs=replace(parts.inputs, stack=replace(stack, folder=Path(copied))))
        second = builder.export(moved, there, cache=False)
        difference = first_difference(first, second)
        return ImageReproduction(stack=stack.name, first=first.digest, second=second.digest, difference=difference)
