"""Stores to publish from, and what a registry shows of them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from builder import artifact, oci
from builder.manifest import Manifest
from builder.publish import Pushed, choose_packages, parse_destination, push_engines
from builder.publish_seal import Seal
from builder.registry import Registry
from builder.store import Store
from builder.titles import ENGINE, KEY, MANIFEST, PROOF
from tests.engines import manifest


def fill(store: Store, *, recipe: str = "tiny", count: int = 2, size: int = 1 << 20, seed: int = 0) -> list[Manifest]:
    """Add engines of other precisions, of random bytes."""
    made = []
    for number in range(count):
        content = os.urandom(size)
        described = manifest(recipe, f"p{seed}-{number}")
        sha256 = oci.digest_of(content).removeprefix("sha256:")
        engine = described.engine.model_copy(update={"sha256": sha256, "size": size})
        described = described.model_copy(update={"engine": engine})
        files: dict[str, Path | bytes] = {
            ENGINE: content,
            MANIFEST: described.to_json().encode(),
            KEY: b"{}",
            PROOF: b"{}",
            "timing.cache": b"cache",
        }
        store.add(kind="engine", key=described.key, name=described.job, files=files)
        made.append(described)
    return made


def push(store: Store, registry: str, cancel: threading.Event | None = None) -> list[Pushed]:
    place = parse_destination(f"{registry}/engines", "latest")
    seal = Seal(store=store, signer=None)
    packages = choose_packages(store, [])
    return push_engines(packages, place, cancel=cancel or threading.Event(), listen=lambda _: None, seal=seal)


def repository(registry: str, model: str = "tiny") -> Registry:
    return Registry(registry, f"engines/{model}", cancel=threading.Event(), listen=lambda _: None)


def read_index(registry: str, model: str = "tiny") -> artifact.ModelIndex | None:
    found = repository(registry, model).manifest("latest", (oci.INDEX_TYPE,))
    return None if found is None else artifact.parse_index(found[0], registry, model)
