"""Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from builder.errors import ExitCode
from builder.hang_up import hang_up
from builder.terminal import Terminal

_SHOW_CURSOR = b"\x1b[?25h\n"


@contextmanager
def stop_on_signals(cancel: threading.Event, stopping: Callable[[], None], terminal: Terminal) -> Iterator[None]:
    """Set `cancel` on the first signal and call `stopping`; on the second leave at once with the exit code for it.

    Workers end with the process, and the store shows nothing half-written, so leaving at once loses only the work
    under way.
    """

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
        if cancel.is_set():
            if terminal.interactive:
                os.write(terminal.stream.fileno(), _SHOW_CURSOR)
            os._exit(ExitCode.INTERRUPTED)
        cancel.set()
        stopping()
        hang_up()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
