"""What the tests on a GPU share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from builder.gpu import Gpu, visible_gpus
from builder.targets import load_targets
from tests.gpu.farm import GpuFarm
from tests.integration.farm import ROOT, shared_home


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The GPU that tests use."""
    gpus = visible_gpus(os.environ)
    if not gpus:
        pytest.skip("needs an NVIDIA GPU")
    return gpus[0]


@pytest.fixture
def gpu_farm(tmp_path: Path, gpu: Gpu) -> GpuFarm:
    """An empty project beside the real stacks; images are those of the tests' shared home."""
    project, home = tmp_path / "project", tmp_path / "home"
    (project / "recipes").mkdir(parents=True)
    (project / "images").symlink_to(ROOT / "images")
    home.mkdir()
    for name in ("bases", "images", "fetch"):
        target = shared_home().root / name
        target.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(target)
    family = next(name for name, target in load_targets().items() if gpu.sm in target.sms)
    executor = os.environ.get("ENGINEFARM_EXECUTOR", "docker")
    return GpuFarm(project=project, home=home, executor=executor, target=family)
