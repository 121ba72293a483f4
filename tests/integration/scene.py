"""A registry, an application that pulls from it and loads what it has pulled, and a spy in TensorRT's place."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder import oci, registry_retry
from builder.artifact import make_index
from builder.errors import EnginefarmError, Reason
from builder.keys import KeyPair
from builder.places import Located, Place, Talk, locate
from builder.policy_rules import Policy
from builder.project import Home
from builder.pull import Order, Puller
from builder.runtime.folder import read_engine
from builder.runtime.reasons import EngineRefused
from builder.store import Store
from builder.worker.trt import loading
from tests.published import (
    MODEL,
    Parcel,
    Published,
    finish_engine,
    key_pair,
    machine,
    parcel,
    policy_for,
    publish,
    publish_engine,
    sha256,
    signer_of,
)


class Spy:
    """A TensorRT that counts what it is given to deserialize."""

    def __init__(self) -> None:
        self.deserialized: list[bytes] = []

    def Runtime(self, _: object) -> Spy:  # noqa: N802 - TensorRT's name
        return self

    def deserialize_cuda_engine(self, content: bytes) -> object:
        self.deserialized.append(content)
        return object()


@dataclass
class Scene:
    """A registry, an application that pulls from it and loads what it has pulled, and a spy in TensorRT's place."""

    registry: str
    storage: Path
    home: Home
    farm: KeyPair
    stranger: KeyPair
    spy: Spy

    @property
    def place(self) -> Place:
        return self.located().place

    @property
    def policy(self) -> Policy:
        return policy_for(self.farm)

    def located(self, address: str | None = None) -> Located:
        talk = Talk(cancel=threading.Event(), listen=lambda _: None)
        return locate(f"{address or self.registry}/farm/{MODEL}", talk)

    def publish(self, *parcels: Parcel, **options: Any) -> Published:
        """Publish as the farm does, signed."""
        return publish(self.place, parcels, **{"signer": signer_of(self.farm), **options})

    def run(self, address: str | None = None, **order: Any) -> None:
        """Do what an application does."""
        wanted: dict[str, Any] = {"machine": machine(), "policy": self.policy}
        puller = Puller(home=self.home, cancel=threading.Event(), listen=lambda _: None)
        puller.pull(self.located(address), Order(**wanted | order))
        self.load()

    def load(self) -> None:
        """Load what was pulled, as `builder.runtime.load` does on a machine with a GPU."""
        checked = read_engine(str(self.home.engines / MODEL))
        loading.deserialize(self.spy, None, checked.content)

    def blob(self, content: bytes) -> Path:
        """Find a blob where the registry keeps it."""
        name = sha256(content)
        return self.storage / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"


def make_scene(registry: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Set the scene for the first registry of a test, which `serve_registry` keeps below `folder`."""
    monkeypatch.setattr(registry_retry, "_PAUSE_S", 0.0)
    return Scene(
        registry=registry,
        storage=folder / "registry-0" / "store",
        home=Home(root=folder / "home"),
        farm=key_pair(folder / "farm"),
        stranger=key_pair(folder / "stranger", "stranger"),
        spy=Spy(),
    )


def refused(scene: Scene, **order: Any) -> Reason:
    """Run the application; say why the pull was refused. Nothing is to be seen of it."""
    with pytest.raises(EnginefarmError) as caught:
        scene.run(**order)
    assert Store(scene.home.store).entries() == ()
    # an application that goes on all the same finds nothing to load
    with pytest.raises(EngineRefused) as missing:
        scene.load()
    assert missing.value.reason == "file-missing"
    assert scene.spy.deserialized == []
    return caught.value.reason


def flip(content: bytes) -> bytes:
    """Flip one bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def publish_changed(
    scene: Scene, change: Callable[[dict[str, Any]], object], one: Parcel | None = None, *, signed: bool = True
) -> oci.Document:
    """Publish an engine whose OCI manifest is changed, as the only one of the index."""
    one = one or parcel()
    first = publish_engine(scene.place, one)
    content = json.loads((scene.place.manifest(first["digest"], (oci.MANIFEST_TYPE,)) or (b"",))[0])
    change(content)
    entry = finish_engine(scene.place, one, json.dumps(content).encode(), signer_of(scene.farm) if signed else None)
    scene.place.put_manifest("latest", make_index(MODEL, [entry], 1), oci.INDEX_TYPE)
    return entry
