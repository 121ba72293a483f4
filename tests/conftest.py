"""Tests that need more than Python are asked for by flag; without it they are skipped and name it."""

from __future__ import annotations

import pytest

_FLAGS = {
    "integration": ("--run-integration", "run tests that start programs, install stacks and build engines"),
    "gpu": ("--run-gpu", "run tests that need an NVIDIA GPU"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add one flag per marker."""
    for flag, what in _FLAGS.values():
        parser.addoption(flag, action="store_true", help=what)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what was not asked for."""
    for marker, (flag, _) in _FLAGS.items():
        if not config.getoption(flag):
            skip = pytest.mark.skip(reason=f"needs {flag}")
            for item in items:
                if marker in item.keywords:
                    item.add_marker(skip)
