"""The farm's side of taking turns: starts stages that stay alive, opens one turn at a time, waits for its answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from builder import process
from builder.errors import EnginefarmError, Reason
from builder.stage import StageRequest, StageResult
from builder.worker.turn_files import END, FOLDER, READY, answer_name, go_name

T = TypeVar("T")
Look = Callable[[], None]

_NAP_S = 0.002
# Within the warm-up of a turn, when its clocks have risen: asking the driver disturbs what runs.
_LOOK_AFTER_S = 0.15
# an engine is torn down, a container removed
_END_S = 60.0
_KILL_S = 20.0


class Player:
    """One stage that takes turns. `run` runs it to its end, in a thread; `stop` makes it end soon.

    Folder and protocol: `builder.worker.turn_files`.
    """

    def __init__(
        self,
        name: str,
        request: StageRequest,
        run: Callable[[], StageResult],
        stop: threading.Event,
        cancel: threading.Event,
    ) -> None:
        self.name = name
        self.request = request
        self._turns = request.folder / FOLDER
        self._run = run
        self._stop = stop
        self._cancel = cancel
        self._number = 0
        self._result: StageResult | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=f"bench {name}", daemon=True)

    def begin(self, limit_s: float) -> dict[str, Any]:
        """Start the stage and return what it says once it is set up.

        Raises:
            EnginefarmError: what the stage says, STAGE_TIMEOUT, INTERRUPTED, STAGE_CONTRACT.

        """
        self._thread.start()
        return self._await(READY, limit_s, f"was not ready after {limit_s:.0f} s", None)

    def play(self, wish: dict[str, Any], limit_s: float, look: Look | None = None) -> dict[str, Any]:
        """Give the stage a turn and return its answer; `look` is called beside the timed runs.

        Raises:
            EnginefarmError: as `begin`.

        """
        write_whole(self._turns / go_name(self._number), json.dumps(wish).encode())
        answer = self._await(answer_name(self._number), limit_s, f"did not end its turn within {limit_s:.0f} s", look)
        if look is not None:
            look()
        self._number += 1
        return answer

    def end(self) -> StageResult:
        """Let the stage end by itself.

        Raises:
            EnginefarmError: as `begin`.

        """
        write_whole(self._turns / END, b"")
        self._thread.join(_END_S)
        if self._thread.is_alive():
            self.abort()
            raise self._hung(f"did not end within {_END_S:.0f} s")
        return self._outcome()

    def abort(self) -> None:
        """Kill the stage, if it lives."""
        if self._thread.is_alive():
            self._stop.set()
            self._thread.join(_KILL_S)

    def _work(self) -> None:
        try:
            self._result = self._run()
        except BaseException as error:  # noqa: BLE001  # raised again where the turn is awaited
            self._error = error

    def _await(self, name: str, limit_s: float, late: str, look: Look | None) -> dict[str, Any]:
        started = time.monotonic()
        path = self._turns / name
        while not path.is_file():
            passed = time.monotonic() - started
            if self._cancel.is_set():
                raise EnginefarmError(Reason.INTERRUPTED, f"the bench was stopped while {self.name} had its turn")
            if not self._thread.is_alive() and not path.is_file():
                self._outcome()
                raise EnginefarmError(Reason.STAGE_CONTRACT, f"{self.name} ended before its time")
            if passed > limit_s:
                raise self._hung(late)
            if look is not None and passed > _LOOK_AFTER_S:
                look()
                look = None
            time.sleep(_NAP_S)
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return document

    def _outcome(self) -> StageResult:
        if self._error is not None:
            raise self._error
        if self._result is None:
            msg = f"{self.name} has not ended"
            raise RuntimeError(msg)
        return self._result

    def _hung(self, how: str) -> EnginefarmError:
        why = process.tail(self.request.log) or None
        return EnginefarmError(Reason.STAGE_TIMEOUT, f"{self.name} {how}", why=why)


def rotated(items: Sequence[T], turn: int) -> list[T]:
    """Return the items from the `turn`-th on, then those before it: nobody is first, or last, in every round."""
    start = turn % len(items) if items else 0
    return [*items[start:], *items[:start]]


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that is whole as soon as it is there."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)
