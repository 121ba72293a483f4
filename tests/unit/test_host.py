"""What this machine has."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder import host

MEMINFO = "MemTotal:       24684096 kB\nMemFree:        1000 kB\nMemAvailable:   8000 kB\nHugePages_Total:       0\n"


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty control group, and 8000 KiB that are free."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(MEMINFO, encoding="utf-8")
    monkeypatch.setattr(host, "_MEMINFO", meminfo)
    monkeypatch.setattr(host, "_CGROUP", tmp_path)
    return tmp_path


def limit(cgroup: Path, *, maximum: str, current: int, inactive_file: int) -> None:
    """Write the files of a control group, bytes each."""
    (cgroup / "memory.max").write_text(f"{maximum}\n", encoding="utf-8")
    (cgroup / "memory.current").write_text(f"{current}\n", encoding="utf-8")
    (cgroup / "memory.stat").write_text(f"anon 5\ninactive_file {inactive_file}\nactive_file 7\n", encoding="utf-8")


def test_what_the_kernel_says_where_there_is_no_control_group(cgroup: Path) -> None:
    assert not (cgroup / "memory.max").exists()
    assert host.available_memory_bytes() == 8000 * 1024


def test_a_control_group_without_limit_changes_nothing(cgroup: Path) -> None:
    limit(cgroup, maximum="max", current=10**12, inactive_file=0)
    assert host.available_memory_bytes() == 8000 * 1024


def test_a_control_group_leaves_less(cgroup: Path) -> None:
    limit(cgroup, maximum="5000", current=3000, inactive_file=0)
    assert host.available_memory_bytes() == 2000


def test_cached_files_do_not_count_as_used(cgroup: Path) -> None:
    limit(cgroup, maximum="5000", current=4900, inactive_file=3000)
    assert host.available_memory_bytes() == 3100


def test_room_is_never_negative(cgroup: Path) -> None:
    limit(cgroup, maximum="5000", current=6000, inactive_file=0)
    assert host.available_memory_bytes() == 0


def test_free_disk_of_a_folder_that_is_yet_to_be_made(tmp_path: Path) -> None:
    assert host.free_disk_bytes(tmp_path / "not" / "yet") > 0


def test_description_names_no_host() -> None:
    assert set(host.description()) == {"machine", "system", "python"}


def test_a_folder_to_be_made_is_as_writable_as_where_it_would_be(tmp_path: Path) -> None:
    assert host.is_writable(tmp_path / "home" / "of" / "mine")
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert not host.is_writable(tmp_path / "file")
