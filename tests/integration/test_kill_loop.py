"""The farm is killed at random instants: the store verifies clean every time, and the next run finishes the work."""

from __future__ import annotations

import os
import random
import shutil
import time

import pytest

from builder.store import Store
from tests.integration.farm import Farm, product, shapes

pytestmark = pytest.mark.integration

# a loop of 100 is the acceptance test; CI takes fewer
KILLS = int(os.environ.get("ENGINEFARM_KILLS", "15"))


@pytest.mark.timeout(KILLS * 20 + 60)
def test_killed_at_random_instants(farm: Farm) -> None:
    for number in range(3):
        farm.recipe(f"toy{number}", product(64, seed=number), shapes(width=64))
    started = time.monotonic()
    wanted = {job["job"]: job["engine"]["sha256"] for job in farm.build()}
    whole = time.monotonic() - started
    stream = random.Random(20260101)  # noqa: S311  # instants, not secrets
    for _ in range(KILLS):
        shutil.rmtree(farm.home / "store")
        process = farm.start("build", "--target", "ampere")
        time.sleep(stream.uniform(0.05, whole * 1.05))
        process.kill()
        process.communicate()
        assert Store(farm.home / "store").verify() == ()
        jobs = farm.build()
        assert {job["job"]: job["engine"]["sha256"] for job in jobs} == wanted
        assert Store(farm.home / "store").verify() == ()
        assert not list((farm.home / "work").glob("run-*"))
