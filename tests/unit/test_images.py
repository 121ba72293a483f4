"""What is asked before an image is built."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from builder import images
from builder.errors import Reason
from builder.images import ImageBuilder
from builder.process import Outcome
from builder.project import Home, Project
from tests.artifacts import refusal

STACK: Any = SimpleNamespace(name="rtx")


def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exit_code: int, *, cancelled: bool = False) -> ImageBuilder:
    """Make a builder for which `docker buildx version` ends so, and which must fetch nothing."""

    def run(argv: Sequence[str], *, log: Path, **_: object) -> Outcome:
        assert list(argv) == ["/bin/docker", "buildx", "version"]
        log.write_text("docker: unknown command: docker buildx\n")
        return Outcome(
            argv=tuple(argv),
            exit_code=exit_code,
            signal=None,
            duration_s=0.1,
            log=log,
            max_rss_bytes=0,
            timed_out=False,
            cancelled=cancelled,
        )

    def gather(builder: ImageBuilder, stack: object) -> NoReturn:
        raise LookupError

    monkeypatch.setattr("builder.process.run", run)
    monkeypatch.setattr(images, "find_docker", lambda: "/bin/docker")
    monkeypatch.setattr(ImageBuilder, "find", lambda builder, stack: None)
    monkeypatch.setattr(ImageBuilder, "_check_disk", lambda builder, stack: None)
    monkeypatch.setattr(ImageBuilder, "gather", gather)
    unused: Any = None
    return ImageBuilder(
        project=Project(root=tmp_path),
        home=Home(root=tmp_path / "home"),
        bases=unused,
        engine=unused,
        listen=lambda event: None,
        cancel=threading.Event(),
    )


def test_without_buildx_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = refusal(lambda: farm(tmp_path, monkeypatch, 1).build(STACK))
    assert (error.reason, error.why) == (Reason.TOOL_MISSING, "docker: unknown command: docker buildx")
    assert error.fix == "install the plugin docker-buildx, 0.13 or newer"


def test_a_stop_while_asking_is_no_missing_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(lambda: farm(tmp_path, monkeypatch, 1, cancelled=True).build(STACK)).reason is Reason.INTERRUPTED


def test_with_buildx_the_parts_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LookupError):
        farm(tmp_path, monkeypatch, 0).build(STACK)


def test_image_that_is_missing_names_the_command_with_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other: Any = SimpleNamespace(name="trt8.6-cuda12.0", variant="8.6.0")
    error = refusal(lambda: farm(tmp_path, monkeypatch, 0).built(other))
    assert error.reason is Reason.IMAGE_MISSING
    assert error.fix == "`enginefarm images build trt8.6-cuda12.0 --lock 8.6.0`"
