"""The store under kill -9, side-by-side writers and a disk that is really full or really read-only."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from builder.store import Store

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
WRITER = Path(__file__).with_name("store_writer.py")
ENVIRON = {**os.environ, "PYTHONPATH": str(ROOT)}
KILLS = 100


def start(store: Path, log: Path, seed: int, *count: str) -> subprocess.Popen[bytes]:
    """Start a writer."""
    return subprocess.Popen([sys.executable, WRITER, store, log, str(seed), *count], env=ENVIRON)


def finished(log: Path) -> set[str]:
    """Read which additions were over."""
    return set(log.read_text().split()) if log.exists() else set()


def wait_for_more(log: Path, writer: subprocess.Popen[bytes]) -> None:
    """Wait until a writer has got through its imports and an addition."""
    before = log.stat().st_size if log.exists() else 0
    until = time.monotonic() + 60
    while (log.stat().st_size if log.exists() else 0) == before:
        assert writer.poll() is None
        assert time.monotonic() < until
        time.sleep(0.001)


def test_killed_at_100_instants_loses_nothing(tmp_path: Path) -> None:
    choice = random.Random(1)  # noqa: S311  # instants, not secrets
    root, log = tmp_path / "store", tmp_path / "log"
    left_over = 0
    for kill in range(KILLS):
        writer = start(root, log, kill)
        wait_for_more(log, writer)
        time.sleep(choice.uniform(0, 0.04))
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        # a fresh reader, as the next run is
        store = Store(root)
        assert store.verify() == ()
        assert {entry.key for entry in store.entries()} >= finished(log)
        left_over += len(list((root / "tmp").iterdir()))
        _drop_most(store)
        _forget(log)
        _make_old(root / "tmp")
    # kills fell into writes, and what they left was swept by the run after
    assert left_over > KILLS / 10
    writer = start(root, log, KILLS, "1")
    assert writer.wait(timeout=60) == 0
    assert list((root / "tmp").iterdir()) == []


def _drop_most(store: Store) -> None:
    # else verifying would take longer with each kill; orphans are not needed any more either
    for entry in store.entries()[:-2]:
        store.remove(entry)
    for path in store.orphans():
        path.unlink()


def _forget(log: Path) -> None:
    log.write_text("")


def _make_old(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (0, 0))


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    root = tmp_path / "store"
    logs = [tmp_path / f"log-{seed}" for seed in range(3)]
    writers = [start(root, log, seed, "25") for seed, log in enumerate(logs)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    store = Store(root)
    keys = [entry.key for entry in store.entries() if not entry.key.startswith("shared")]
    assert sorted(keys) == sorted(f"{seed}-{number}" for seed in range(3) for number in range(25))
    assert {log.name: len(finished(log)) for log in logs} == {log.name: 25 for log in logs}
    assert store.verify() == ()
    assert list((root / "tmp").iterdir()) == []


def test_kill_of_one_writer_does_not_hold_up_another(tmp_path: Path) -> None:
    root = tmp_path / "store"
    other = start(root, tmp_path / "log-other", 1000)
    try:
        for kill in range(10):
            log = tmp_path / f"log-{kill}"
            writer = start(root, log, kill)
            wait_for_more(log, writer)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            wait_for_more(tmp_path / "log-other", other)
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    store = Store(root)
    assert store.verify() == ()
    kept = finished(tmp_path / "log-other").union(*(finished(tmp_path / f"log-{kill}") for kill in range(10)))
    assert {entry.key for entry in store.entries()} >= kept


PLACE = """
import sys
from pathlib import Path
from builder.errors import EnginefarmError
from builder.store import Store

store = Store(Path(sys.argv[1]))
before = store.entries()
try:
    store.add(kind="engine", key="big", name="big", files={"model.plan": bytes(4 << 20)})
except EnginefarmError as error:
    print(error)
assert Store(store.root).entries() == before
assert store.verify() == ()
assert not list((store.root / "tmp").iterdir())
"""


def in_mount(tmp_path: Path, prepare: str) -> str:
    """Add to a store in a mount that only this process sees; `prepare` is the shell that makes it."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounts of one's own are not allowed here")
    (tmp_path / "place").mkdir()
    begin = (
        "from builder.store import Store; from pathlib import Path; import sys; "
        "Store(Path(sys.argv[1])).add(kind='engine', key='small', name='small', files={'model.plan': b'1'})"
    )
    script = prepare.replace("PLACE", str(tmp_path / "place")).replace("BEGIN", '"$0" -c "$1" "$2"')
    done = subprocess.run(
        [
            "unshare",
            "--map-root-user",
            "--mount",
            "sh",
            "-ec",
            f'{script}\n"$0" -c "$3" "$2"',
            sys.executable,
            begin,
            tmp_path / "place" / "store",
            PLACE,
        ],
        env=ENVIRON,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_disk_that_is_full(tmp_path: Path) -> None:
    said = in_mount(tmp_path, "mount -t tmpfs -o size=1m none PLACE\nBEGIN")
    assert "EF-305 disk-full" in said
    assert f"{4 << 20} bytes" in said


def test_filesystem_that_is_read_only(tmp_path: Path) -> None:
    said = in_mount(tmp_path, "mount -t tmpfs none PLACE\nBEGIN\nmount -o remount,ro PLACE")
    assert "EF-306 store-read-only" in said
