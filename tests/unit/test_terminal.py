"""What is known about a stream."""

from __future__ import annotations

import io
import os
import sys

import pytest

from builder.terminal import UNLIMITED, Terminal, open_terminal


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        """Say so."""
        return True


@pytest.mark.parametrize(
    ("environ", "interactive", "colour"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({"TERM": "xterm", "CI": "true"}, False, False),
        ({"CI": "true", "FORCE_COLOR": "1"}, False, True),
    ],
)
def test_terminal(environ: dict[str, str], interactive: bool, colour: bool) -> None:
    """A display needs a terminal; colour a terminal or a request, and NO_COLOR wins."""
    terminal = open_terminal(Screen(), environ)
    assert (terminal.interactive, terminal.colour) == (interactive, colour)


def test_other_streams_are_plain_and_as_wide_as_needed() -> None:
    """A file loses no column."""
    terminal = open_terminal(io.StringIO(), {"TERM": "xterm"})
    assert (terminal.interactive, terminal.colour, terminal.width) == (False, False, UNLIMITED)
    assert open_terminal(io.StringIO(), {"COLUMNS": "72"}).width == 72


def test_a_stream_that_was_closed_takes_everything() -> None:
    terminal = open_terminal(None, {})
    terminal.line("gone")
    assert not terminal.interactive
    terminal.stream.close()


def test_no_display_where_the_encoding_lacks_its_characters() -> None:
    """An old locale gets plain lines."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    screen.isatty = lambda: True  # type: ignore[method-assign]
    assert not open_terminal(screen, {"TERM": "xterm"}).interactive


def test_characters_that_the_encoding_lacks_are_escaped() -> None:
    """No message dies of an old locale."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    open_terminal(stream, {}).line("größer")
    assert raw.getvalue() == b"gr\\xf6\\xdfer\n"


def test_paint_only_with_colour() -> None:
    """Text stays text without colour."""
    dull = Terminal(stream=io.StringIO(), interactive=False, colour=False, width=80)
    bright = Terminal(stream=io.StringIO(), interactive=False, colour=True, width=80)
    assert dull.paint("x", "red") == "x"
    assert bright.paint("x", "red") == "\x1b[31mx\x1b[0m"
    assert bright.paint("x", "") == "x"


def test_reader_that_went_away_is_no_error() -> None:
    """Writing goes on into nothing."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as stream:
        terminal = open_terminal(stream, {})
        terminal.line("first")
        terminal.line("second")


def test_full_disk_silences_what_is_said_but_not_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log on a full disk must not stop a build; a list that was not written must not look complete."""
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123 - a device
        open_terminal(stream, {}).line("said")
    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123 - a device
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(OSError, match="No space left"):
            open_terminal(stream, {}).line("data")
