"""Where things are: the project (recipes and images) and the farm's home (store, caches, work folders)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from builder.errors import EnginefarmError, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """A checkout with recipes/ and images/."""

    root: Path

    @property
    def recipes(self) -> Path:
        """Folder of recipes."""
        return self.root / "recipes"

    @property
    def images(self) -> Path:
        """Folder of stacks."""
        return self.root / "images"


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """The folder that holds all the farm makes: ENGINEFARM_HOME, or `enginefarm` in the user's cache folder."""

    root: Path

    @property
    def store(self) -> Path:
        """Engines and ONNX files, an OCI image layout."""
        return self.root / "store"

    @property
    def fetch(self) -> Path:
        """Fetched files by digest."""
        return self.root / "fetch"

    @property
    def envs(self) -> Path:
        """One Python environment per stack and lock."""
        return self.root / "envs"

    @property
    def work(self) -> Path:
        """Folders of running jobs."""
        return self.root / "work"

    @property
    def logs(self) -> Path:
        """Logs of failed stages."""
        return self.root / "logs"

    @property
    def locks(self) -> Path:
        """Lock files; the kernel releases them when their process dies."""
        return self.root / "locks"

    @property
    def bases(self) -> Path:
        """Base images, each an OCI layout."""
        return self.root / "bases"

    @property
    def images(self) -> Path:
        """What is known of the images that were built: digest, sizes, parts."""
        return self.root / "images"

    @property
    def engines(self) -> Path:
        """What applications load: one folder per model, with the engine that was pulled for this machine."""
        return self.root / "engines"

    @property
    def pulls(self) -> Path:
        """Transfers from registries that are under way, and what earlier ones have seen."""
        return self.root / "pulls"

    @property
    def journal(self) -> Path:
        """History of finished stages."""
        return self.root / "journal.jsonl"


def find_project(start: Path, explicit: Path | None = None) -> Project:
    """Find the checkout: the explicit folder, $ENGINEFARM_PROJECT, or `start` and its parents.

    Raises:
        EnginefarmError: PROJECT_MISSING.

    """
    named = explicit or (Path(value) if (value := os.environ.get("ENGINEFARM_PROJECT")) else None)
    candidates = [named] if named else [start, *start.resolve().parents]
    for folder in candidates:
        if (folder / "recipes").is_dir() and (folder / "images").is_dir():
            return Project(root=folder.resolve())
    raise EnginefarmError(Reason.PROJECT_MISSING, f"no recipes/ and images/ in {named or start} or above")


def find_home() -> Home:
    """Name the farm's home; nothing is created."""
    explicit = os.environ.get("ENGINEFARM_HOME")
    if explicit:
        return Home(root=Path(explicit).expanduser().absolute())
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Home(root=Path(cache).expanduser().absolute() / "enginefarm")
