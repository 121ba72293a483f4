"""Taking turns, the farm's side, against the worker's side in a thread."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from builder.bench_players import rotated, write_whole
from builder.errors import EnginefarmError, Reason
from builder.worker.turn_files import END
from tests.benches import ENGINE_FACTS, engine_answer, fake_player, wait_until


def test_turns_come_in_order_and_end(tmp_path: Path) -> None:
    wishes: list[tuple[int, object]] = []

    def answer(number: int, wish: dict[str, object]) -> dict[str, object]:
        wishes.append((number, wish["case"]))
        return {"echo": wish["case"]}

    player = fake_player(tmp_path, "engine", {"layers": 3}, answer)
    assert player.begin(5) == {"layers": 3}
    assert [player.play({"do": "measure", "case": name}, 5) for name in "abc"] == [{"echo": name} for name in "abc"]
    assert player.end().max_rss_bytes == 900 << 20
    assert wishes == [(0, "a"), (1, "b"), (2, "c")]


def test_looks_fall_beside_the_timed_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.bench_players._LOOK_AFTER_S", 0.01)
    looked = threading.Event()
    looks: list[str] = []

    def answer(number: int, wish: dict[str, object]) -> dict[str, object]:
        assert looked.wait(5)
        looks.append("answered")
        return {}

    def look() -> None:
        looks.append("look")
        looked.set()

    player = fake_player(tmp_path, "engine", {}, answer)
    player.begin(5)
    player.play({"do": "measure"}, 5, look)
    # one while it warms up, one right after
    assert looks == ["look", "answered", "look"]
    player.end()


def test_hanging_stage_is_named_and_killed(tmp_path: Path) -> None:
    player = fake_player(tmp_path, "engine", {}, lambda number, wish: None)
    player.begin(5)
    player.request.log.write_text("TensorRT says nothing\n", encoding="utf-8")
    with pytest.raises(EnginefarmError) as caught:
        player.play({"do": "measure"}, 0.05)
    assert caught.value.reason is Reason.STAGE_TIMEOUT
    assert "engine did not end its turn" in caught.value.what
    assert caught.value.why == "TensorRT says nothing"
    player.abort()
    wait_until(lambda: not any(thread.name == "bench engine" for thread in threading.enumerate()))


def test_stage_that_fails_while_it_sets_up(tmp_path: Path) -> None:
    def run() -> None:
        raise EnginefarmError(Reason.ENGINE_INVALID, "TensorRT cannot load the engine")

    player = fake_player(tmp_path, "engine", {}, engine_answer([1.0]))
    player._run = run  # type: ignore[assignment]
    with pytest.raises(EnginefarmError, match="cannot load"):
        player.begin(5)


def test_stage_that_ends_too_early(tmp_path: Path) -> None:
    player = fake_player(tmp_path, "engine", ENGINE_FACTS, engine_answer([1.0]))
    player.begin(5)
    write_whole(player.request.folder / "turn" / END, b"")
    wait_until(lambda: not player._thread.is_alive())
    with pytest.raises(EnginefarmError) as caught:
        player.play({"do": "measure"}, 5)
    assert caught.value.reason is Reason.STAGE_CONTRACT


def test_ctrl_c_ends_the_wait(tmp_path: Path) -> None:
    cancel = threading.Event()
    player = fake_player(tmp_path, "engine", {}, lambda number, wish: None, cancel=cancel)
    player.begin(5)
    threading.Timer(0.05, cancel.set).start()
    with pytest.raises(EnginefarmError) as caught:
        player.play({"do": "measure"}, 30)
    assert caught.value.reason is Reason.INTERRUPTED
    player.abort()


def test_abort_of_what_never_began_or_has_ended(tmp_path: Path) -> None:
    player = fake_player(tmp_path, "engine", {}, engine_answer([1.0]))
    player.abort()
    player.begin(5)
    player.end()
    player.abort()
    # whoever shares the event must not be stopped by a stage that ended well
    assert not player._stop.is_set()


def test_rotation() -> None:
    assert [rotated("ABC", turn) for turn in range(4)] == [list("ABC"), list("BCA"), list("CAB"), list("ABC")]
    assert rotated("", 3) == []
