"""What times mean: against cases worked out by hand."""

from __future__ import annotations

import pytest

from builder.bench_result import BenchCase, Ratio
from builder.bench_statistics import (
    compare,
    gpu_noise,
    gpu_notes,
    judged,
    percentile,
    series_noise,
    summarise,
)
from tests.benches import conditions, series, timing


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([1.0], 0.95, 1.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.5, 3.0),
        # 0.95 x 4 = 3.8: four fifths of the way from 4 to 5
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.95, 4.8),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.05, 1.2),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 0.0, 1.0),
        ([1.0, 2.0, 3.0, 4.0, 5.0], 1.0, 5.0),
    ],
)
def test_percentile(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == pytest.approx(expected)


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_summary_by_hand() -> None:
    # all: 1 2 3 4 5 6 7 8 9 10 11; p5 = 1.5, p95 = 10.5; block medians 11, 2, 6
    found = summarise([[11.0, 10.0, 12.0 - 0.0], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0, 8.0]])
    assert found.runs == 11
    assert found.median_ms == 6.0
    assert found.p5_ms == pytest.approx(1.5)
    assert found.p95_ms == pytest.approx(11.5)
    assert found.mean_ms == pytest.approx(69 / 11)
    assert found.spread == pytest.approx(10.0 / 6.0)
    assert found.block_medians_ms == [11.0, 2.0, 6.0]
    assert found.drift == pytest.approx(9.0 / 6.0)


def test_order_of_blocks_is_that_of_rounds() -> None:
    assert summarise([[3.0], [1.0], [2.0]]).block_medians_ms == [3.0, 1.0, 2.0]


def test_clock_too_coarse_gives_no_infinity() -> None:
    assert summarise([[0.0, 0.0], [0.0]]).spread == 0.0
    assert summarise([[0.0, 0.0, 0.0], [5.0]]).drift == pytest.approx(5.0 / 2.5)


def test_ratios_are_paired_by_round() -> None:
    # both get slower together: the ratio is 2 in every round, although times differ by a third
    engine = summarise([[1.0], [1.5], [1.2]])
    other = summarise([[2.0], [3.0], [2.4]])
    assert compare(engine, other) == Ratio(median=2.0, low=2.0, high=2.0)
    uneven = summarise([[2.0], [4.5], [1.2]])
    assert compare(engine, uneven) == Ratio(median=2.0, low=1.0, high=3.0)


def test_missing_rounds_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare(summarise([[1.0], [1.0]]), summarise([[2.0]]))


def test_quiet_series() -> None:
    assert series_noise(series(1.0), series(0.9)) == []


def test_spread_counts_by_the_gpu_where_it_has_a_clock() -> None:
    wide = series(1.0, spread=0.3)
    assert series_noise(wide, series(0.9)) == []
    assert series_noise(series(1.0), wide) == ["GPU times spread by 30% of the median, more than 25%"]
    assert series_noise(wide, None) == ["wall times spread by 30% of the median, more than 25%"]


def test_drift_counts_by_both_clocks() -> None:
    found = series_noise(series(1.0, drift=0.06), series(0.9, drift=0.08))
    assert found == [
        "medians of wall times differ by 6.0% from round to round, more than 5%",
        "medians of GPU times differ by 8.0% from round to round, more than 5%",
    ]
    assert series_noise(series(1.0, drift=0.05), None) == []


def test_gpu_that_does_well_is_no_noise() -> None:
    assert gpu_noise(conditions()) == []
    assert gpu_notes(conditions()) == []


@pytest.mark.parametrize(
    "reason", ["hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake_slowdown"]
)
def test_throttling_is_noise(reason: str) -> None:
    assert gpu_noise(conditions(throttle=[reason, "sw_power_cap"])) == [f"the GPU was throttled: {reason}"]


def test_power_cap_is_told() -> None:
    capped = conditions(throttle=["applications_clocks_setting", "sw_power_cap"])
    assert gpu_noise(capped) == []
    assert gpu_notes(capped) == ["the GPU held its clocks down: sw_power_cap"]


def test_clocks_that_change_are_noise() -> None:
    assert gpu_noise(conditions(round_clocks_mhz=[1980, 1890, 1980])) == []
    assert gpu_noise(conditions(round_clocks_mhz=[1980, 1875, 1980])) == [
        "the SM clock was 1875 MHz in one round and 1980 MHz in another"
    ]


def test_unknown_clocks_are_told() -> None:
    unknown = conditions(round_clocks_mhz=[])
    assert gpu_noise(unknown) == []
    assert "nobody looked" in gpu_notes(unknown)[0]


def test_strangers_are_noise() -> None:
    assert gpu_noise(conditions(strangers=["python 77 with 2000 MiB"])) == [
        "other programs were on the GPU: python 77 with 2000 MiB"
    ]


def case(**changes: object) -> BenchCase:
    rows = [timing("engine (graph)", 1.0), timing("engine", 1.2), timing("eager-cuda", 3.0, role="baseline")]
    rows[0] = rows[0].model_copy(update=changes)
    return BenchCase(name="c", shapes={}, timings=rows)


def test_baselines_get_ratios_and_the_engine_none() -> None:
    ratios = [row.ratio for row in judged(case(), claim=True).timings]
    assert ratios[:2] == [None, None]
    assert ratios[2] is not None
    assert ratios[2].median == pytest.approx(3.0)
    gpu = judged(case(), claim=True).timings[2].gpu_ratio
    assert gpu is not None
    assert gpu.median == pytest.approx(3.0)


def test_no_gpu_times_no_gpu_ratio() -> None:
    assert judged(case(gpu=None), claim=True).timings[2].gpu_ratio is None


def test_noise_claims_no_ratio() -> None:
    assert all(row.ratio is None for row in judged(case(), claim=False).timings)
    assert all(row.ratio is None for row in judged(case(noise=["spread"]), claim=True).timings)
    noisy = case()
    loud = noisy.timings[2].model_copy(update={"noise": ["drift"]})
    noisy = noisy.model_copy(update={"timings": [*noisy.timings[:2], loud]})
    assert judged(noisy, claim=True).timings[2].ratio is None


def test_of_a_noisy_baseline_a_bound_remains() -> None:
    quiet = case()
    slow = quiet.timings[2].model_copy(update={"noise": ["drift"]})
    far = slow.model_copy(update={"wall": slow.wall.model_copy(update={"p5_ms": quiet.timings[0].wall.p95_ms * 3})})
    near = slow.model_copy(update={"wall": slow.wall.model_copy(update={"p5_ms": quiet.timings[0].wall.p95_ms * 0.9})})
    together = quiet.model_copy(update={"timings": [*quiet.timings[:2], far, near]})
    bounds = [row.at_least for row in judged(together, claim=True).timings]
    assert bounds == [None, None, pytest.approx(3.0), None]
    assert all(row.at_least is None for row in judged(together, claim=False).timings)
    loud = [row.model_copy(update={"noise": ["spread"]}) if row.role == "engine" else row for row in together.timings]
    assert all(
        row.at_least is None for row in judged(together.model_copy(update={"timings": loud}), claim=True).timings
    )
