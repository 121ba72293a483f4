"""Refusals that come before TensorRT is asked; the rest is tested with the real thing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from builder.worker.protocol import StageFailure
from builder.worker.trt import Options, Request, rtx

TRT = SimpleNamespace(
    __version__="1.7.1.116",
    ComputeCapability=SimpleNamespace(
        __members__={"NONE": 0, "CURRENT": 1, "SM75": 75, "SM80": 80, "SM86": 86, "SM120": 120}
    ),
)
PLAIN = Options(None, None, "none", version_compatible=False, strip_weights=False)


def test_sms_become_capabilities_in_order() -> None:
    assert rtx._capabilities(TRT, ["8.6", "12.0"]) == [86, 120]
    assert rtx._capabilities(TRT, ["7.5"]) == [75]


@pytest.mark.parametrize(
    ("sms", "message", "why"),
    [
        (["8.0", "9.0"], "cannot build for SM 9.0", "it has SM 7.5, 8.0, 8.6, 12.0"),
        (["7.5", "8.6"], "SM 7.5 cannot share an engine with SM 8.6", "Turing only in engines of its own"),
        ([], "cannot build for SM none", "it has SM"),
    ],
)
def test_sm_lists_that_cannot_be_built(sms: list[str], message: str, why: str) -> None:
    with pytest.raises(StageFailure) as caught:
        rtx._capabilities(TRT, sms)
    assert caught.value.reason == "sm-unsupported"
    assert message in caught.value.message
    assert why in caught.value.why


@pytest.mark.parametrize(
    ("option", "value"),
    [("hardware_compatibility", "ampere_plus"), ("version_compatible", True), ("strip_weights", True)],
)
def test_options_that_would_have_no_effect_are_refused(option: str, value: object) -> None:
    rtx._refuse_options(PLAIN)
    with pytest.raises(StageFailure) as caught:
        rtx._refuse_options(PLAIN._replace(**{option: value}))  # type: ignore[arg-type]
    assert (caught.value.reason, caught.value.details) == ("option-unsupported", {"option": option})


class _Config:
    """Records what is set; TF32 is on from the start, as in TensorRT-RTX."""

    def __init__(self) -> None:
        self.flags = {"TF32"}
        self.pools: dict[str, int] = {}
        self.builder_optimization_level = 3

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)

    def get_flag(self, flag: str) -> bool:
        return flag in self.flags

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.pools[pool] = size


def _set(precision: str, options: Options = PLAIN) -> tuple[list[str], _Config]:
    trt: Any = SimpleNamespace(
        BuilderFlag=SimpleNamespace(__members__={"TF32": "TF32", "DEBUG": "DEBUG"}, TF32="TF32"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="WORKSPACE"),
    )
    config = _Config()
    return rtx._set_options(trt, config, Request("rtx", "t", precision, [], ["8.6"], options)), config


@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("fp32", ["STRONGLY_TYPED"]),
        ("tf32", ["STRONGLY_TYPED", "TF32"]),
        ("fp16", ["STRONGLY_TYPED"]),
        ("bf16", ["STRONGLY_TYPED"]),
    ],
)
def test_tf32_is_on_only_where_asked_for(precision: str, flags: list[str]) -> None:
    assert _set(precision)[0] == flags


def test_workspace_and_level() -> None:
    _, config = _set("fp16", PLAIN._replace(workspace_mib=512, optimization_level=5))
    assert (config.pools, config.builder_optimization_level) == ({"WORKSPACE": 512 << 20}, 5)
    assert _set("fp16")[1].builder_optimization_level == 3
