"""What the farm keeps in the Docker Engine: its images, dead containers, and its records in the build cache."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from docker.errors import APIError, ImageNotFound

from builder.disk import Item
from builder.docker_engine import OWNER, RUN, DockerEngine, docker_errors
from builder.image_inputs import REPOSITORY
from builder.image_record import ImageRecord, records
from builder.project import Home

_CONFLICT = 409


def docker_items(engine: DockerEngine, home: Home) -> Iterator[Item]:
    """List images that this home has a record of, and build cache that the farm's Dockerfiles made."""
    with docker_errors("asking for its disk use"):
        usage = engine.client.df()
    sizes = {one["Id"]: int(one.get("Size") or 0) for one in usage.get("Images") or ()}
    for path, record in records(home):
        image = engine.image(record.tag)
        if image is None:
            yield Item(kind="image record", name=record.tag, size=0, used=0.0, remove=partial(_forget, path))
        elif image.id in {record.digest, record.config_digest}:
            yield Item(
                kind="image",
                name=record.tag,
                size=sizes.get(image.id, record.compressed_bytes),
                used=path.stat().st_mtime,
                remove=partial(_remove_image, engine, record, path),
            )
    yield from _cache_items(engine, [one for one in usage.get("BuildCache") or () if not one.get("InUse")])


def _cache_items(engine: DockerEngine, cache: list[dict[str, Any]]) -> Iterator[Item]:
    """List the farm's records of the build cache, those that others are built on last: they cannot go before."""
    by_id = {str(one["ID"]): one for one in cache}
    children: dict[str, list[str]] = {}
    for one in cache:
        # the engine's own spelling has a space in it
        for parent in one.get("Parents") or one.get(" Parents") or ():
            children.setdefault(str(parent), []).append(str(one["ID"]))

    # what is built on a step of a farm's Dockerfile is a later step of the same
    ours: dict[str, dict[str, Any]] = {}
    left = [identity for identity, one in by_id.items() if REPOSITORY in str(one.get("Description", ""))]
    while left:
        identity = left.pop()
        if identity not in ours:
            ours[identity] = by_id[identity]
            left += children.get(identity, ())

    def used(identity: str) -> float:
        own = _seconds(str(ours[identity].get("LastUsedAt") or ours[identity].get("CreatedAt") or ""))
        return max([own, *(used(child) for child in children.get(identity, ()) if child in ours)])

    def depth(identity: str) -> int:
        return 1 + max((depth(child) for child in children.get(identity, ()) if child in ours), default=0)

    for identity in sorted(ours, key=depth):
        size, remove = int(ours[identity]["Size"]), partial(_remove_cache, engine, identity)
        yield Item(kind="build cache", name=identity, size=size, used=used(identity), remove=remove)


def dead_containers(engine: DockerEngine, home: Home) -> Iterator[Item]:
    """List containers of this home whose run is over."""
    for container in engine.containers(f"{OWNER}={home.root}"):
        if not Path(container.labels.get(RUN, "")).is_dir():

            def remove(one: object = container) -> bool:
                engine.remove(one)
                return True

            yield Item(kind="container", name=container.short_id, size=0, used=0.0, remove=remove)


def _forget(path: Path) -> bool:
    path.unlink(missing_ok=True)
    return True


def _remove_image(engine: DockerEngine, record: ImageRecord, path: Path) -> bool:
    with docker_errors(f"removing image {record.tag}"):
        try:
            # by its name: what else is called by the same digest stays
            engine.client.images.remove(record.tag)
        except ImageNotFound:
            pass
        except APIError as error:
            if error.status_code != _CONFLICT:
                raise
            # a container uses it
            return False
    return _forget(path)


def _remove_cache(engine: DockerEngine, identity: str) -> bool:
    with docker_errors("pruning its build cache"):
        freed = engine.client.api.prune_builds(filters={"id": identity}, all=True)
    return bool(freed.get("CachesDeleted"))


def _seconds(stamp: str) -> float:
    # nine digits of a second are more than Python reads
    text = re.sub(r"\.\d+", "", stamp).replace("Z", "+00:00")
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return datetime.now(tz=timezone.utc).timestamp()
