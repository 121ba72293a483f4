"""Tells of a step from its beginning to its end, however it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from builder.events import Listener, StepFinished, StepStarted


@contextmanager
def told(listen: Listener, subject: str, step: str) -> Iterator[None]:
    """Tell that a step begins, and then how long it took and whether it came to its end."""
    started, ok = time.monotonic(), False
    listen(StepStarted(subject=subject, step=step, expected_s=None))
    try:
        yield
        ok = True
    finally:
        listen(StepFinished(subject=subject, step=step, seconds=time.monotonic() - started, ok=ok))
