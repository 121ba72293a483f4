"""A home, and a folder to pull from: what tests of pulling share."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from builder.errors import EnginefarmError
from builder.events import Event
from builder.model_folder import ModelFolder
from builder.places import Located, Talk, locate
from builder.policy_rules import Policy
from builder.project import Home
from builder.pull import Order, Pulled, Puller
from builder.store import Store
from tests.artifacts import refusal
from tests.published import (
    MODEL,
    machine,
)

TRUSTING = Policy()


class Pull:
    """A home, and a folder to pull from."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(root=folder / "home")
        self.place = ModelFolder(folder / "usb" / MODEL)
        self.heard: list[Event] = []
        self.store = Store(self.home.store)

    def located(self, suffix: str = "") -> Located:
        talk = Talk(cancel=threading.Event(), listen=self.heard.append)
        return locate(f"oci:{self.place.root}{suffix}", talk)

    def __call__(self, suffix: str = "", **order: Any) -> Pulled:
        wanted: dict[str, Any] = {"machine": machine(), "policy": TRUSTING, "allow_unsigned": True}
        puller = Puller(home=self.home, cancel=threading.Event(), listen=self.heard.append)
        return puller.pull(self.located(suffix), Order(**wanted | order))

    def refused(self, suffix: str = "", **order: Any) -> EnginefarmError:
        """Pull what must be refused; nothing of it may be seen afterwards."""
        before = self.seen()
        error = refusal(lambda: self(suffix, **order))
        assert self.seen() == before
        return error

    def seen(self) -> tuple[object, ...]:
        link = self.home.engines / MODEL
        return self.store.entries(), link.resolve() if link.exists() else None
