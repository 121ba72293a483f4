"""What doctor asks, with programs and servers that answer as told."""

from __future__ import annotations

import email.message
import io
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pynvml
import pytest

from builder import doctor_facts, process
from builder.doctor_facts import (
    Answer,
    Gpus,
    PipIndex,
    Ran,
    ask_address,
    gather,
    look_at_gpus,
    pip_index,
    run_program,
)
from builder.errors import Reason
from builder.process import Outcome
from builder.project import Home
from tests.nvml import SECOND, FakeNvml, in_place, two


def listed(*lines: str) -> Ran:
    """Stand in for `pip config list`."""
    return Ran(output="\n".join(lines), exit_code=0)


@pytest.mark.parametrize(
    ("ran", "environ", "expected"),
    [
        (listed(), {}, ("https://pypi.org/simple",)),
        (listed("global.index-url='https://mirror.example/simple'"), {}, ("https://mirror.example/simple",)),
        (listed("global.index-url='https://a'", "install.index-url='https://b'"), {}, ("https://b",)),
        (listed(":env:.index-url='https://c'", "install.index-url='https://b'"), {}, ("https://c",)),
        (
            listed("global.extra-index-url='https://x\\nfile:///y'", "WARNING: noise"),
            {},
            ("https://pypi.org/simple", "https://x", "file:///y"),
        ),
        (None, {"PIP_INDEX_URL": "https://d", "PIPX": "no"}, ("https://d",)),
        (listed("global.no-index='true'"), {}, ()),
        (Ran(output="No module named pip", exit_code=1), {}, ("https://pypi.org/simple",)),
    ],
)
def test_pip_index(ran: Ran | None, environ: dict[str, str], expected: tuple[str, ...]) -> None:
    assert pip_index(ran, environ).addresses == expected


def test_pip_certificates() -> None:
    assert pip_index(listed("global.cert='/etc/ca.pem'"), {}) == PipIndex(
        addresses=("https://pypi.org/simple",), certificates="/etc/ca.pem"
    )


def answering(outcome: object, monkeypatch: pytest.MonkeyPatch) -> list[urllib.request.Request]:
    """Make every address answer the same, or fail the same."""
    asked: list[urllib.request.Request] = []

    class Response(io.BytesIO):
        status = 200
        headers = {"Date": "Sat, 21 Nov 2026 07:00:00 GMT"}  # noqa: RUF012 - a fake

    def urlopen(request: urllib.request.Request, **_: object) -> Response:
        asked.append(request)
        if isinstance(outcome, Exception):
            raise outcome
        return Response()

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def http_error(code: int) -> urllib.error.HTTPError:
    """Make the error of an HTTP status."""
    return urllib.error.HTTPError("https://x", code, "", email.message.Message(), None)


def test_address_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 21, 7, 0, 10, tzinfo=timezone.utc).timestamp()
    monkeypatch.setattr(time, "time", lambda: now)
    asked = answering(None, monkeypatch)
    answer = ask_address("HEAD", "https://user:secret@mirror.example/simple", None)
    assert answer == Answer(address="https://***@mirror.example/simple", clock_ahead_s=10.0)
    assert (asked[0].full_url, asked[0].get_method()) == ("https://mirror.example/simple", "HEAD")


