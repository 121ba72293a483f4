"""The only door to other programs: argument lists, a log file, limits, and no survivor when it is over."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_GRACE_S = 3.0
_LOOK_S = 0.1
_NAP_S = 0.005
_TAIL_BYTES = 64 * 1024
_SENSITIVE = r"(?:password|passwd|token|secret|api[-_]?key)"
_SECRET_OPTION = re.compile(rf"(?i)^(--?[\w-]*{_SENSITIVE}[\w-]*)(=.*)?$", re.DOTALL)
_SECRET_VALUE = re.compile(rf"(?i)({_SENSITIVE}=)[^&\s]+")
# up to the last @ before the path: a password may hold one itself
_USERINFO = re.compile(r"(?<=://)[^/\s]+@")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a process ended. Exactly one of `exit_code` and `signal` is set.

    `max_rss_bytes`: peak memory of the process and of its children that it waited for, whichever is largest; the kernel
    never counts less than the memory of the caller at the start.
    """

    argv: tuple[str, ...]
    exit_code: int | None
    signal: int | None
    duration_s: float
    log: Path
    max_rss_bytes: int
    timed_out: bool
    cancelled: bool

    def shown(self) -> str:
        """Return the command for messages, secrets masked."""
        return show(self.argv)


def run(
    argv: Sequence[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    log: Path,
    timeout_s: float | None,
    cancel: threading.Event | None = None,
) -> Outcome:
    """Run a program to its end, its output into `log`; its whole process group dies with it, whatever ends it.

    Raises:
        OSError: the program cannot be started.

    """
    started = time.monotonic()
    # a session of its own: Ctrl-C on the terminal reaches the farm alone, which then stops its children in order
    with log.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603  # argument list, no shell
            list(argv),
            cwd=cwd,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    watch = _Watch(process.pid)
    timed_out = cancelled = False
    try:
        while not watch.ended(_LOOK_S):
            cancelled = cancel is not None and cancel.is_set()
            timed_out = timeout_s is not None and time.monotonic() - started > timeout_s
            if cancelled or timed_out:
                _signal_group(process.pid, signal.SIGTERM)
                watch.ended(_GRACE_S)
                break
    finally:
        _signal_group(process.pid, signal.SIGKILL)
        code, rss = watch.reap()
        # Popen must not wait for the same child again
        process.returncode = code
    return Outcome(
        argv=tuple(argv),
        exit_code=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        duration_s=time.monotonic() - started,
        log=log,
        max_rss_bytes=rss,
        timed_out=timed_out,
        cancelled=cancelled,
    )


def show(argv: Sequence[str]) -> str:
    """Join arguments for people; values of password, token and secret options and user names in URLs are masked."""
    shown: list[str] = []
    hide_next = False
    for argument in argv:
        option = _SECRET_OPTION.match(argument)
        if hide_next:
            shown.append("***")
        elif option and option[2]:
            shown.append(f"{option[1]}=***")
        else:
            shown.append(_USERINFO.sub("***@", _SECRET_VALUE.sub(r"\1***", argument)))
        hide_next = bool(option and not option[2])
    return " ".join(shown)


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log; empty where there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


class _Watch:
    """Waits for one child. Only `reap` takes it from the kernel: until then its number cannot become another's."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except OSError:
            # a kernel before 5.3, or one that forbids it
            self._fd = None

    def ended(self, within_s: float) -> bool:
        if self._fd is not None:
            # select() fails for descriptors above 1023
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            return bool(poll.poll(within_s * 1000))
        until = time.monotonic() + within_s
        while os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() >= until:
                return False
            time.sleep(_NAP_S)
        return True

    def reap(self) -> tuple[int, int]:
        """Return the exit code as `Popen` gives it, and the peak memory in bytes."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        _, status, usage = os.wait4(self._pid, 0)
        return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return
