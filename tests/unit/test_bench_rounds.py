"""A whole bench with threads for processes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.bench_players import Player
from builder.bench_result import BenchPart
from builder.bench_rounds import Match, Rounds
from builder.errors import EnginefarmError, Reason
from builder.gpu import GpuProcess
from tests.benches import (
    ENGINE_FACTS,
    GPU,
    FakeGauge,
    baseline_answer,
    baseline_facts,
    engine_answer,
    fake_player,
    look,
)

ROUNDS = Rounds(rounds=3, warmup=20, iterations=200, setup_s=5, turn_s=5)
FAST, SLOW = [1.0, 1.0, 1.01], [3.0, 3.0, 3.02]


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("bench ")] == []


class Setting:
    """An engine, baselines and what they say; a test changes what it wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.gauge = FakeGauge()
        self.log: list[str] = []
        self.said: list[str] = []
        self.engine = fake_player(folder, "engine", ENGINE_FACTS, engine_answer(FAST), log=self.log)
        self.baselines: list[Player] = []

    def add(self, kind: str, **changes: Any) -> None:
        """Add a baseline."""
        answer = baseline_answer(changes.pop("times", SLOW), **changes)
        self.baselines.append(fake_player(self.folder, kind, baseline_facts(kind), answer, log=self.log))

    def play(self, rounds: Rounds = ROUNDS) -> BenchPart:
        """Run the bench."""
        match = Match(
            engine=self.engine, baselines=self.baselines, rounds=rounds, gauge=self.gauge, say=self.said.append
        )
        return match.play(GPU)


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """Make an engine that takes a millisecond."""
    return Setting(tmp_path)


def test_everybody_takes_turns_and_nobody_is_always_first(setting: Setting) -> None:
    setting.add("eager")
    setting.add("compile")
    setting.play()
    order = [entry.split()[0] for entry in setting.log]
    assert order[:3] == ["engine", "eager", "compile"]
    assert order[3:6] == ["eager", "compile", "engine"]
    assert order[6:9] == ["compile", "engine", "eager"]


def test_result(setting: Setting) -> None:
    setting.add("eager")
    found = setting.play()
    assert found.verdict == "ok"
    assert found.quiet
    assert [timing.name for timing in found.cases[0].timings] == [
        "engine (graph)",
        "engine",
        "engine + copies",
        "eager-cuda",
    ]
    eager = found.cases[0].timings[3]
    assert eager.ratio is not None
    assert eager.ratio.median == pytest.approx(3.0)
    assert eager.wall.runs == 9
    assert found.cases[0].timings[2].gpu is None
    # 200 runs in three rounds are 67 each
    assert found.iterations == 201
    assert found.engine.max_rss_bytes == 900 << 20
    assert found.engine.graph
    assert found.gpu.round_clocks_mhz == [1980, 1980, 1980]
    assert BenchPart.model_validate_json(found.model_dump_json()) == found


def test_turns_ask_for_the_recipe_s_runs(setting: Setting, tmp_path: Path) -> None:
    wishes: list[dict[str, Any]] = []
    inner = engine_answer(FAST)

    def answer(number: int, wish: dict[str, Any]) -> dict[str, Any] | None:
        wishes.append(wish)
        return inner(number, wish)

    setting.engine = fake_player(tmp_path / "other", "engine", ENGINE_FACTS, answer)
    setting.play()
    assert wishes == [{"do": "measure", "case": "default/opt", "warmup": 20, "iterations": 67}] * 3


def test_engine_alone(setting: Setting) -> None:
    found = setting.play()
    assert found.baselines == []
    assert found.verdict == "ok"
    assert set(setting.log) == {"engine measure"}


def test_engine_without_a_graph(setting: Setting, tmp_path: Path) -> None:
    def answer(number: int, wish: dict[str, Any]) -> dict[str, Any]:
        return {"series": {"engine": {"wall": FAST, "gpu": FAST}, "copies": {"wall": FAST}}, "warmup_runs": 1}

    facts = {**ENGINE_FACTS, "graph": False, "no_graph": "CUDA says no"}
    setting.engine = fake_player(tmp_path / "other", "engine", facts, answer)
    found = setting.play()
    assert [timing.name for timing in found.cases[0].timings] == ["engine", "engine + copies"]
    assert found.engine.no_graph == "CUDA says no"


@pytest.mark.parametrize("turn", [0, 2])
def test_dead_baseline_is_dropped_and_named(setting: Setting, turn: int) -> None:
    setting.add("eager", fails_at=turn)
    setting.add("compile")
    found = setting.play()
    assert [timing.name for timing in found.cases[0].timings][3:] == ["compile-cuda"]
    dropped = found.baselines[0]
    assert dropped.dropped == "stage baseline was killed by signal 9: Killed"
    assert setting.said == ["baseline eager is left out: stage baseline was killed by signal 9: Killed"]
    assert sum(entry == "eager measure" for entry in setting.log) == turn + 1
    assert found.verdict == "ok"


def test_hanging_baseline_is_dropped(setting: Setting) -> None:
    setting.add("eager", hangs_at=1)
    found = setting.play(Rounds(rounds=3, warmup=1, iterations=3, setup_s=5, turn_s=0.3))
    assert found.baselines[0].dropped == "eager did not end its turn within 0 s"
    assert found.cases[0].timings[-1].name == "engine + copies"


