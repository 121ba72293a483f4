"""What `enginefarm doctor` looks at: programs, disks and addresses, all asked at the same time and within seconds."""

from __future__ import annotations

import ast
import http.client
import os
import platform
import shutil
import ssl
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Generic, TypeVar
from urllib.parse import urlsplit
from urllib.request import url2pathname

from builder import host, process
from builder.errors import EnginefarmError, Reason
from builder.gpu import VISIBLE, Gpu, free_memory_bytes, plugged_in, visible_gpus
from builder.project import Home

T = TypeVar("T")

# pip's documented default
_DEFAULT_INDEX = "https://pypi.org/simple"
_PROGRAM_S = 10.0
_ANSWER_S = 5.0
# for a name server that does not answer, which no time limit of a connection covers
_NETWORK_S = 6.0
_SERVER_TROUBLE = frozenset({500, 502, 503, 504})
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_SILENT = EnginefarmError(Reason.GPU_UNREADABLE, f"NVIDIA's driver does not answer within {_NETWORK_S:.0f} s")
_CDI_FOLDERS = (Path("/etc/cdi"), Path("/var/run/cdi"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a program printed. `exit_code` is None when it was killed for taking too long."""

    output: str
    exit_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an address said: `problem` is empty when it was reached. `clock_ahead_s`: this clock minus the server's."""

    address: str
    problem: str = ""
    clock_ahead_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PipIndex:
    """Where pip looks for packages, and with which certificates. No address: pip was told to use no index."""

    addresses: tuple[str, ...]
    certificates: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpus:
    """GPUs, and slices of them, that the driver tells of. `visible`: those that CUDA_VISIBLE_DEVICES, `asked`, leaves.

    `free`: bytes by UUID of the visible ones; `plugged`: the machine has one, driven or not.
    """

    found: tuple[Gpu, ...] = ()
    visible: tuple[Gpu, ...] = ()
    free: Mapping[str, int] = field(default_factory=dict)
    asked: str | None = None
    plugged: bool = False
    trouble: EnginefarmError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found. A program that is not installed is None; nothing was asked over the network when offline."""

    docker: Ran | None
    buildx: Ran | None
    gpus: Gpus
    nvidia_toolkit: bool
    cdi: bool
    index: tuple[Answer, ...]
    registries: tuple[Answer, ...]
    offline: bool
    platform: str
    now: datetime
    home_free_bytes: int
    home_writable: bool = True


Run = Callable[[Sequence[str]], "Ran | None"]
Look = Callable[[Mapping[str, str]], Gpus]
Ask = Callable[[str, str, "str | None"], Answer]


def run_program(argv: Sequence[str]) -> Ran | None:
    """Run a program for its output; None where it cannot be started."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "output"
        try:
            outcome = process.run(argv, cwd=Path(folder), env=os.environ, log=log, timeout_s=_PROGRAM_S)
        except OSError:
            return None
        return Ran(output=log.read_text(encoding="utf-8", errors="replace"), exit_code=outcome.exit_code)


def ask_address(method: str, url: str, certificates: str | None) -> Answer:
    """Ask for the head of an answer, without the user's credentials: a refusal counts as reached."""
    address = process.show([url])
    parts = urlsplit(url)
    if parts.scheme == "file":
        there = Path(url2pathname(parts.path)).exists()
        return Answer(address=address, problem="" if there else "the folder does not exist")
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        context = ssl.create_default_context(cafile=certificates)
        request = urllib.request.Request(bare, method=method, headers={"User-Agent": "enginefarm"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=_ANSWER_S, context=context) as response:  # noqa: S310
            return _answer(address, response.status, response.headers.get("Date"))
    except urllib.error.HTTPError as error:
        return _answer(address, error.code, error.headers.get("Date"))
    except (OSError, ValueError, http.client.HTTPException) as error:
        return Answer(address=address, problem=str(getattr(error, "reason", error)) or type(error).__name__)


def look_at_gpus(environ: Mapping[str, str]) -> Gpus:
    """Ask the driver for all GPUs and for those that programs may use."""
    try:
        visible = visible_gpus(environ)
        free = {one.uuid: free_memory_bytes(one.uuid) for one in visible}
        found = visible_gpus({})
    except EnginefarmError as error:
        return Gpus(plugged=plugged_in(), trouble=error)
    return Gpus(found=found, visible=visible, free=free, asked=environ.get(VISIBLE), plugged=plugged_in())


def gather(
    home: Home,
    registries: Sequence[str],
    *,
    offline: bool,
    run: Run = run_program,
    ask: Ask = ask_address,
    look: Look = look_at_gpus,
) -> Facts:
    """Ask everything at once; what has not answered in time counts as unreachable."""
    deadline = time.monotonic() + _NETWORK_S
    docker = _Later(lambda: run(["docker", "info", "--format", "{{json .}}"]))
    buildx = _Later(lambda: run(["docker", "buildx", "version"]))
    gpus = _Later(lambda: look(os.environ))
    index: list[_Question] = []
    others: list[_Question] = []
    pip = PipIndex(addresses=(), certificates=None)
    if not offline:
        others = [_Question(ask, "GET", f"https://{name}/v2/", None) for name in registries]
        pip = pip_index(run([sys.executable, "-m", "pip", "config", "list"]), os.environ)
        index = [_Question(ask, "HEAD", address, pip.certificates) for address in pip.addresses]
    return Facts(
        index=tuple(question.answer(deadline) for question in index),
        registries=tuple(question.answer(deadline) for question in others),
        offline=offline,
        docker=docker.result(),
        buildx=buildx.result(),
        gpus=gpus.until(deadline) or Gpus(trouble=_SILENT),
        nvidia_toolkit=shutil.which("nvidia-ctk") is not None,
        cdi=any(folder.is_dir() and any(folder.glob("*nvidia*")) for folder in _CDI_FOLDERS),
        platform=f"linux/{_ARCHITECTURES.get(platform.machine(), platform.machine())}",
        now=datetime.now(timezone.utc),
        home_free_bytes=host.free_disk_bytes(home.root),
        home_writable=host.is_writable(home.root),
    )


def pip_index(listed: Ran | None, environ: Mapping[str, str]) -> PipIndex:
    """Read `pip config list`; where pip does not run, its variables of the environment."""
    own = {name[4:].lower().replace("_", "-"): value for name, value in environ.items() if name.startswith("PIP_")}
    config = {f":env:.{name}": value for name, value in own.items()}
    for line in listed.output.splitlines() if listed else ():
        key, equals, value = line.partition("=")
        if equals and value[:1] in {"'", '"'}:
            config[key] = str(ast.literal_eval(value))

    def setting(name: str) -> str:
        return next((config[key] for part in (":env:", "install", "global") if (key := f"{part}.{name}") in config), "")

    certificates = setting("cert") or None
    if setting("no-index").lower() in {"1", "true", "yes", "on"}:
        return PipIndex(addresses=(), certificates=certificates)
    main = setting("index-url") or _DEFAULT_INDEX
    return PipIndex(addresses=(main, *setting("extra-index-url").split()), certificates=certificates)


class _Later(Generic[T]):
    """Work in a thread that the end of the program does not wait for."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._done: list[T] = []
        self._thread = threading.Thread(target=lambda: self._done.append(work()), daemon=True)
        self._thread.start()

    def result(self) -> T:
        self._thread.join()
        return self._done[0]

    def until(self, deadline: float) -> T | None:
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return self._done[0] if self._done else None


class _Question:
    """A question to an address, under way."""

    def __init__(self, ask: Ask, method: str, url: str, certificates: str | None) -> None:
        self._url = url
        self._later = _Later(lambda: ask(method, url, certificates))

    def answer(self, deadline: float) -> Answer:
        late = Answer(address=process.show([self._url]), problem=f"no answer within {_NETWORK_S:.0f} s")
        return self._later.until(deadline) or late


def _answer(address: str, status: int, date: str | None) -> Answer:
    ahead = None
    if date:
        with suppress(ValueError):
            ahead = time.time() - parsedate_to_datetime(date).timestamp()
    problem = f"the server answers {status}" if status in _SERVER_TROUBLE else ""
    return Answer(address=address, problem=problem, clock_ahead_s=ahead)
