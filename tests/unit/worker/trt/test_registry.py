from __future__ import annotations

import importlib

import pytest

from builder.worker.protocol import ProtocolError
from builder.worker.trt import ADAPTERS, adapter


@pytest.mark.parametrize("family", ADAPTERS)
def test_every_family_has_the_functions_of_an_adapter(family: str) -> None:
    module = adapter(family)
    assert module is importlib.import_module(f"builder.worker.trt.{ADAPTERS[family]}")
    assert callable(module.build)
    assert callable(module.layers)


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(ProtocolError, match=r"'cuda'.*rtx"):
        adapter("cuda")
