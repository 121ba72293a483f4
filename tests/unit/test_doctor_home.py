"""What `doctor` says of the farm's home."""

from __future__ import annotations

from pathlib import Path

from builder.doctor import disk_check, examine
from builder.doctor_checks import Verdict
from builder.project import Home
from tests.unit.test_doctor import GIB, facts, ready


def test_room_for_the_stacks_that_need_no_gpu_is_enough(tmp_path: Path) -> None:
    stacks = [ready(installed=False), ready(installed=False, name="classic", needs_gpu=True, installed_mib=20_000)]
    check = disk_check(Home(root=tmp_path), 10 * GIB, stacks)
    assert check.status is Verdict.WARN
    assert check.means.startswith("All stacks and a first model take about 2")
    assert disk_check(Home(root=tmp_path), GIB // 2, stacks).means.startswith("The stacks that need no GPU")
    (found,) = (
        one for one in examine(facts(home_free_bytes=10 * GIB), stacks, Home(root=tmp_path)) if one.name == "disk:home"
    )
    assert found.status is Verdict.OK


def test_home_of_somebody_else(tmp_path: Path) -> None:
    found = next(one for one in examine(facts(home_writable=False), (), Home(root=tmp_path)) if one.name == "disk:home")
    assert (found.status, found.found) == (Verdict.FAIL, f"{tmp_path} cannot be written")
