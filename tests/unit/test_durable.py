"""Files that survive a crash whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from builder import durable


def test_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    path, copy = tmp_path / "a", tmp_path / "b"
    path.write_bytes(os.urandom((3 << 20) + 17))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    assert durable.sha256_file(path) == durable.copy_hashed(path, copy) == expected
    assert copy.read_bytes() == path.read_bytes()


def test_replaced_file_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, temp = tmp_path / "a.json", tmp_path / "tmp"
    temp.mkdir()
    durable.write_atomically(path, b"old", temp)

    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "broken disk")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="broken disk"):
            durable.write_atomically(path, b"new", temp)
    assert path.read_bytes() == b"old"
    durable.write_atomically(path, b"new", temp)
    assert path.read_bytes() == b"new"
    assert list(temp.iterdir()) == []


def test_other_failures_pass_through() -> None:
    with pytest.raises(FileExistsError), durable.writing("something"):
        raise FileExistsError
