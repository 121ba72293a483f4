"""Taking turns, the worker's side."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from builder.bench_players import write_whole
from builder.worker.turn_files import END, Turns


def test_turns_are_taken_in_order(tmp_path: Path) -> None:
    turns = Turns(str(tmp_path / "turn"))
    turns.ready({"layers": 3})
    assert json.loads((tmp_path / "turn" / "ready.json").read_text(encoding="utf-8")) == {"layers": 3}
    # the second is there before the first was answered
    write_whole(tmp_path / "turn" / "001.go", b'{"case": "b"}')
    write_whole(tmp_path / "turn" / "000.go", b'{"case": "a"}')
    write_whole(tmp_path / "turn" / END, b"")
    for request in turns.requests():
        turns.answer({"echo": request["case"]})
    answers = [json.loads((tmp_path / "turn" / f"00{number}.json").read_text(encoding="utf-8")) for number in (0, 1)]
    assert answers == [{"echo": "a"}, {"echo": "b"}]


def test_a_turn_is_waited_for(tmp_path: Path) -> None:
    turns = Turns(str(tmp_path / "turn"))
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.extend(turns.requests()))
    waiting.start()
    waiting.join(0.02)
    assert waiting.is_alive()
    write_whole(tmp_path / "turn" / "000.go", b'{"case": "late"}')
    write_whole(tmp_path / "turn" / END, b"")
    waiting.join(5)
    assert got == [{"case": "late"}]


def test_half_written_files_are_not_seen(tmp_path: Path) -> None:
    turns = Turns(str(tmp_path / "turn"))
    (tmp_path / "turn" / ".000.go.part").write_bytes(b'{"do"')
    write_whole(tmp_path / "turn" / END, b"")
    assert list(turns.requests()) == []
    write_whole(tmp_path / "turn" / "000.go", b'{"do": "measure"}')
    assert next(turns.requests()) == {"do": "measure"}
    assert sorted(path.name for path in (tmp_path / "turn").iterdir()) == ["000.go", "end"]
