"""Base images on this machine: pulled by digest, or stand-ins; each once, as an OCI layout below the farm's home."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from builder.base_pull import BasePull, Mirror
from builder.bases import Base, Bases, Standin
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, Note
from builder.fetch import OnBytes
from builder.image_layout import ImageLayout
from builder.locks import named_lock
from builder.project import Home
from builder.standin import make_standin


class Choice(str, Enum):
    """Which base to take. `auto`: the pinned one, and a stand-in where its registry cannot be reached."""

    AUTO = "auto"
    PINNED = "pinned"
    STANDIN = "stand-in"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObtainedBase:
    """A base that is here. `digest` of its manifest; `python` such as "3.11"."""

    name: str
    layout: ImageLayout
    digest: str
    python: str
    standin: bool

    def touch(self) -> None:
        """Note that the base is used now."""
        with suppress(OSError):
            os.utime(self.layout.folder / "index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseImages:
    """Finds and makes bases."""

    home: Home
    bases: Bases
    cancel: threading.Event
    listen: Listener
    mirror: Mirror = field(default_factory=Mirror)

    def find(self, name: str, platform: str, choice: Choice) -> ObtainedBase | None:
        """Return the base that is here already; a pinned one comes first."""
        base = self.bases.get(name)
        if choice is not Choice.STANDIN:
            layout = ImageLayout(self._pinned_folder(base, platform))
            if layout.complete:
                return _obtained(name, layout, base.python, standin=False)
        if choice is not Choice.PINNED and base.standin is not None:
            layout = ImageLayout(self._standin_folder(base.standin, platform))
            if layout.complete:
                return _obtained(name, layout, base.standin.python, standin=True)
        return None

    def obtain(
        self, name: str, platform: str, choice: Choice, log: Path, on_bytes: OnBytes | None = None
    ) -> ObtainedBase:
        """Return a base; pull or make it if need be.

        Raises:
            EnginefarmError: BASE_UNAVAILABLE, TOOL_MISSING, DIGEST_MISMATCH, DISK_FULL, INTERRUPTED.

        """
        with named_lock(self.home, f"base-{name}", self.cancel):
            found = self.find(name, platform, choice)
            if found is not None:
                return found
            base = self.bases.get(name)
            if choice is not Choice.STANDIN:
                try:
                    return self._pull(name, base, platform, on_bytes)
                except EnginefarmError as error:
                    if error.reason is not Reason.BASE_UNAVAILABLE or choice is Choice.PINNED or base.standin is None:
                        raise
                    text = f"{error.what}; a stand-in of {base.standin.suite} packages takes its place"
                    self.listen(Note(subject=f"base {name}", text=text))
            return self._make(name, base, platform, log)

    def _pull(self, name: str, base: Base, platform: str, on_bytes: OnBytes | None) -> ObtainedBase:
        layout = ImageLayout(self._pinned_folder(base, platform))
        layout.folder.mkdir(parents=True, exist_ok=True)
        BasePull(base, platform, self.mirror, self.cancel, on_bytes).into(layout)
        return _obtained(name, layout, base.python, standin=False)

    def _make(self, name: str, base: Base, platform: str, log: Path) -> ObtainedBase:
        if base.standin is None:
            raise EnginefarmError(Reason.BASE_UNAVAILABLE, f"base {name} has no stand-in", fix="take --base pinned")
        self.home.bases.mkdir(parents=True, exist_ok=True)
        folder = self._standin_folder(base.standin, platform)
        part = Path(tempfile.mkdtemp(prefix=".standin-", dir=self.home.bases))
        try:
            epoch, drop = self.bases.source_date_epoch, self.bases.drop
            make_standin(base.standin, platform, part, epoch, drop, self.home.root / "tools", log, self.cancel)
            shutil.rmtree(folder, ignore_errors=True)
            part.chmod(0o755)
            part.rename(folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return _obtained(name, ImageLayout(folder), base.standin.python, standin=True)

    def _pinned_folder(self, base: Base, platform: str) -> Path:
        return self.home.bases / f"{base.digest.replace(':', '-')}-{platform.replace('/', '-')}"

    def _standin_folder(self, standin: Standin, platform: str) -> Path:
        document = {
            "standin": standin.model_dump(mode="json"),
            "epoch": self.bases.source_date_epoch,
            "drop": list(self.bases.drop),
            "platform": platform,
        }
        digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
        return self.home.bases / f"standin-{standin.suite}-{digest[:16]}"


def _obtained(name: str, layout: ImageLayout, python: str, *, standin: bool) -> ObtainedBase:
    return ObtainedBase(name=name, layout=layout, digest=layout.digest, python=python, standin=standin)
