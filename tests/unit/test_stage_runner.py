"""One stage with all that is around it."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from builder.errors import Reason
from builder.events import Event, StepFinished
from builder.journal import Journal
from builder.project import Home
from builder.stage_runner import StageRunner, Subject
from builder.workspace import Workspace
from tests.artifacts import refusal


class FullDisk:
    """An executor whose folder has no room for the inputs."""

    def run(self, stack: object, request: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stage_without_room_fails_its_job_and_not_the_run(tmp_path: Path) -> None:
    stack: Any = SimpleNamespace(name="rtx")
    executor: Any = FullDisk()
    events: list[Event] = []
    home = Home(root=tmp_path / "home")
    with Workspace(home, keep=False) as workspace:
        stages = StageRunner(
            executor=executor,
            workspace=workspace,
            journal=Journal(home.journal),
            listen=events.append,
            cancel=threading.Event(),
            timeout_s=1.0,
        )
        subject = Subject(label="tiny", recipe="tiny", precision="fp16", stack=stack)
        error = refusal(lambda: stages.run(subject, "verify", {}, {}))
    assert error.reason is Reason.DISK_FULL
    assert [event.ok for event in events if isinstance(event, StepFinished)] == [False]
