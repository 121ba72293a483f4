"""The guard of the unit tests itself."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from builder.project import find_home


def test_no_program_starts() -> None:
    with pytest.raises(AssertionError, match="starts a program"):
        subprocess.run([sys.executable, "--version"], check=False)


def test_no_connection_opens() -> None:
    with socket.socket() as one, pytest.raises(AssertionError, match="connects to"):
        one.connect(("127.0.0.1", 1))


def test_the_store_of_the_user_is_not_seen(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert tmp_path_factory.getbasetemp() in find_home().root.parents
    assert tmp_path_factory.getbasetemp() in Path.home().parents
