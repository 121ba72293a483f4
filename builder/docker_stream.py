"""A container's standard streams: output into a log as it comes, input held open as long as this process lives."""

from __future__ import annotations

import select
import socket
import struct
from pathlib import Path
from types import TracebackType

from docker.models.containers import Container
from typing_extensions import Self

from builder.docker_engine import DockerEngine

_HEADER = struct.Struct(">BxxxL")
_CHUNK = 1 << 16


class Stream:
    """A context manager around a container that is created and not yet started.

    The container's input ends when this connection closes, however that comes about: a worker that watches its input
    does not outlive the farm.
    """

    def __init__(self, engine: DockerEngine, container: Container, log: Path) -> None:
        self._log = log.open("ab")
        options = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        self._wrapper = engine.client.api.attach_socket(container.id, params=options)
        self._socket: socket.socket = getattr(self._wrapper, "_sock", self._wrapper)
        self._pending = b""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close connection and log."""
        self._wrapper.close()
        # the wrapper holds the answer, and the answer the socket
        self._socket.close()
        self._log.close()

    def ended(self, within_s: float) -> bool:
        """Copy what has come to the log; say whether the container has closed its output.

        Raises:
            ConnectionError: the engine went away.

        """
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(within_s * 1000):
            return False
        data = self._socket.recv(_CHUNK)
        self._pending += data
        self._write_frames()
        self._log.flush()
        return not data

    def _write_frames(self) -> None:
        # each frame has a header: which stream, how many bytes
        while len(self._pending) >= _HEADER.size:
            _, length = _HEADER.unpack_from(self._pending)
            end = _HEADER.size + length
            if len(self._pending) < end:
                return
            self._log.write(self._pending[_HEADER.size : end])
            self._pending = self._pending[end:]
