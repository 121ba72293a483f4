"""Which wheels a lock means for one Python and platform, and where they are. pip answers; nothing is installed."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from builder import process
from builder.errors import EnginefarmError, Reason
from builder.fetch import Fetcher, OnBytes
from builder.stacks import MACHINES, Requirement

# the oldest and newest glibc that wheels of the locks ask for
_GLIBC = range(5, 40)
_OLD_TAGS = ("manylinux2014", "manylinux2010", "manylinux1", "linux")
_TIMEOUT_S = 600.0
_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """Where packages come from instead of where pip is set up to look."""

    url: str | None = None
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel by name and digest, and where it can be had."""

    name: str
    url: str
    sha256: str


def find_wheels(
    requirements: Iterable[Requirement], python: str, platform: str, index: Index, cancel: threading.Event
) -> list[Wheel]:
    """Find the wheel of each requirement, sorted by name; parts with a URL of their own need no index.

    Raises:
        EnginefarmError: FETCH_FAILED with pip's words, DIGEST_MISMATCH, INTERRUPTED.

    """
    wanted = list(requirements)
    wheels = [Wheel(name=_name(one.url), url=one.url, sha256=one.hashes[0]) for one in wanted if one.url is not None]
    lines = [
        " ".join([one.pin, *(f"--hash=sha256:{digest}" for digest in one.hashes)]) for one in wanted if not one.url
    ]
    if lines:
        wheels += _ask_pip(lines, python, platform, index, cancel)
    return sorted(wheels, key=lambda wheel: wheel.name)


def fetch_wheels(wheels: Iterable[Wheel], fetcher: Fetcher, on_bytes: OnBytes | None = None) -> dict[str, Path]:
    """Fetch wheels, several at a time; map file name to path. `on_bytes` hears the sum of all transfers.

    Raises:
        EnginefarmError: as `Fetcher.url`.

    """
    wanted = list(wheels)
    seen: dict[str, tuple[int, int]] = {}

    def fetch(wheel: Wheel) -> Path:
        def note(done: int, total: int | None) -> None:
            seen[wheel.name] = (done, total or done)
            if on_bytes is not None:
                figures = list(seen.values())
                on_bytes(sum(have for have, _ in figures), sum(size for _, size in figures))

        return fetcher.url(wheel.url, wheel.sha256, note)

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        paths = list(pool.map(fetch, wanted))
    return {wheel.name: path for wheel, path in zip(wanted, paths, strict=True)}


def _ask_pip(lines: list[str], python: str, platform: str, index: Index, cancel: threading.Event) -> list[Wheel]:
    machine = MACHINES[platform]
    platforms = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC] + [f"{old}_{machine}" for old in _OLD_TAGS]
    short = "cp" + python.replace(".", "")
    with tempfile.TemporaryDirectory(prefix="enginefarm-") as name:
        folder = Path(name)
        (folder / "wanted.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        argv = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-input", "--no-deps"]
        argv += ["--disable-pip-version-check", "--require-hashes", "--only-binary", ":all:"]
        argv += ["--report", str(folder / "report.json"), "--target", str(folder / "nowhere")]
        argv += ["--python-version", python, "--implementation", "cp", "--abi", short, "--abi", "abi3", "--abi", "none"]
        argv += [word for one in platforms for word in ("--platform", one)] + ["--platform", "any"]
        argv += ["--index-url", index.url] if index.url else []
        argv += ["--cert", str(index.ca_file)] if index.ca_file else []
        log = folder / "log"
        outcome = process.run(
            [*argv, "-r", str(folder / "wanted.txt")],
            cwd=folder,
            env=os.environ,
            log=log,
            timeout_s=_TIMEOUT_S,
            cancel=cancel,
        )
        if outcome.cancelled:
            raise EnginefarmError(Reason.INTERRUPTED, "looking for wheels was stopped")
        if outcome.exit_code != 0:
            raise _failure(process.tail(log))
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return [_wheel(item["download_info"]) for item in report["install"]]


def _failure(said: str) -> EnginefarmError:
    if "DO NOT MATCH THE HASHES" in said.upper():
        return EnginefarmError(Reason.DIGEST_MISMATCH, "the index has other files than the lock says", why=said)
    return EnginefarmError(Reason.FETCH_FAILED, "the packages of a lock could not be found", why=said)


def _wheel(info: dict[str, dict[str, dict[str, str]]]) -> Wheel:
    url = str(info["url"])
    return Wheel(name=_name(url), url=url, sha256=info["archive_info"]["hashes"]["sha256"])


def _name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])
