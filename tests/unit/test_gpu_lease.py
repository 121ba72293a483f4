"""Leases on GPUs: who gets which, who waits and is told why, and lock files that all users can open."""

from __future__ import annotations

import json
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from builder import gpu_lease
from builder.errors import EnginefarmError, Reason
from builder.gpu import Gpu, free_memory_bytes
from builder.gpu_lease import lease, require_memory
from tests.artifacts import refusal
from tests.nvml import FIRST, GIB, OTHER_SLICE, SECOND, SLICE, FakeDevice, FakeNvml, in_place, two

ONE = Gpu(
    uuid=FIRST,
    index=0,
    name="NVIDIA H200",
    sm="9.0",
    driver="580.159.04",
    memory_bytes=140 * GIB,
    mig=False,
)
TWO = replace(ONE, uuid=SECOND, index=1)
PART = replace(ONE, uuid=SLICE, mig=True, parent=FIRST)
OTHER_PART = replace(PART, uuid=OTHER_SLICE)


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """A folder of locks that is yet to be made."""
    return {"ENGINEFARM_GPU_LOCKS": str(tmp_path / "locks")}


@pytest.fixture(autouse=True)
def machine() -> Iterator[FakeNvml]:
    """Two GPUs; the second has less free memory."""
    with in_place() as put:
        yield put(FakeNvml(*two()))


def free(candidates: list[Gpu], environ: dict[str, str]) -> bool:
    """Say whether a lease is to be had at once."""
    cancel = threading.Event()

    def told(_: str) -> None:
        cancel.set()

    try:
        with lease(candidates, cancel, told, environ):
            return True
    except EnginefarmError as error:
        if error.reason is not Reason.INTERRUPTED:
            raise
        return False


def test_a_gpu_is_held_alone_and_given_back(environ: dict[str, str]) -> None:
    with lease([ONE], threading.Event(), None, environ) as gpu:
        assert gpu == ONE
        assert not free([ONE], environ)
        assert free([TWO], environ)
    assert free([ONE], environ)


def test_threads_take_turns(environ: dict[str, str]) -> None:
    inside: list[int] = []
    seen: list[int] = []

    def work(index: int) -> None:
        with lease([ONE], threading.Event(), None, environ):
            inside.append(index)
            seen.append(len(inside))
            time.sleep(0.01)
            inside.remove(index)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert seen == [1] * 4


def test_the_one_with_most_free_memory_is_taken_first(environ: dict[str, str], machine: FakeNvml) -> None:
    machine.devices[0].used = 139 * GIB
    with lease([ONE, TWO], threading.Event(), None, environ) as first:
        assert first == TWO
        with lease([ONE, TWO], threading.Event(), None, environ) as second:
            assert second == ONE
            assert not free([ONE, TWO], environ)


def test_a_gpu_that_does_not_answer_comes_last(environ: dict[str, str], machine: FakeNvml) -> None:
    machine.devices[0].broken = 15
    with lease([ONE, TWO], threading.Event(), None, environ) as first:
        assert first == TWO


def test_whichever_is_given_back_first_is_taken(environ: dict[str, str]) -> None:
    waiting, leave = threading.Event(), threading.Event()

    def third() -> Gpu:
        with lease([ONE, TWO], threading.Event(), lambda _: waiting.set(), environ) as gpu:
            leave.set()
            return gpu

    with ThreadPoolExecutor(1) as pool, lease([ONE], threading.Event(), None, environ):
        with lease([TWO], threading.Event(), None, environ):
            future = pool.submit(third)
            assert waiting.wait(10)
        assert future.result(10) == TWO


def test_who_waits_is_told_for_whom(environ: dict[str, str]) -> None:
    told: list[str] = []
    cancel = threading.Event()

    def listen(text: str) -> None:
        told.append(text)
        cancel.set()

    with lease([ONE], threading.Event(), None, environ, what="job x"):
        error = refusal(lambda: lease([ONE], cancel, listen, environ).__enter__())
    assert error.reason is Reason.INTERRUPTED
    assert told == [f"GPU 0 (NVIDIA H200) is held by enginefarm process {os.getpid()} (job x): waiting"]


