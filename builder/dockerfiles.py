"""The stacks' Dockerfiles, written from one template, so that all are built the same way."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, StrictUndefined

from builder.bases import load_bases
from builder.stacks import LOCK_NAME, load_stacks

STEPS = "steps"
_TEMPLATE = "Dockerfile.j2"
_CHECK = "check.py"


def generated_image_files(images: Path) -> dict[str, str]:
    """Map path below `images` to text, for each file that a stack's folder shares with the others.

    Raises:
        EnginefarmError: STACK_INVALID.

    """
    bases, environment = load_bases(images), Environment(undefined=StrictUndefined, autoescape=False)  # noqa: S701
    template = environment.from_string((images / STEPS / _TEMPLATE).read_text(encoding="utf-8"))
    check = (images / STEPS / _CHECK).read_text(encoding="utf-8")
    files = {}
    for name, stack in load_stacks(images).items():
        base = bases.get(stack.spec.image.base)
        files[f"{name}/Dockerfile"] = template.render(spec=stack.spec, base=base, lock=LOCK_NAME) + "\n"
        files[f"{name}/{_CHECK}"] = check
    return files
