"""The door to the Docker Engine: connect, look at images, load one, run a container to its end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound
from docker.models.containers import Container
from docker.models.images import Image

from builder.errors import EnginefarmError, Reason

FLOOR = (26, 0)
OWNER = "org.enginefarm.home"
RUN = "org.enginefarm.run"
_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine says of itself. `root`: folder of its data, on its own machine."""

    version: str
    containerd_store: bool
    root: Path


class DockerEngine:
    """A connection, made on first use and shared by threads."""

    def __init__(self) -> None:
        self._client: docker.DockerClient | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> docker.DockerClient:
        """The SDK's client.

        Raises:
            EnginefarmError: DOCKER_UNAVAILABLE.

        """
        with self._lock:
            if self._client is None:
                with docker_errors("connecting"):
                    self._client = docker.from_env(timeout=_TIMEOUT_S)
                    self._client.ping()
            return self._client

    def info(self) -> EngineInfo:
        """Ask for version and storage."""
        with docker_errors("asking for its version"):
            facts = self.client.info()
        return EngineInfo(
            version=str(facts.get("ServerVersion", "")),
            containerd_store=any("containerd.snapshotter" in value for _, value in facts.get("DriverStatus") or ()),
            root=Path(facts.get("DockerRootDir", "/var/lib/docker")),
        )

    def image(self, name: str) -> Image | None:
        """Find an image by name, or say that it is not here."""
        with docker_errors(f"looking for image {name}"):
            try:
                return self.client.images.get(name)
            except ImageNotFound:
                return None

    def load(self, archive: Path) -> None:
        """Load an image archive."""
        with docker_errors("loading an image"), archive.open("rb") as stream:
            self.client.images.load(stream)

    def containers(self, label: str) -> list[Container]:
        """List containers, ended ones too, that carry a label."""
        with docker_errors("listing containers"):
            return list(self.client.containers.list(all=True, filters={"label": label}, ignore_removed=True))

    def await_end(self, container: Container, within_s: float) -> tuple[int | None, str]:
        """Wait for a container; return its exit code, null if it still runs, and what it said."""
        try:
            code: int | None = int(container.wait(timeout=within_s)["StatusCode"])
        except requests.exceptions.ReadTimeout:
            code = None
        except requests.exceptions.ConnectionError as error:
            # the library's other word for the same
            if "Read timed out" not in str(error):
                raise
            code = None
        return code, container.logs().decode(errors="replace")

    def remove(self, container: Container) -> None:
        """Remove a container, running or not; one that is gone is no failure."""
        with docker_errors("removing a container"):
            try:
                container.remove(force=True, v=True)
            except APIError as error:
                if error.status_code not in {404, 409}:
                    raise


@contextmanager
def docker_errors(doing: str) -> Iterator[None]:
    """Turn what the SDK raises into a named error.

    Raises:
        EnginefarmError: DISK_FULL, IMAGE_MISSING, DOCKER_UNAVAILABLE.

    """
    try:
        yield
    except ImageNotFound as error:
        raise EnginefarmError(Reason.IMAGE_MISSING, f"Docker: {doing}", why=str(error.explanation)) from error
    except APIError as error:
        said = str(error.explanation or error)
        reason = Reason.DISK_FULL if "no space left" in said else Reason.DOCKER_UNAVAILABLE
        raise EnginefarmError(reason, f"Docker refused while {doing}", why=said) from error
    except (DockerException, requests.RequestException, ConnectionError, TimeoutError) as error:
        why = _short(error)
        raise EnginefarmError(Reason.DOCKER_UNAVAILABLE, f"no Docker Engine answers ({doing})", why=why) from error


def _short(error: BaseException) -> str:
    text = str(error)
    if "FileNotFoundError" in text or "No such file" in text:
        return "its socket is not there: it does not run, or DOCKER_HOST points elsewhere"
    if "Permission denied" in text or "PermissionError" in text:
        return "this user may not use its socket; join the group docker, or run rootless Docker"
    return text
