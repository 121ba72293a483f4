"""Taking turns between processes: the farm writes `turn/NNN.go`, the process answers with `turn/NNN.json`.

A process says `turn/ready.json` once it is set up, and ends when `turn/end` appears. Files are whole as soon as they
are there. The folder is all that farm and process share, so that a container needs no more than its mount.
"""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

from .protocol import write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = "turn"
READY, END = "ready.json", "end"
NAP_S = 0.003


def go_name(number: int) -> str:
    """Name the file that opens a turn."""
    return f"{number:03}.go"


def answer_name(number: int) -> str:
    """Name the file that closes a turn."""
    return f"{number:03}.json"


class Turns:
    """One process's side. Whoever waits here does nothing but look for a file now and then."""

    def __init__(self, folder: str = FOLDER) -> None:
        self._folder = folder
        self._number = 0
        os.makedirs(folder, exist_ok=True)

    def ready(self, facts: dict[str, Any]) -> None:
        """Say that turns may begin."""
        write_json(os.path.join(self._folder, READY), facts)

    def requests(self) -> Iterator[dict[str, Any]]:
        """Yield what each turn asks for, in order, until the end; every one wants one `answer`."""
        while self._opened():
            with open(os.path.join(self._folder, go_name(self._number)), encoding="utf-8") as file:
                request: dict[str, Any] = json.load(file)
            yield request
            self._number += 1

    def answer(self, document: dict[str, Any]) -> None:
        """Close the turn under way."""
        write_json(os.path.join(self._folder, answer_name(self._number)), document)

    def _opened(self) -> bool:
        go, end = os.path.join(self._folder, go_name(self._number)), os.path.join(self._folder, END)
        while not os.path.exists(go):
            if os.path.exists(end):
                return False
            time.sleep(NAP_S)
        return True