def test_the_same_news_is_told_once_and_other_news_again(environ: dict[str, str]) -> None:
    told: list[str] = []
    two_told = threading.Event()

    def listen(text: str) -> None:
        told.append(text)
        if len(told) == 2:
            two_told.set()

    cancel = threading.Event()
    with ThreadPoolExecutor(1) as pool, lease([ONE], threading.Event(), None, environ, what="job x"):
        future = pool.submit(lambda: refusal(lambda: lease([ONE], cancel, listen, environ).__enter__()))
        time.sleep(0.7)
        assert len(told) == 1
        # as if another had got it in between
        note = Path(environ["ENGINEFARM_GPU_LOCKS"]) / f"{FIRST}.lock"
        note.write_text(json.dumps({"pid": 7, "what": ""}), encoding="utf-8")
        assert two_told.wait(10)
        cancel.set()
        assert future.result(10).reason is Reason.INTERRUPTED
    assert told[1] == "GPU 0 (NVIDIA H200) is held by enginefarm process 7: waiting"


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"null", b'{"pid": "x", "what": 1}', b"\xff"])
def test_a_note_that_says_nothing(environ: dict[str, str], note: bytes) -> None:
    told: list[str] = []
    cancel = threading.Event()
    with lease([ONE], threading.Event(), None, environ):
        (Path(environ["ENGINEFARM_GPU_LOCKS"]) / f"{FIRST}.lock").write_bytes(note)

        def listen(text: str) -> None:
            told.append(text)
            cancel.set()

        refusal(lambda: lease([ONE], cancel, listen, environ).__enter__())
    assert told == ["GPU 0 (NVIDIA H200) is held by another process: waiting"]


def test_the_note_is_gone_with_the_lease(environ: dict[str, str]) -> None:
    path = Path(environ["ENGINEFARM_GPU_LOCKS"]) / f"{FIRST}.lock"
    with lease([ONE], threading.Event(), None, environ, what="a"):
        assert json.loads(path.read_bytes()) == {"pid": os.getpid(), "what": "a"}
    assert path.read_bytes() == b""


def test_slices_go_beside_each_other_and_not_beside_the_whole(environ: dict[str, str]) -> None:
    with lease([PART], threading.Event(), None, environ):
        assert not free([PART], environ)
        assert not free([ONE], environ)
        assert free([OTHER_PART], environ)
        with lease([OTHER_PART], threading.Event(), None, environ):
            assert not free([ONE], environ)
        assert not free([ONE], environ)
    with lease([ONE], threading.Event(), None, environ):
        assert not free([PART, OTHER_PART], environ)
    assert free([ONE], environ)


def test_an_error_gives_the_gpu_back(environ: dict[str, str]) -> None:
    with pytest.raises(ZeroDivisionError), lease([ONE], threading.Event(), None, environ):
        raise ZeroDivisionError
    assert free([ONE], environ)


def test_nothing_to_lease(environ: dict[str, str]) -> None:
    assert refusal(lambda: lease([], threading.Event(), None, environ).__enter__()).reason is Reason.GPU_NEEDED


def test_all_users_can_open_the_locks(environ: dict[str, str]) -> None:
    before = os.umask(0o077)
    try:
        assert free([ONE], environ)
    finally:
        os.umask(before)
    folder = Path(environ["ENGINEFARM_GPU_LOCKS"])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert stat.S_IMODE((folder / f"{FIRST}.lock").stat().st_mode) == 0o666


def test_a_file_that_may_only_be_read_can_be_locked(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.open

    def open_(path: object, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".lock") and flags & os.O_RDWR and Path(str(path)).exists():
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, flags, mode)  # type: ignore[arg-type]

    assert free([ONE], environ)
    monkeypatch.setattr(os, "open", open_)
    with lease([ONE], threading.Event(), None, environ, what="not to be written"):
        assert not free([ONE], environ)


