"""What people see of a bench."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from builder.bench_result import BenchPart
from builder.report.bench import bench_page, markdown, milliseconds, noise_text
from tests.benches import conditions, result, timing
from tests.engines import manifest


def plain(text: str, style: str) -> str:
    return text


def page(shown: BenchPart, width: int = 140) -> str:
    return "\n".join(bench_page("vocos-decoder-fp16-trt8.6-cuda12.0-sm90", shown, manifest().build, width, plain))


def noisy() -> BenchPart:
    """Make a result of a GPU that was too warm; one baseline jumps, too."""
    why = ["the GPU was throttled: hw_thermal_slowdown"]
    case = result().cases[0]
    rows = [row.model_copy(update={"ratio": None}) for row in case.timings]
    rows[-1] = rows[-1].model_copy(update={"noise": ["wall times spread by 60% of the median, more than 25%"]})
    return result(
        verdict="noise",
        noise=why,
        notes=["the GPU held its clocks down: sw_power_cap"],
        cases=[case.model_copy(update={"timings": rows})],
        gpu=conditions(throttle=["hw_thermal_slowdown", "sw_power_cap"], round_clocks_mhz=[1500, 1980]),
    )


@pytest.mark.parametrize("width", [80, 140])
def test_page(snapshot: Callable[[str, str], None], width: int) -> None:
    snapshot(f"bench-{width}", page(result(), width))


def test_page_of_noise(snapshot: Callable[[str, str], None]) -> None:
    snapshot("bench-noise", page(noisy()))


def test_markdown(snapshot: Callable[[str, str], None]) -> None:
    snapshot("bench-markdown", markdown([("vocos-fp16", result()), ("cls-fp16", noisy())]))


def test_engine_alone_without_a_graph_on_a_silent_driver() -> None:
    cost = result().engine.model_copy(update={"graph": False, "no_graph": "CUDA says no\nand more"})
    gpu = conditions(round_clocks_mhz=[], temperature_c=None, power_w=None)
    text = page(result(baselines=[], engine=cost, gpu=gpu))
    assert "none: --baseline-python names a Python with PyTorch" in text
    assert "no CUDA graph: CUDA says no" in text
    assert "and more" not in text
    assert "not told by the driver" in text


def test_fast_and_wrong_is_seen() -> None:
    broken = {"y": {"max_abs": None, "max_rel": None, "mse": None, "cosine": None, "nonfinite": 3}}
    case = result().cases[0]
    rows = [*case.timings, timing("wrong-cuda", 9.0, 40.0, difference=broken)]
    assert "not comparable" in page(result(cases=[case.model_copy(update={"timings": rows})]))


def test_noise_in_words() -> None:
    assert noise_text(result()) == ""
    assert noise_text(noisy()).splitlines() == [
        "the GPU was throttled: hw_thermal_slowdown",
        "frames/opt, compile-cuda: wall times spread by 60% of the median, more than 25%",
    ]
    assert not noisy().quiet


@pytest.mark.parametrize(
    ("value", "text"), [(0.22641, "0.2264"), (12.344, "12.34"), (999.96, "1000"), (1234.5, "1234"), (12345.6, "12346")]
)
def test_milliseconds(value: float, text: str) -> None:
    assert milliseconds(value) == text
