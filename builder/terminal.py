"""An output stream with what is known about it: interactive or not, colour or not, how wide."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

UNLIMITED = 10_000
_GONE = frozenset({errno.EPIPE, errno.EIO})
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """Where text goes. A reader that went away (`| head`) silences it instead of failing the command.

    So does a log that cannot be written, on a full disk for example; data that is lost there is an error.
    """

    stream: TextIO
    interactive: bool
    colour: bool
    width: int

    def paint(self, text: str, style: str) -> str:
        """Colour a text; without colour, or without a style, the text itself."""
        return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if self.colour and style else text

    def line(self, text: str = "") -> None:
        """Write a line and flush it.

        Raises:
            OSError: standard output cannot be written.

        """
        try:
            self.stream.write(self._encodable(text) + "\n")
            self.stream.flush()
        except OSError as error:
            silence(self.stream)
            if self.stream is sys.stdout and error.errno not in _GONE:
                raise OSError(error.errno, error.strerror, "standard output") from error

    def _encodable(self, text: str) -> str:
        encoding = self.stream.encoding or "utf-8"
        return text.encode(encoding, "backslashreplace").decode(encoding)


def silence(stream: TextIO) -> None:
    """Let a stream go to the null device, which also takes quietly what Python flushes at exit."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as null:  # noqa: PTH123 - a device
        os.dup2(null.fileno(), stream.fileno())


def open_terminal(stream: TextIO | None, environ: Mapping[str, str]) -> Terminal:
    """Look at a stream and the environment: NO_COLOR, FORCE_COLOR, TERM=dumb, CI, COLUMNS.

    Null is what Python has of a stream that was closed when it began: what goes there is gone.
    """
    if stream is None:
        stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - a device, open until the end
    is_terminal = stream.isatty()
    unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    interactive = is_terminal and unicode and environ.get("TERM") != "dumb" and not environ.get("CI")
    forced = environ.get("FORCE_COLOR", "") not in {"", "0"}
    colour = not environ.get("NO_COLOR") and (forced or interactive)
    return Terminal(stream=stream, interactive=interactive, colour=colour, width=_width(stream, is_terminal, environ))


def _width(stream: TextIO, is_terminal: bool, environ: Mapping[str, str]) -> int:  # noqa: FBT001
    columns = environ.get("COLUMNS", "")
    if columns.isdigit() and int(columns) > 0:
        return int(columns)
    if is_terminal:
        with suppress(OSError):
            return os.get_terminal_size(stream.fileno()).columns or UNLIMITED
    return UNLIMITED