@pytest.mark.parametrize(("code", "problem"), [(401, ""), (404, ""), (503, "the server answers 503")])
def test_refusals_count_as_reached(code: int, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(http_error(code), monkeypatch)
    assert ask_address("GET", "https://nvcr.io/v2/", None).problem == problem


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            urllib.error.URLError(socket.gaierror(-2, "Name or service not known")),
            "[Errno -2] Name or service not known",
        ),
        (urllib.error.URLError(ssl.SSLError("certificate verify failed")), "('certificate verify failed',)"),
        (TimeoutError("timed out"), "timed out"),
        (ValueError(), "ValueError"),
    ],
)
def test_address_not_reached(error: Exception, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(error, monkeypatch)
    assert ask_address("GET", "https://nvcr.io/v2/", None).problem == problem


def test_missing_certificates_are_a_problem(tmp_path: Path) -> None:
    assert "No such file" in ask_address("GET", "https://nvcr.io/v2/", str(tmp_path / "ca.pem")).problem


def test_folders_as_index(tmp_path: Path) -> None:
    assert ask_address("HEAD", tmp_path.as_uri(), None).problem == ""
    assert ask_address("HEAD", (tmp_path / "none").as_uri(), None).problem == "the folder does not exist"


def test_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: Sequence[str], *, log: Path, **_: Any) -> Outcome:
        if argv[0] == "missing":
            raise FileNotFoundError
        log.write_text("said", encoding="utf-8")
        return Outcome(
            argv=tuple(argv),
            exit_code=3,
            signal=None,
            duration_s=0.0,
            log=log,
            max_rss_bytes=0,
            timed_out=False,
            cancelled=False,
        )

    monkeypatch.setattr(process, "run", run)
    assert run_program(["missing"]) is None
    assert run_program(["there"]) == Ran(output="said", exit_code=3)


def program(argv: Sequence[str]) -> Ran | None:
    """Know docker, and pip with a mirror."""
    mirror = "global.index-url='https://mirror.example'"
    return Ran(output=mirror if argv[0] == sys.executable else " ".join(argv[:2]), exit_code=0)


def look(environ: Mapping[str, str]) -> Gpus:
    """See no GPU, whatever this machine has."""
    return Gpus(asked=environ.get("CUDA_VISIBLE_DEVICES"))


def test_gather(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def ask(method: str, url: str, certificates: str | None) -> Answer:
        asked.append((method, url))
        return Answer(address=url)

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    facts = gather(Home(root=tmp_path / "home"), ["nvcr.io"], offline=False, run=program, ask=ask, look=look)
    assert sorted(asked) == [("GET", "https://nvcr.io/v2/"), ("HEAD", "https://mirror.example")]
    assert [answer.address for answer in facts.index] == ["https://mirror.example"]
    assert [answer.address for answer in facts.registries] == ["https://nvcr.io/v2/"]
    assert facts.docker == Ran(output="docker info", exit_code=0)
    assert facts.gpus == Gpus(asked="7")
    assert facts.home_free_bytes > 0
    assert not (tmp_path / "home").exists()


def test_offline_asks_nobody(tmp_path: Path) -> None:
    def ask(*_: object) -> Answer:
        raise AssertionError

    facts = gather(Home(root=tmp_path), ["nvcr.io"], offline=True, run=program, ask=ask, look=look)
    assert (facts.index, facts.registries) == ((), ())


def test_what_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_facts, "_NETWORK_S", 0.1)
    stop = threading.Event()

    def ask(method: str, url: str, certificates: str | None) -> Answer:
        stop.wait(10)
        return Answer(address=url)

    facts = gather(Home(root=tmp_path), ["nvcr.io"], offline=False, run=program, ask=ask, look=look)
    stop.set()
    assert [answer.problem for answer in (*facts.index, *facts.registries)] == ["no answer within 0 s"] * 2


def test_a_driver_that_hangs_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_facts, "_NETWORK_S", 0.1)
    stop = threading.Event()

    def hang(environ: Mapping[str, str]) -> Gpus:
        stop.wait(10)
        return Gpus()

    facts = gather(Home(root=tmp_path), [], offline=True, run=program, look=hang)
    stop.set()
    assert facts.gpus.trouble is not None
    assert facts.gpus.trouble.reason is Reason.GPU_UNREADABLE


def test_gpus_that_the_driver_tells_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("builder.gpu._PCI", tmp_path)
    with in_place() as put:
        put(FakeNvml(*two()))
        seen = look_at_gpus({"CUDA_VISIBLE_DEVICES": "1"})
        assert [one.index for one in seen.found] == [0, 1]
        assert [one.uuid for one in seen.visible] == list(seen.free) == [SECOND]
        assert (seen.asked, seen.trouble) == ("1", None)
        put(FakeNvml(opening=pynvml.NVML_ERROR_UNKNOWN))
        trouble = look_at_gpus({}).trouble
    assert trouble is not None
    assert trouble.reason is Reason.GPU_UNREADABLE
