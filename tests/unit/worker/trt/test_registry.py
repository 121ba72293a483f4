from __future__ import annotations

import pytest

from builder.worker.protocol import ProtocolError
from builder.worker.trt import ADAPTERS, adapter, gpu_adapter


@pytest.mark.parametrize("family", ADAPTERS)
def test_every_family_has_what_an_adapter_has(family: str) -> None:
    found = adapter(family)
    assert all(callable(part) for part in (found.build, found.layers, found.load))


@pytest.mark.parametrize("family", [family for family in ADAPTERS if family != "rtx"])
def test_a_family_that_builds_on_a_gpu_has_more(family: str) -> None:
    found = gpu_adapter(family)
    assert all(callable(part) for part in (found.engine_layers, found.build_debug))


def test_a_family_that_needs_no_gpu_has_no_engine_to_look_into() -> None:
    with pytest.raises(ProtocolError, match="without a GPU"):
        gpu_adapter("rtx")


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ProtocolError, match=r"'cuda'.*rtx"):
        adapter("cuda")
