"""The process door with real processes: limits, signals, survivors, many at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from builder import process
from builder.process import Outcome

pytestmark = pytest.mark.integration

# leaves its own number in a file, then sleeps much longer than any test waits
SLEEPER = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(300)"


@pytest.fixture(params=["pidfd", "no pidfd"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run on this kernel and as on one without pidfd."""
    if request.param == "no pidfd":

        def refuse(pid: int) -> int:
            raise OSError

        monkeypatch.setattr(os, "pidfd_open", refuse)
    return str(request.param)


def run(folder: Path, *argv: str, **options: Any) -> Outcome:
    """Run a program in a folder, its output into `log`."""
    settings = {"cwd": folder, "env": dict(os.environ), "log": folder / "log", "timeout_s": 60.0, **options}
    return process.run(argv, **settings)


def python(folder: Path, code: str, *arguments: str, **options: Any) -> Outcome:
    """Run some Python."""
    return run(folder, sys.executable, "-c", code, *arguments, **options)


def alive(pid: int) -> bool:
    """Say whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def eventually(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Wait for something that takes the kernel a moment."""
    until = time.monotonic() + within_s
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def cancel_when(condition: Callable[[], bool]) -> threading.Event:
    """Ask for the end as soon as something is true, however slow the machine is."""
    cancel = threading.Event()

    def wait() -> None:
        eventually(condition, within_s=60.0)
        cancel.set()

    threading.Thread(target=wait, daemon=True).start()
    return cancel


def says(path: Path, text: str) -> Callable[[], bool]:
    """Ask whether a file holds some text."""
    return lambda: path.exists() and text in path.read_text()


