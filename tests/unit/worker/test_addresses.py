from __future__ import annotations

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


def test_a_process_with_fixed_addresses_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "are_fixed", lambda: True)
    monkeypatch.setattr(addresses, "_restart", lambda: pytest.fail("started again without need"))
    addresses.fix()


def test_a_system_that_keeps_randomising_gets_a_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Library:
        def personality(self, value: object) -> int:
            return 0

    monkeypatch.setattr("ctypes.CDLL", lambda name: Library())
    monkeypatch.setattr(addresses, "_restart", lambda: pytest.fail("would start again for ever"))
    addresses.fix()
    assert "a rebuild may give other bytes" in capsys.readouterr().err
