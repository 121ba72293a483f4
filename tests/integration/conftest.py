"""Environments and farms for the integration tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.farm import ROOT, Farm, installed, share_environments


@pytest.fixture(scope="session")
def rtx_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with TensorRT-RTX."""
    return installed("trtrtx1.7-cuda13", tmp_path_factory.mktemp("log") / "rtx.log")


@pytest.fixture(scope="session")
def export_environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python with PyTorch."""
    return installed("export", tmp_path_factory.mktemp("log") / "export.log")


@pytest.fixture
def farm(tmp_path: Path, rtx_environment: Path) -> Farm:
    """An empty project beside the real stacks, with TensorRT-RTX installed."""
    assert rtx_environment.exists()
    project = tmp_path / "project"
    (project / "recipes").mkdir(parents=True)
    (project / "images").symlink_to(ROOT / "images")
    share_environments(tmp_path / "home")
    return Farm(project=project, home=tmp_path / "home")
