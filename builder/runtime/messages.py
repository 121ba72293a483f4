"""What TensorRT says: the last lines are kept for reasons, and all go to Python's logging as debug output."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any, Deque, Dict, List, Tuple

LOGGER = logging.getLogger("enginefarm.runtime")
KEPT = 32
ERROR = 1


class Messages:
    """TensorRT's log of one process; `mark` and `since` find what a call made it say."""

    def __init__(self, trt: Any) -> None:
        self._errors: Deque[Tuple[int, str]] = deque(maxlen=KEPT)
        self._count = 0
        self.logger = _logger(trt, self)

    def note(self, severity: int, text: str) -> None:
        """Take one message; `severity` counts from 0 (internal error) over 1 (error) to 4 (verbose)."""
        if severity <= ERROR:
            self._count += 1
            self._errors.append((self._count, text))
        LOGGER.debug("TensorRT: %s", text)

    def mark(self) -> int:
        """Return a place in the log."""
        return self._count

    def since(self, mark: int) -> List[str]:
        """Return the errors after a place."""
        return [text for number, text in list(self._errors) if number > mark]


_KNOWN: Dict[str, Messages] = {}


def messages(trt: Any) -> Messages:
    """Return the log of a TensorRT: it wants the same logger for all engines of a process."""
    name = str(trt.__name__)
    if name not in _KNOWN or not isinstance(_KNOWN[name].logger, trt.ILogger):
        _KNOWN[name] = Messages(trt)
    return _KNOWN[name]


def _logger(trt: Any, log: Messages) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = int(severity)
            if level <= 2:  # most calls are chatter of higher levels
                log.note(level, message)

    return Logger()
