from __future__ import annotations

import os
import platform
import resource
import threading

import pytest

from builder.worker import addresses


def test_a_function_runs_in_a_thread_of_its_own() -> None:
    name = addresses.in_fresh_heap(lambda prefix: prefix + threading.current_thread().name, "in ")
    assert name.startswith("in ")
    assert name != "in " + threading.current_thread().name


def test_what_it_raises_comes_back() -> None:
    def fail() -> None:
        raise LookupError("lost")

    with pytest.raises(LookupError, match="lost"):
        addresses.in_fresh_heap(fail)


def _limits(monkeypatch: pytest.MonkeyPatch, soft: int) -> list[tuple[int, int]]:
    """Pretend a limit of the stack; return what is set."""
    was_set: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (soft, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: was_set.append(limits))
    return was_set


def test_a_process_that_has_its_settings_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    _limits(monkeypatch, addresses.STACK_BYTES)
    monkeypatch.setenv("GLIBC_TUNABLES", addresses.TUNABLES)
    monkeypatch.setattr(os, "execve", lambda *arguments: pytest.fail("started again without need"))
    addresses.prepare()


@pytest.mark.parametrize(("soft", "tunables"), [(-1, addresses.TUNABLES), (addresses.STACK_BYTES, "")])
def test_a_process_that_lacks_them_starts_again(monkeypatch: pytest.MonkeyPatch, soft: int, tunables: str) -> None:
    started: list[dict[str, str]] = []
    was_set = _limits(monkeypatch, soft)
    monkeypatch.setenv("GLIBC_TUNABLES", tunables)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    monkeypatch.setattr(os, "execve", lambda path, argv, environment: started.append(environment))
    addresses.prepare()
    assert [environment["GLIBC_TUNABLES"] for environment in started] == [addresses.TUNABLES]
    assert "MALLOC_ARENA_MAX" not in started[0]
    assert was_set == ([(addresses.STACK_BYTES, resource.RLIM_INFINITY)] if soft == -1 else [])


def test_another_processor_is_not_promised_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not addresses.draw_line(addresses.HEAP_BELOW)
    assert "a rebuild may give other bytes" in capsys.readouterr().err