def test_an_existing_file_is_opened_without_being_made(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses O_CREAT for another user's file in a sticky folder (fs.protected_regular)."""
    really = os.open

    def open_(path: object, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(".lock") and flags & os.O_CREAT and Path(str(path)).exists():
            raise PermissionError(13, "Permission denied", str(path))
        return really(path, flags, mode)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_)
    assert free([ONE], environ)
    assert free([ONE], environ)


def test_links_are_not_followed(environ: dict[str, str], tmp_path: Path) -> None:
    folder = Path(environ["ENGINEFARM_GPU_LOCKS"])
    folder.mkdir()
    (tmp_path / "victim").write_text("kept", encoding="utf-8")
    (folder / f"{FIRST}.lock").symlink_to(tmp_path / "victim")
    error = refusal(lambda: free([ONE], environ))
    assert error.reason is Reason.GPU_BUSY
    assert (tmp_path / "victim").read_text(encoding="utf-8") == "kept"


def test_a_pipe_keeps_nobody_waiting(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(environ["ENGINEFARM_GPU_LOCKS"])
    folder.mkdir()
    os.mkfifo(folder / f"{FIRST}.lock")
    real = os.open

    def opened(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
        # as the kernel answers who may only read it
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", opened)
    found: list[EnginefarmError] = []
    asking = threading.Thread(target=lambda: found.append(refusal(lambda: free([ONE], environ))), daemon=True)
    asking.start()
    asking.join(5)
    assert [error.reason for error in found] == [Reason.GPU_BUSY]


@pytest.mark.parametrize("place", ["file", "folder"])
def test_what_is_no_lock_file(environ: dict[str, str], place: str) -> None:
    folder = Path(environ["ENGINEFARM_GPU_LOCKS"])
    if place == "folder":
        folder.write_text("", encoding="utf-8")
    else:
        (folder / f"{FIRST}.lock").mkdir(parents=True)
    error = refusal(lambda: free([ONE], environ))
    assert error.reason is Reason.GPU_BUSY
    assert "ENGINEFARM_GPU_LOCKS" in (error.fix or "")


def test_a_file_that_was_removed_is_made_anew(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A cleaner of temporary files may come between opening and locking: the old file would lock nobody out."""
    opened = gpu_lease._open
    removed: list[Path] = []

    def open_(path: Path) -> int:
        descriptor = opened(path)
        if not removed:
            path.unlink()
            removed.append(path)
        return descriptor

    monkeypatch.setattr(gpu_lease, "_open", open_)
    with lease([ONE], threading.Event(), None, environ):
        assert removed[0].exists()
        assert not free([ONE], environ)


def test_the_usual_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not write to the first and who may meet in the second."""
    monkeypatch.setattr(gpu_lease, "_FOLDERS", (tmp_path / "run" / "locks", tmp_path / "tmp"))
    with lease([ONE], threading.Event(), None, {}):
        (tmp_path / "run").mkdir()
        assert not free([ONE], {})
    assert free([ONE], {})
    assert sorted(path.parent.name for path in tmp_path.rglob("*.lock")) == ["locks", "tmp"]


def test_no_folder_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lease, "_FOLDERS", (tmp_path / "a" / "b", tmp_path / "c" / "d"))
    assert refusal(lambda: free([ONE], {})).reason is Reason.GPU_BUSY


@pytest.fixture
def filled(machine: FakeNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """A GPU that others have filled, up to 10 GiB."""
    monkeypatch.setattr("builder.gpu._PROC", tmp_path)
    monkeypatch.setattr(gpu_lease, "_LOOK_S", 0.01)
    device = machine.devices[0]
    device.used = 130 * GIB
    device.programs = dict.fromkeys(range(2, 8), 20 * GIB)
    return device


def test_enough_memory(filled: FakeDevice) -> None:
    assert require_memory(ONE, 10 * GIB, threading.Event()) == 10 * GIB


def test_too_little_memory_names_who_has_it(filled: FakeDevice) -> None:
    error = refusal(lambda: require_memory(ONE, 11 * GIB, threading.Event(), patience_s=0.02))
    assert error.reason is Reason.GPU_MEMORY_SHORT
    assert error.what == "GPU 0 (NVIDIA H200) has 10240 of 143360 MiB free, the job needs 11264 MiB"
    named = ", ".join(f"process {pid} with 20480 MiB" for pid in range(2, 6))
    assert error.why == f"memory is held by {named} and 2 more"
    filled.programs = {}
    assert refusal(lambda: require_memory(ONE, 11 * GIB, threading.Event(), patience_s=0.0)).why is None


def test_what_a_job_needs_is_never_said_to_be_less(filled: FakeDevice) -> None:
    error = refusal(lambda: require_memory(ONE, 10 * GIB + 1, threading.Event(), patience_s=0.0))
    assert error.what == "GPU 0 (NVIDIA H200) has 10240 of 143360 MiB free, the job needs 10241 MiB"


def test_too_little_memory_is_said_where_nobody_can_be_named(
    filled: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(uuid: str) -> None:
        raise EnginefarmError(Reason.GPU_UNREADABLE, "no answer")

    monkeypatch.setattr(gpu_lease, "processes", silent)
    error = refusal(lambda: require_memory(ONE, 11 * GIB, threading.Event(), patience_s=0.0))
    assert (error.reason, error.why) == (Reason.GPU_MEMORY_SHORT, None)


def test_memory_of_a_killed_program_comes_back(filled: FakeDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def look(uuid: str) -> int:
        looks.append(free_memory_bytes(uuid))
        filled.used = GIB
        return looks[-1]

    monkeypatch.setattr(gpu_lease, "free_memory_bytes", look)
    assert require_memory(ONE, 11 * GIB, threading.Event()) == 139 * GIB
    assert looks == [10 * GIB, 139 * GIB]


def test_waiting_for_memory_can_be_stopped(filled: FakeDevice) -> None:
    cancel = threading.Event()
    cancel.set()
    assert refusal(lambda: require_memory(ONE, 11 * GIB, cancel)).reason is Reason.INTERRUPTED


def test_waiting_is_not_busy(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []
    taken: Callable[..., object] = gpu_lease._take

    def take(*arguments: object) -> object:
        looks.append(time.monotonic())
        return taken(*arguments)

    monkeypatch.setattr(gpu_lease, "_take", take)
    cancel = threading.Event()
    with lease([ONE], threading.Event(), None, environ):
        threading.Timer(0.6, cancel.set).start()
        refusal(lambda: lease([ONE], cancel, None, environ).__enter__())
    assert len(looks) <= 5
