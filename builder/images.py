"""Builds the images of stacks: inputs fetched by digest first, then a build without a network, then a check inside."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import threading
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import durable, host, process
from builder.base_images import BaseImages, Choice, ObtainedBase
from builder.base_pull import Mirror
from builder.bases import Bases
from builder.docker_engine import DockerEngine, docker_errors
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, StepAdvanced
from builder.fetch import Fetcher
from builder.image_inputs import EXPORT, PIP_LOCK, ImageInputs, image_inputs
from builder.image_layout import ImageLayout
from builder.image_record import ImageRecord, find_record, layer_sizes, save_record, touch_record
from builder.locks import named_lock
from builder.preflight import MIB, check_disk
from builder.project import Home, Project
from builder.stacks import Requirement, Stack
from builder.standin import BASE_LABEL
from builder.steps import told
from builder.wheels import Index, Wheel, fetch_wheels, find_wheels
from builder.workspace import Workspace

_BUILD_TIMEOUT_S = 3600.0
# below a shell: the first process of a container does not die of its own crashes
_CHECK = ["sh", "-c", "python3 /opt/enginefarm/check.py; exit $?"]
_CHECK_TIMEOUT_S = 300.0
# beside the installed packages: the wheels, the exported layers, the archive that is loaded, Docker's two copies
_DISK_FACTOR = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSettings:
    """How to build. `index`, `mirror`: other places to fetch from; digests are checked all the same.

    `omit`: patterns of files to leave out, see `Stack.omitted`.
    """

    base: Choice = Choice.AUTO
    omit: tuple[str, ...] = ()
    index: Index = field(default_factory=Index)
    mirror: Mirror = field(default_factory=Mirror)


def settings_of(environ: Mapping[str, str]) -> ImageSettings:
    """Read ENGINEFARM_BASE and ENGINEFARM_BASE_REGISTRY; pip and requests read their own variables.

    Raises:
        EnginefarmError: BASE_UNAVAILABLE for a base that is no choice.

    """
    named = environ.get("ENGINEFARM_BASE") or Choice.AUTO.value
    if named not in [choice.value for choice in Choice]:
        choices = ", ".join(choice.value for choice in Choice)
        raise EnginefarmError(Reason.BASE_UNAVAILABLE, f"ENGINEFARM_BASE is {named!r}", fix=f"choices: {choices}")
    mirror = Mirror(registry=environ.get("ENGINEFARM_BASE_REGISTRY") or None)
    return ImageSettings(base=Choice(named), mirror=mirror)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageParts:
    """All that goes into a build."""

    inputs: ImageInputs
    base: ObtainedBase
    wheels: tuple[Wheel, ...]
    files: Mapping[str, Path]


@dataclass(slots=True, kw_only=True)
class ImageBuilder:
    """Builds, finds and checks images."""

    project: Project
    home: Home
    bases: Bases
    engine: DockerEngine
    listen: Listener
    cancel: threading.Event
    settings: ImageSettings = field(default_factory=ImageSettings)

    def find(self, stack: Stack) -> ImageRecord | None:
        """Return the image that fits the project's files now, if it is recorded and Docker still has it."""
        base = self._base_images().find(stack.spec.image.base, stack.spec.platform, self.settings.base)
        if base is None:
            return None
        record = find_record(self.home, image_inputs(stack, self.bases, base.digest, self.settings.omit))
        if record is None:
            return None
        image = self.engine.image(record.tag)
        if image is None or image.id not in {record.digest, record.config_digest}:
            return None
        touch_record(self.home, record)
        base.touch()
        return record

    def built(self, stack: Stack) -> ImageRecord:
        """Return the image as `find` does.

        Raises:
            EnginefarmError: IMAGE_MISSING, with the command that builds it.

        """
        record = self.find(stack)
        if record is None:
            named = f"{stack.name} --lock {stack.variant}" if stack.variant else stack.name
            what = f"the image of stack {named} is not built"
            raise EnginefarmError(Reason.IMAGE_MISSING, what, fix=f"`enginefarm images build {named}`")
        return record

    def build(self, stack: Stack) -> ImageRecord:
        """Return the image of a stack; build it if need be.

        Raises:
            EnginefarmError: TOOL_MISSING, DOCKER_UNAVAILABLE, BASE_UNAVAILABLE, FETCH_FAILED, DIGEST_MISMATCH,
                IMAGE_BUILD_FAILED with the last lines of the log, IMAGE_INVALID when its check fails, DISK_FULL,
                INTERRUPTED.

        """
        with named_lock(self.home, f"image-{stack.name}", self.cancel):
            found = self.find(stack)
            if found is not None:
                return found
            # first of all: what is missing must not show only after minutes of fetching
            self._check_buildx(stack)
            self._check_disk(stack)
            with Workspace(self.home, keep=False) as workspace:
                parts = self.gather(stack)
                layout = self.export(parts, workspace.folder, cache=True)
                with self._step(stack, "load"):
                    self._load(layout, workspace.folder / "image.tar")
                with self._step(stack, "check"):
                    checked = self._check(parts.inputs.tag)
                return self._record(parts, layout, checked)

    def gather(self, stack: Stack) -> ImageParts:
        """Fetch base and wheels into the caches.

        Raises:
            EnginefarmError: as `build`.

        """
        log = self._log(stack, "base")
        spec = stack.spec
        with self._step(stack, "base"):
            note = self._advancing(stack)
            base = self._base_images().obtain(spec.image.base, spec.platform, self.settings.base, log, note)
        if base.python not in spec.python:
            what = f"stack {stack.name} has no lock for Python {base.python}, which its base has"
            raise EnginefarmError(Reason.STACK_INVALID, what, where=str(stack.lock_path))
        with self._step(stack, "fetch"):
            wanted = (*stack.requirements(base.python), self._pip())
            wheels = find_wheels(wanted, base.python, spec.platform, self.settings.index, self.cancel)
            files = fetch_wheels(wheels, Fetcher(self.home, self.cancel), self._advancing(stack))
        inputs = image_inputs(stack, self.bases, base.digest, self.settings.omit)
        return ImageParts(inputs=inputs, base=base, wheels=tuple(wheels), files=files)

    def export(self, parts: ImageParts, folder: Path, *, cache: bool) -> ImageLayout:
        """Build into an OCI layout in `folder`, without a network.

        Raises:
            EnginefarmError: TOOL_MISSING, IMAGE_BUILD_FAILED, DISK_FULL, INTERRUPTED.

        """
        stack = parts.inputs.stack
        wheels, out = folder / "wheels", folder / "image"
        wheels.mkdir(parents=True)
        for name, path in parts.files.items():
            _link(path, wheels / name)
        argv = _buildx_arguments(parts, wheels, out, cache=cache)
        log = self._log(stack, "build")
        log.unlink(missing_ok=True)
        env = {**os.environ, "SOURCE_DATE_EPOCH": str(parts.inputs.epoch), "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        with self._step(stack, "build"):
            outcome = process.run(argv, cwd=folder, env=env, log=log, timeout_s=_BUILD_TIMEOUT_S, cancel=self.cancel)
            if outcome.cancelled:
                raise EnginefarmError(Reason.INTERRUPTED, "building an image was stopped")
            if outcome.exit_code != 0:
                raise _build_failure(stack, log)
        return ImageLayout(out)

    def _base_images(self) -> BaseImages:
        return BaseImages(
            home=self.home,
            bases=self.bases,
            cancel=self.cancel,
            listen=self.listen,
            mirror=self.settings.mirror,
        )

    def _pip(self) -> Requirement:
        lock = (self.project.images / PIP_LOCK).read_text(encoding="utf-8").split()
        return Requirement(pin=lock[0], marker=None, hashes=(lock[1].removeprefix("--hash=sha256:"),))

    def _check_buildx(self, stack: Stack) -> None:
        log = self._log(stack, "buildx")
        log.unlink(missing_ok=True)
        argv = [find_docker(), "buildx", "version"]
        outcome = process.run(
            argv, cwd=log.parent, env=os.environ, log=log, timeout_s=_CHECK_TIMEOUT_S, cancel=self.cancel
        )
        if outcome.cancelled:
            raise EnginefarmError(Reason.INTERRUPTED, "building an image was stopped")
        if outcome.exit_code != 0:
            raise _no_buildx(process.tail(log))

    def _check_disk(self, stack: Stack) -> None:
        needed = _DISK_FACTOR * stack.spec.installed_mib * MIB
        for folder in (self.home.root, self.engine.info().root):
            # the engine may run on another machine, whose disk cannot be seen
            if folder == self.home.root or folder.is_dir():
                check_disk(needed, host.free_disk_bytes(folder), folder)

    def _load(self, layout: ImageLayout, archive: Path) -> None:
        with durable.writing(str(archive)), tarfile.open(archive, "w") as tar:
            tar.add(layout.folder, arcname=".")
        self.engine.load(archive)
        archive.unlink()

    def _check(self, tag: str) -> dict[str, Any]:
        with docker_errors("checking an image"):
            container = self.engine.client.containers.create(
                tag,
                _CHECK,
                network_mode="none",
                read_only=True,
                cap_drop=["ALL"],
                tmpfs={"/tmp": "size=64m"},  # noqa: S108
            )
            try:
                container.start()
                code, said = self.engine.await_end(container, _CHECK_TIMEOUT_S)
            finally:
                self.engine.remove(container)
        if code is None:
            what = f"the check of {tag} was still running after {_CHECK_TIMEOUT_S:.0f} s"
            raise EnginefarmError(Reason.IMAGE_INVALID, what, why=said or None)
        try:
            document: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        except (ValueError, IndexError) as error:
            raise EnginefarmError(Reason.IMAGE_INVALID, f"the check of {tag} said nothing of use", why=said) from error
        if code != 0 or not document.get("ok"):
            why = "\n".join(document.get("problems", [])) or said
            raise EnginefarmError(Reason.IMAGE_INVALID, f"{tag} failed its check", why=why)
        return document

    def _record(self, parts: ImageParts, layout: ImageLayout, checked: dict[str, Any]) -> ImageRecord:
        manifest, stack = layout.manifest(), parts.inputs.stack
        record = ImageRecord(
            stack=stack.name,
            variant=stack.variant,
            tag=parts.inputs.tag,
            inputs=parts.inputs.sha256,
            digest=layout.digest,
            config_digest=manifest["config"]["digest"],
            platform=stack.spec.platform,
            base=parts.base.digest,
            standin=parts.base.standin,
            python=parts.base.python,
            layers=layer_sizes(layout),
            wheels={wheel.name: wheel.sha256 for wheel in parts.wheels},
            checked=checked,
            omit=list(parts.inputs.omit),
        )
        save_record(self.home, record)
        return record

    def _log(self, stack: Stack, step: str) -> Path:
        self.home.logs.mkdir(parents=True, exist_ok=True)
        return self.home.logs / f"image-{stack.name}.{step}.log"

    def _advancing(self, stack: Stack) -> Any:
        def note(done: int, total: int | None) -> None:
            self.listen(StepAdvanced(subject=f"image {stack.name}", done=done, total=total))

        return note

    def _step(self, stack: Stack, step: str) -> AbstractContextManager[None]:
        return told(self.listen, f"image {stack.name}", step)


def find_docker() -> str:
    """Find the program that builds images.

    Raises:
        EnginefarmError: TOOL_MISSING.

    """
    docker = shutil.which("docker")
    if docker is None:
        fix = "install Docker's command line and docker-buildx, 0.13 or newer"
        raise EnginefarmError(Reason.TOOL_MISSING, "the program docker is not installed", fix=fix)
    return docker


def _buildx_arguments(parts: ImageParts, wheels: Path, out: Path, *, cache: bool) -> list[str]:
    stack, base = parts.inputs.stack, parts.base
    argv = [
        find_docker(),
        "buildx",
        "build",
        "--progress=plain",
        "--network=none",
        "--provenance=false",
        "--sbom=false",
    ]
    argv += [] if cache else ["--no-cache"]
    argv += [f"--platform={stack.spec.platform}", f"--build-arg=LOCK={stack.lock_path.name}"]
    argv += [f"--build-arg=OMIT={' '.join(parts.inputs.omit)}"] if parts.inputs.omit else []
    argv += [f"--build-context=enginefarm-base=oci-layout://{base.layout.folder}@{base.digest}"]
    argv += [f"--build-context=enginefarm-wheels={wheels}"]
    if not base.standin:
        argv += [f"--label={BASE_LABEL}={base.digest}"]
    argv += [f"--output=type=oci,dest={out},tar=false,name={parts.inputs.tag},{EXPORT}"]
    return [*argv, str(stack.folder)]


def _build_failure(stack: Stack, log: Path) -> EnginefarmError:
    tail = process.tail(log, 25)
    if "no space left on device" in tail.lower():
        return EnginefarmError(Reason.DISK_FULL, f"the disk filled up while building image {stack.name}", why=tail)
    if "cannot connect to the docker daemon" in tail.lower():
        return EnginefarmError(Reason.DOCKER_UNAVAILABLE, "no Docker Engine answers (building)", why=tail)
    if "exec format error" in tail.lower():
        what = f"this machine cannot run {stack.spec.platform}, for which image {stack.name} is"
        fix = "build it on such a machine, or install qemu-user-static, which emulates one"
        return EnginefarmError(Reason.TOOL_MISSING, what, why=tail, fix=fix)
    if "unknown flag" in tail:
        return _no_buildx(tail)
    return EnginefarmError(
        Reason.IMAGE_BUILD_FAILED, f"image {stack.name} could not be built", where=str(log), why=tail
    )


def _no_buildx(said: str) -> EnginefarmError:
    fix = "install the plugin docker-buildx, 0.13 or newer"
    return EnginefarmError(Reason.TOOL_MISSING, "docker buildx is missing or too old", why=said, fix=fix)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
