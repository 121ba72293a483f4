"""Runs one stage with events, journal and a kept log: the same steps for exports and for jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from builder import durable
from builder.errors import EnginefarmError, Reason
from builder.events import Listener, StepFinished, StepStarted
from builder.executors import Executor
from builder.journal import Journal, JournalEntry
from builder.stacks import Stack
from builder.stage import StageRequest, StageResult
from builder.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What a stage works for. `label` names it in events; `precision` is "-" for exports."""

    label: str
    recipe: str
    precision: str
    stack: Stack


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRunner:
    """Everything a stage needs besides its own inputs. `threads`: processors that one stage may use."""

    executor: Executor
    workspace: Workspace
    journal: Journal
    listen: Listener
    cancel: threading.Event
    timeout_s: float
    threads: int = 1

    def run(
        self,
        subject: Subject,
        stage: str,
        inputs: Mapping[str, Path],
        params: Mapping[str, Any],
        gpu: str | None = None,
    ) -> StageResult:
        """Run a stage; `gpu` is the UUID of the device that it may use.

        Raises:
            EnginefarmError: as `stage.collect`; DISK_FULL where its folder has no room; its `log` is the kept log.

        """
        if self.cancel.is_set():
            raise EnginefarmError(Reason.INTERRUPTED, f"stage {stage} was not started")
        request = StageRequest(
            job=subject.label,
            stage=stage,
            inputs=inputs,
            params=params,
            folder=self.workspace.stage(subject.label, stage),
            timeout_s=self.timeout_s,
            gpu=gpu,
        )
        expected = self.journal.expected_seconds(subject.recipe, subject.precision, subject.stack.name, stage)
        self.listen(StepStarted(subject=subject.label, step=stage, expected_s=expected))
        started = time.monotonic()
        result: StageResult | None = None
        try:
            result = self.executor.run(subject.stack, request)
        except EnginefarmError as error:
            error.log = self.workspace.keep_log(subject.label, stage, request.log)
            raise
        except OSError as error:
            # a full disk fails this job; as a bug it would end the run
            if error.errno not in durable.FULL:
                raise
            what = f"the disk is full: stage {stage} could not be laid out"
            raise EnginefarmError(Reason.DISK_FULL, what, where=str(request.folder)) from error
        finally:
            seconds = time.monotonic() - started
            self._record(subject, stage, seconds, result)
            self.listen(StepFinished(subject=subject.label, step=stage, seconds=seconds, ok=result is not None))
        return result

    def _record(self, subject: Subject, stage: str, seconds: float, result: StageResult | None) -> None:
        entry = JournalEntry(
            job=subject.label,
            recipe=subject.recipe,
            precision=subject.precision,
            stack=subject.stack.name,
            stage=stage,
            seconds=seconds,
            max_rss_bytes=result.max_rss_bytes if result else 0,
            status="ok" if result else "failed",
            ended=datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
        )
        self.journal.record(entry)