def test_baseline_that_is_never_ready(setting: Setting, tmp_path: Path) -> None:
    setting.add("eager")

    def run() -> None:
        raise EnginefarmError(Reason.LIBRARY_MISSING, "the baseline's Python lacks a package")

    setting.baselines[0]._run = run  # type: ignore[assignment]
    found = setting.play()
    assert found.baselines[0].name == "eager"
    assert found.baselines[0].dropped == "the baseline's Python lacks a package"


def test_hanging_engine_fails_the_bench(setting: Setting, tmp_path: Path) -> None:
    setting.add("eager")
    setting.engine = fake_player(tmp_path / "stuck", "engine", ENGINE_FACTS, lambda number, wish: None)
    with pytest.raises(EnginefarmError) as caught:
        setting.play(Rounds(rounds=2, warmup=1, iterations=2, setup_s=5, turn_s=0.2))
    assert caught.value.reason is Reason.STAGE_TIMEOUT


def test_ctrl_c_is_no_dropped_baseline(setting: Setting, tmp_path: Path) -> None:
    cancel = threading.Event()

    def answer(number: int, wish: dict[str, Any]) -> None:
        cancel.set()

    setting.baselines = [fake_player(tmp_path, "eager", baseline_facts("eager"), answer, cancel=cancel)]
    with pytest.raises(EnginefarmError) as caught:
        setting.play()
    assert caught.value.reason is Reason.INTERRUPTED


def test_outputs_are_compared_where_the_arrays_are(setting: Setting, tmp_path: Path) -> None:
    metrics = {"max_abs": 0.5, "max_rel": 0.5, "mse": 0.25, "cosine": 0.5, "nonfinite": 0}
    wishes: list[dict[str, Any]] = []
    inner = engine_answer(FAST, {"eager": {"default/opt": {"y": metrics}}})

    def answer(number: int, wish: dict[str, Any]) -> dict[str, Any] | None:
        wishes.append(wish)
        return inner(number, wish)

    setting.engine = fake_player(tmp_path / "other", "engine", ENGINE_FACTS, answer)
    setting.add("eager")
    made = setting.baselines[0].request.folder / "out"
    made.mkdir(parents=True)
    (made / "outputs.npz").write_bytes(b"arrays")
    found = setting.play()
    assert wishes[-1] == {"do": "compare", "files": {"eager": "turn/outputs.eager.npz"}}
    assert (tmp_path / "other/engine/turn/outputs.eager.npz").read_bytes() == b"arrays"
    assert found.cases[0].timings[3].difference == {"y": metrics}
    # fast, and another model altogether
    assert found.notes == ["default/opt: output y is not that of eager-cuda"]


def test_noisy_engine_is_noise_without_ratios(setting: Setting, tmp_path: Path) -> None:
    setting.engine = fake_player(tmp_path / "other", "engine", ENGINE_FACTS, engine_answer([1.0, 1.0, 2.0]))
    setting.add("eager")
    found = setting.play()
    assert found.verdict == "noise"
    assert found.noise == ["default/opt: GPU times spread by 100% of the median, more than 25%"]
    assert all(timing.ratio is None for timing in found.cases[0].timings)


def test_engine_that_drifts_is_noise(setting: Setting, tmp_path: Path) -> None:
    def answer(number: int, wish: dict[str, Any]) -> dict[str, Any] | None:
        return engine_answer([1.0 + number / 10])(number, wish)

    setting.engine = fake_player(tmp_path / "other", "engine", ENGINE_FACTS, answer)
    found = setting.play()
    assert found.verdict == "noise"
    assert "differ by 18.2% from round to round" in found.noise[-1]


def test_noisy_baseline_has_no_ratio(setting: Setting) -> None:
    setting.add("eager", times=[3.0, 3.0, 9.0])
    setting.add("compile")
    found = setting.play()
    assert found.verdict == "ok"
    assert not found.quiet
    ratios = {timing.name: timing.ratio for timing in found.cases[0].timings}
    assert ratios["eager-cuda"] is None
    assert ratios["compile-cuda"] is not None
    assert found.notes[0].startswith("default/opt: no ratio to eager-cuda: GPU times spread by")


def test_throttled_gpu_is_noise(setting: Setting) -> None:
    setting.gauge.next = look(throttle=("hw_thermal_slowdown",))
    found = setting.play()
    assert found.noise == ["the GPU was throttled: hw_thermal_slowdown"]


def test_clock_that_falls_is_noise(setting: Setting, tmp_path: Path) -> None:
    def answer(number: int, wish: dict[str, Any]) -> dict[str, Any] | None:
        setting.gauge.next = look(1980 if number < 2 else 1500)
        return engine_answer(FAST)(number, wish)

    setting.engine = fake_player(tmp_path / "other", "engine", ENGINE_FACTS, answer)
    found = setting.play()
    assert found.noise == ["the SM clock was 1500 MHz in one round and 1980 MHz in another"]


def test_stranger_on_the_gpu_is_noise(setting: Setting) -> None:
    setting.gauge.others = [GpuProcess(pid=77, used_bytes=2000 << 20, name="python")]
    found = setting.play()
    assert found.noise == ["other programs were on the GPU: python 77 with 2000 MiB"]


def test_silent_driver_is_told(setting: Setting) -> None:
    setting.gauge.next = look(None, temperature_c=None, power_w=None, throttle=None)
    found = setting.play()
    assert found.verdict == "ok"
    assert found.gpu.round_clocks_mhz == []
    assert found.gpu.temperature_c is None
    assert found.gpu.before.throttle is None
    assert "nobody looked" in found.notes[0]