@pytest.mark.usefixtures("kernel")
def test_outcome_of_success_and_failure(tmp_path: Path) -> None:
    good = python(tmp_path, "import sys; print('out'); print('err', file=sys.stderr)")
    assert (good.exit_code, good.signal, good.timed_out, good.cancelled) == (0, None, False, False)
    assert sorted((tmp_path / "log").read_text().split()) == ["err", "out"]
    bad = python(tmp_path, "raise SystemExit(7)")
    assert (bad.exit_code, bad.signal) == (7, None)
    killed = python(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert (killed.exit_code, killed.signal, killed.timed_out) == (None, 9, False)


def test_process_gets_what_it_was_given_and_no_more(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    code = "import os, sys; print(os.getcwd(), sorted(os.environ), repr(sys.stdin.read()), os.getsid(0) == os.getpid())"
    python(inside, code, env={"ONLY": "this", "LC_CTYPE": "C.UTF-8"})
    assert (inside / "log").read_text() == f"{inside} ['LC_CTYPE', 'ONLY'] '' True\n"


def test_descriptors_of_the_farm_stay_in_the_farm(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        python(
            tmp_path,
            "import os; print(sorted(map(int, os.listdir('/proc/self/fd')))[:3], len(os.listdir('/proc/self/fd')))",
        )
    finally:
        os.close(read)
        os.close(write)
    # the fourth is the listing itself
    assert (tmp_path / "log").read_text() == "[0, 1, 2] 4\n"


def test_log_is_written_as_it_comes_and_kept(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    cancel = cancel_when(says(tmp_path / "log", "now"))
    outcome = python(tmp_path, "import time; print('now', flush=True); time.sleep(300)", cancel=cancel)
    assert outcome.cancelled
    assert (tmp_path / "log").read_text() == "before\nnow\n"


def test_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run(tmp_path, str(tmp_path / "nothing"))


@pytest.mark.usefixtures("kernel")
def test_timeout_ends_the_process(tmp_path: Path) -> None:
    outcome = run(tmp_path, "/bin/sleep", "300", timeout_s=0.3)
    assert (outcome.timed_out, outcome.cancelled, outcome.signal) == (True, False, signal.SIGTERM)
    assert 0.3 <= outcome.duration_s < 2.0


@pytest.mark.usefixtures("kernel")
def test_cancel_ends_the_process_soon(tmp_path: Path) -> None:
    cancel = threading.Event()
    threading.Timer(0.2, cancel.set).start()
    outcome = run(tmp_path, "/bin/sleep", "300", cancel=cancel)
    assert (outcome.timed_out, outcome.cancelled, outcome.signal) == (False, True, signal.SIGTERM)
    assert outcome.duration_s < 2.0


def test_process_may_tidy_up_when_it_is_stopped(tmp_path: Path) -> None:
    code = """
import signal, sys, time
def stop(*_):
    print("tidied", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(300)
"""
    outcome = python(tmp_path, code, cancel=cancel_when(says(tmp_path / "log", "ready")))
    assert (outcome.exit_code, outcome.cancelled) == (5, True)
    assert (tmp_path / "log").read_text() == "ready\ntidied\n"


@pytest.mark.usefixtures("kernel")
def test_process_that_will_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_S", 0.3)
    code = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(300)
"""
    outcome = python(tmp_path, code, cancel=cancel_when(says(tmp_path / "log", "ready")))
    assert (outcome.signal, outcome.cancelled) == (signal.SIGKILL, True)
    assert outcome.duration_s >= 0.3


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("end", ["exits", "is stopped"])
def test_grandchildren_do_not_outlive_it_nor_hold_it_up(tmp_path: Path, end: str) -> None:
    # the grandchild holds the same standard output, as a forgotten helper of a compiler would
    code = f"""
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, "-c", {SLEEPER!r}, sys.argv[1]])
while not pathlib.Path(sys.argv[1]).exists() or not pathlib.Path(sys.argv[1]).read_text():
    time.sleep(0.01)
print("born", flush=True)
if sys.argv[2] == "is stopped":
    time.sleep(300)
"""
    cancel = cancel_when(says(tmp_path / "log", "born")) if end == "is stopped" else None
    outcome = python(tmp_path, code, str(tmp_path / "pid"), end, cancel=cancel)
    assert outcome.cancelled == (end == "is stopped")
    pid = int((tmp_path / "pid").read_text())
    assert eventually(lambda: not alive(pid))


def test_interrupt_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: object, within_s: float) -> bool:
        assert eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "", within_s=60.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(process._Watch, "ended", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python(tmp_path, SLEEPER, str(tmp_path / "pid"))
    assert not alive(int((tmp_path / "pid").read_text()))


def test_peak_memory_is_the_process_own(tmp_path: Path) -> None:
    small = python(tmp_path, "pass")
    large = python(tmp_path, "x = bytearray(400 << 20); x[::4096] = b'1' * len(x[::4096])")
    assert 400 << 20 <= large.max_rss_bytes < 600 << 20
    assert small.max_rss_bytes < 400 << 20


def test_many_at_once_from_threads(tmp_path: Path) -> None:
    def one(number: int) -> tuple[int | None, str]:
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = python(folder, f"print({number}); raise SystemExit({number})")
        return outcome.exit_code, outcome.log.read_text()

    with ThreadPoolExecutor(max_workers=16) as pool:
        done = list(pool.map(one, range(48)))
    assert done == [(number, f"{number}\n") for number in range(48)]


@pytest.mark.usefixtures("kernel")
def test_no_descriptor_and_no_zombie_is_left(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    run(tmp_path, "/bin/true")
    before = descriptors()
    for _ in range(20):
        run(tmp_path, "/bin/true")
    assert descriptors() == before
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    assert [pid for pid in children if not alive(int(pid))] == []


def test_works_with_more_than_1024_descriptors(tmp_path: Path) -> None:
    code = """
import os, resource, sys
from pathlib import Path
from builder import process
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
print(process.run(["/bin/true"], cwd=Path("/"), env={}, log=Path(sys.argv[1]), timeout_s=10.0).exit_code)
"""
    root = str(Path(__file__).parents[2])
    done = python(tmp_path, code, str(tmp_path / "inner.log"), env={**os.environ, "PYTHONPATH": root})
    assert (done.exit_code, (tmp_path / "log").read_text()) == (0, "0\n")


def test_costs_little_more_than_the_bare_call(tmp_path: Path) -> None:
    def best(action: Callable[[], object]) -> float:
        times = []
        for _ in range(20):
            started = time.perf_counter()
            action()
            times.append(time.perf_counter() - started)
        return min(times)

    bare = best(lambda: subprocess.run(["/bin/true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True))
    assert best(lambda: run(tmp_path, "/bin/true")) - bare < 0.010
