"""Pushes images to a registry, with bill of materials and provenance as referrers: the image stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from docker.auth import resolve_repository_name
from docker.errors import APIError

from builder import oci
from builder.artifact import PROVENANCE_TYPE, SBOM_TYPE
from builder.docker_engine import docker_errors
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, StepAdvanced
from builder.image_layout import INDEX_TYPES, MANIFEST_TYPES
from builder.image_record import ImageRecord
from builder.images import ImageBuilder
from builder.locks import named_lock
from builder.registry import Registry
from builder.sbom import bill_of_materials, provenance_statement
from builder.stacks import Stack
from builder.steps import told

_STORE_FIX = 'give Docker the containerd image store ("features": {"containerd-snapshotter": true}), then build again'


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedImage:
    """An image in a registry. `referrers`: kind to digest of what was put beside it."""

    reference: str
    digest: str
    referrers: dict[str, str]


def push_image(builder: ImageBuilder, stack: Stack, repository: str) -> PushedImage:
    """Push the image of a stack; doing it again changes nothing.

    Raises:
        EnginefarmError: IMAGE_MISSING, DOCKER_UNAVAILABLE, PUSH_FAILED, INTERRUPTED.

    """
    record = builder.built(stack)
    tag = record.tag.rpartition(":")[2]
    documents = {
        "sbom": (SBOM_TYPE, "sbom.cdx.json", bill_of_materials(record, stack, builder.bases)),
        "provenance": (PROVENANCE_TYPE, "provenance.intoto.json", provenance_statement(record, stack, builder.bases)),
    }
    with (
        named_lock(builder.home, f"push-{stack.name}", builder.cancel),
        told(builder.listen, f"image {stack.name}", "push"),
    ):
        _push(builder, record, repository, tag)
        with _failures(repository):
            host, name = resolve_repository_name(repository)
            registry = Registry(host, name, cancel=builder.cancel, listen=builder.listen)
            subject = _subject(registry, tag, record.digest)
            entries = {
                kind: registry.attach(subject, media_type, title, oci.as_json(document))
                for kind, (media_type, title, document) in documents.items()
            }
            # somebody else may have written the list of referrers meanwhile
            registry.ensure_listed(record.digest, list(entries.values()))
    return PushedImage(
        reference=f"{repository}:{tag}",
        digest=record.digest,
        referrers={kind: entry["digest"] for kind, entry in entries.items()},
    )


def _push(builder: ImageBuilder, record: ImageRecord, repository: str, tag: str) -> None:
    image = builder.engine.image(record.tag)
    if image is None or image.id != record.digest:
        what = f"Docker keeps {record.tag} in a form of its own: a registry would get another digest"
        raise EnginefarmError(Reason.PUSH_FAILED, what, fix=_STORE_FIX)
    what, api = f"{record.tag} could not be pushed to {repository}", builder.engine.client.api
    with docker_errors("pushing an image"):
        try:
            api.tag(record.tag, repository, tag, force=True)
            lines = api.push(repository, tag=tag, stream=True, decode=True)
        except APIError as error:
            raise EnginefarmError(Reason.PUSH_FAILED, what, why=str(error.explanation)) from error
        seen: dict[str, tuple[int, int]] = {}
        problems: list[str] = []
        # to the end, so that the connection can be used again
        for line in lines:
            if builder.cancel.is_set():
                raise EnginefarmError(Reason.INTERRUPTED, "pushing an image was stopped")
            problems += [str(line["error"])] if "error" in line else []
            _advance(builder.listen, record, seen, line)
    if problems:
        raise EnginefarmError(Reason.PUSH_FAILED, what, why="\n".join(problems))


def _advance(listen: Listener, record: ImageRecord, seen: dict[str, tuple[int, int]], line: Mapping[str, Any]) -> None:
    detail = line.get("progressDetail") or {}
    if "current" in detail and "total" in detail:
        seen[line.get("id", "")] = (int(detail["current"]), int(detail["total"]))
        done, total = (sum(figures) for figures in zip(*seen.values(), strict=True))
        listen(StepAdvanced(subject=f"image {record.stack}", done=done, total=total))


def _subject(registry: Registry, tag: str, expected: str) -> oci.Document:
    """Describe the manifest under a tag, which must be the expected one."""
    found = registry.manifest(tag, (*MANIFEST_TYPES, *INDEX_TYPES))
    actual = found[1]["digest"] if found is not None else "none"
    if found is None or actual != expected:
        why = f"expected {expected}\nactual   {actual}"
        what = f"{registry.registry}/{registry.repository} has another image as {tag}"
        raise EnginefarmError(Reason.PUSH_FAILED, what, why=why)
    return found[1]


@contextmanager
def _failures(repository: str) -> Iterator[None]:
    try:
        yield
    except EnginefarmError as error:
        if error.reason in {Reason.INTERRUPTED, Reason.PUSH_FAILED}:
            raise
        what = f"{repository} did not take what belongs to the image"
        why = f"{error.what}\n{error.why or ''}".rstrip()
        raise EnginefarmError(Reason.PUSH_FAILED, what, why=why, fix=error.fix) from error
