"""Wheels of a lock: found by pip, named after their files, fetched several at a time."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from builder import process, wheels
from builder.errors import EnginefarmError, Reason
from builder.fetch import Fetcher, OnBytes
from builder.project import Home
from builder.stacks import Requirement
from builder.wheels import Index, Wheel, fetch_wheels, find_wheels
from tests.artifacts import refusal

A, B = "a" * 64, "b" * 64
FILES = "https://files.example/packages"
TORCH = f"{FILES}/torch-2.13.0%2Bcpu-cp311-cp311-manylinux_2_28_x86_64.whl"
NUMPY = f"{FILES}/numpy-2.0.0-cp311-cp311-manylinux2014_x86_64.whl"
PART = Requirement(pin=f"part @ {FILES}/part-1-py3-none-any.whl", marker=None, hashes=(A,))
PIN = Requirement(pin="numpy==2.0.0", marker='python_version >= "3.9"', hashes=(A, B))


@dataclass
class Pip:
    """Stands in for pip: writes its report, or fails as told."""

    found: dict[str, str] = field(default_factory=dict)
    end: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    argv: list[str] = field(default_factory=list)
    wanted: str = ""
    folder: Path = Path()

    def run(self, argv: Sequence[str], *, cwd: Path, log: Path, **_: object) -> process.Outcome:
        """Have the signature of process.run."""
        assert self.argv == [], "pip is asked once"
        self.argv, self.folder = list(argv), cwd
        self.wanted = Path(self.after("-r")).read_text(encoding="utf-8")
        log.write_text(self.said, encoding="utf-8")
        end = {"exit_code": 0, "signal": None, "cancelled": False} | self.end
        if end["exit_code"] == 0:
            info = [{"url": url, "archive_info": {"hashes": {"sha256": one}}} for url, one in self.found.items()]
            report = {"version": "1", "install": [{"download_info": one} for one in info]}
            Path(self.after("--report")).write_text(json.dumps(report), encoding="utf-8")
        return process.Outcome(argv=tuple(argv), duration_s=0.1, log=log, max_rss_bytes=1, timed_out=False, **end)

    def after(self, option: str) -> str:
        """Return the value of an option."""
        return self.argv[self.argv.index(option) + 1]

    def values(self, option: str) -> list[str]:
        """Return all values of an option."""
        return [value for name, value in zip(self.argv, self.argv[1:], strict=False) if name == option]


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Pip:
    """No program is really run."""
    fake = Pip()
    monkeypatch.setattr(process, "run", fake.run)
    return fake


def find(*requirements: Requirement, platform: str = "linux/amd64", index: Index | None = None) -> list[Wheel]:
    """Find wheels for Python 3.11."""
    return find_wheels(requirements, "3.11", platform, index or Index(), threading.Event())


def test_names_come_from_addresses(pip: Pip) -> None:
    pip.found = {TORCH: B, NUMPY: A}
    assert find(PIN) == [
        Wheel(name="numpy-2.0.0-cp311-cp311-manylinux2014_x86_64.whl", url=NUMPY, sha256=A),
        Wheel(name="torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", url=TORCH, sha256=B),
    ]


@pytest.mark.parametrize("tail", ["?token=1", "#sha256=00", "?a=/b/c#d/e"])
def test_name_is_without_query_and_fragment(pip: Pip, tail: str) -> None:
    pip.found = {f"{NUMPY}{tail}": A}
    (wheel,) = find(PIN)
    assert (wheel.name, wheel.url) == ("numpy-2.0.0-cp311-cp311-manylinux2014_x86_64.whl", f"{NUMPY}{tail}")


def test_parts_with_an_address_need_no_pip(pip: Pip) -> None:
    assert find(PART) == [Wheel(name="part-1-py3-none-any.whl", url=f"{FILES}/part-1-py3-none-any.whl", sha256=A)]
    assert find() == []
    assert pip.argv == []


def test_pip_is_asked_for_the_rest_only(pip: Pip) -> None:
    pip.found = {NUMPY: A}
    assert [wheel.name[:5] for wheel in find(PART, PIN)] == ["numpy", "part-"]
    assert pip.wanted == f"numpy==2.0.0 --hash=sha256:{A} --hash=sha256:{B}\n"


def test_pip_installs_nothing_and_runs_no_code(pip: Pip) -> None:
    find(PIN)
    assert {"--dry-run", "--require-hashes", "--no-deps", "--ignore-installed"} < set(pip.argv)
    assert pip.after("--only-binary") == ":all:"
    assert not pip.folder.exists()


@pytest.mark.parametrize(("platform", "machine"), [("linux/amd64", "x86_64"), ("linux/arm64", "aarch64")])
def test_pip_is_told_python_and_platform(pip: Pip, platform: str, machine: str) -> None:
    find(PIN, platform=platform)
    assert (pip.after("--python-version"), pip.after("--implementation")) == ("3.11", "cp")
    assert pip.values("--abi") == ["cp311", "abi3", "none"]
    platforms = pip.values("--platform")
    assert {f"manylinux_2_17_{machine}", f"manylinux2014_{machine}", f"linux_{machine}", "any"} < set(platforms)
    assert all(one == "any" or one.endswith(machine) for one in platforms)


def test_index_is_the_users_unless_named(pip: Pip) -> None:
    find(PIN)
    assert not {"--index-url", "--cert"} & set(pip.argv)
    pip.argv.clear()
    find(PIN, index=Index(url="https://mirror/simple", ca_file=Path("/ca.pem")))
    assert (pip.after("--index-url"), pip.after("--cert")) == ("https://mirror/simple", "/ca.pem")


@pytest.mark.parametrize(
    ("end", "said", "reason"),
    [
        ({"exit_code": 1}, "ERROR: No matching distribution found for numpy==2.0.0", Reason.FETCH_FAILED),
        ({"exit_code": 1}, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES", Reason.DIGEST_MISMATCH),
        ({"exit_code": 1}, "error: these packages do not match the hashes", Reason.DIGEST_MISMATCH),
        ({"exit_code": None, "signal": 9}, "Killed", Reason.FETCH_FAILED),
    ],
)
def test_failure_has_pips_words(pip: Pip, end: dict[str, Any], said: str, reason: Reason) -> None:
    pip.end, pip.said = end, said
    error = refusal(lambda: find(PIN))
    assert (error.reason, error.why) == (reason, said)


def test_stopped_search(pip: Pip) -> None:
    pip.end = {"exit_code": None, "signal": 15, "cancelled": True}
    assert refusal(lambda: find(PIN)).reason is Reason.INTERRUPTED


class Transfers(Fetcher):
    """Stands in for transfers: each advances as told."""

    def __init__(self, folder: Path, steps: Mapping[str, Sequence[tuple[int, int | None]]]) -> None:
        super().__init__(Home(root=folder), threading.Event())
        self.folder = folder
        self.steps = steps
        self.asked: list[tuple[str, str]] = []

    def url(self, url: str, sha256: str, on_bytes: OnBytes | None = None) -> Path:
        """Have the signature of the real one."""
        self.asked.append((url, sha256))
        for done, total in self.steps[url]:
            assert on_bytes is not None
            on_bytes(done, total)
        return self.folder / sha256


def wheel(name: str, sha256: str = A) -> Wheel:
    """Describe a wheel."""
    return Wheel(name=f"{name}.whl", url=f"{FILES}/{name}", sha256=sha256)


def test_transfers_are_summed_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # one at a time, so that the order is known
    monkeypatch.setattr(wheels, "_AT_ONCE", 1)
    steps: dict[str, list[tuple[int, int | None]]] = {
        f"{FILES}/a": [(1, 10), (10, 10)],
        f"{FILES}/b": [(5, None), (7, None)],
        f"{FILES}/c": [(2, 4)],
    }
    heard: list[tuple[int, int | None]] = []
    found = fetch_wheels(
        [wheel("a"), wheel("b", B), wheel("c")],
        Transfers(tmp_path, steps),
        lambda done, total: heard.append((done, total)),
    )
    assert found == {"a.whl": tmp_path / A, "b.whl": tmp_path / B, "c.whl": tmp_path / A}
    # where a size is unknown, what has come counts as all
    assert heard == [(1, 10), (10, 10), (15, 15), (17, 17), (19, 21)]


def test_transfers_run_at_the_same_time(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=20)

    class Meeting(Transfers):
        def url(self, url: str, sha256: str, on_bytes: OnBytes | None = None) -> Path:
            together.wait()
            return super().url(url, sha256, on_bytes)

    steps: dict[str, list[tuple[int, int | None]]] = {f"{FILES}/{name}": [(1, 2), (2, 2)] for name in "abc"}
    heard: list[tuple[int, int | None]] = []
    fetch_wheels(map(wheel, "abc"), Meeting(tmp_path, steps), lambda done, total: heard.append((done, total)))
    assert len(heard) == 6
    assert max(heard) == (6, 6)


def test_nobody_need_listen(tmp_path: Path) -> None:
    transfers = Transfers(tmp_path, {f"{FILES}/a": [(1, 1)]})
    assert fetch_wheels([wheel("a")], transfers) == {"a.whl": tmp_path / A}
    assert transfers.asked == [(f"{FILES}/a", A)]
    assert fetch_wheels([], transfers) == {}


def test_failed_transfer_fails_all(tmp_path: Path) -> None:
    class Broken(Transfers):
        def url(self, url: str, sha256: str, on_bytes: OnBytes | None = None) -> Path:
            if sha256 == B:
                raise EnginefarmError(Reason.DIGEST_MISMATCH, "other")
            return self.folder / sha256

    error = refusal(lambda: fetch_wheels([wheel("a"), wheel("b", B)], Broken(tmp_path, {})))
    assert error.reason is Reason.DIGEST_MISMATCH
