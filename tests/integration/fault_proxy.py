"""Stands before a registry and breaks what passes: by a seed, so that the same requests meet the same faults."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length"})
_DELAY_S = 0.02


class Fault(str, Enum):
    """What may happen to a request. What only some requests can meet is drawn for those alone."""

    RESET = "connection reset before the request is heard"
    LOST_ANSWER = "request carried out, connection reset before the answer"
    CUT_REQUEST = "half of the request's body arrives"
    CUT_ANSWER = "half of the answer's body arrives"
    FLIPPED_BIT = "one bit of the answer's body is another"
    DELAY = "answer comes late"
    TIMEOUT = "408"
    TOO_MANY = "429"
    BROKEN = "500"
    BAD_GATEWAY = "502"
    BUSY = "503"


_CODES = {fault: int(fault.value) for fault in Fault if fault.value.isdigit()}
_NEEDS_BODY = frozenset({Fault.CUT_REQUEST})
_NEEDS_ANSWER = frozenset({Fault.CUT_ANSWER, Fault.FLIPPED_BIT})


class FaultProxy(ThreadingHTTPServer):
    """An HTTP proxy with one registry behind it.

    `rate`: share of requests that meet a fault; `only`: what their paths contain. Both may be changed.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, upstream: str, seed: int = 0, rate: float = 0.0, faults: Iterable[Fault] = Fault) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = f"127.0.0.1:{self.server_port}"
        self.upstream = upstream
        self.rate = rate
        self.only = ""
        self.injected: Counter[Fault] = Counter()
        self.served: Counter[str] = Counter()
        self.blob_bytes = 0
        self._faults = tuple(faults)
        self._random = random.Random(seed)  # noqa: S311  # the same faults each time, that is the point
        self._lock = threading.Lock()
        self._left: int | None = None

    def die_after(self, requests: int | None) -> None:
        """Answer so many requests, then none: every connection is reset. Null comes back to life."""
        with self._lock:
            self._left = requests

    def draw(self, method: str, path: str, *, has_body: bool) -> Fault | None:
        """Say what happens to the next request."""
        with self._lock:
            self.served[method] += 1
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    return Fault.RESET
            if self.only not in path or self._random.random() >= self.rate:
                return None
            barred = (frozenset() if has_body else _NEEDS_BODY) | (
                frozenset() if method == "GET" and path != "/v2/" else _NEEDS_ANSWER
            )
            fault = self._random.choice([one for one in self._faults if one not in barred] or [Fault.RESET])
            self.injected[fault] += 1
            return fault

    def place(self, length: int) -> int:
        """Draw a place in a body."""
        with self._lock:
            return self._random.randrange(length)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: a client that goes away is what this is about."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultProxy
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _pass_on(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding", "").lower() == "chunked"
        fault = self.server.draw(self.command, self.path, has_body=length > 0 or chunked)
        if fault is Fault.RESET:
            self._reset()
            return
        body = b"".join(self._chunks()) if chunked else self.rfile.read(length)
        if fault in _CODES:
            self._answer(_CODES[fault], {"Retry-After": "0"}, b"not now\n")
            return
        if fault is Fault.CUT_REQUEST:
            self._cut_request(body)
            return
        if fault is Fault.DELAY:
            time.sleep(_DELAY_S)
        status, headers, answer = self._ask(body)
        if fault is Fault.LOST_ANSWER:
            self._reset()
        elif fault is Fault.FLIPPED_BIT and answer:
            spoiled, place = bytearray(answer), self.server.place(len(answer) * 8)
            spoiled[place // 8] ^= 1 << place % 8
            self._answer(status, headers, bytes(spoiled))
        elif fault is Fault.CUT_ANSWER and answer:
            self._answer(status, headers, answer, sent=self.server.place(len(answer)))
        else:
            self._answer(status, headers, answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _forward(self) -> tuple[http.client.HTTPConnection, dict[str, str]]:
        # the Host header stays: the registry makes its Location headers of it
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        return http.client.HTTPConnection(self.server.upstream, timeout=30), headers

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection, headers = self._forward()
        try:
            connection.request(self.command, self.path, body=body or None, headers=headers)
            response = connection.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in _HOP}
            length = response.getheader("Content-Length")
            if self.command == "HEAD" and length is not None:
                kept["Content-Length"] = length
            return response.status, kept, response.read()
        finally:
            connection.close()

    def _cut_request(self, body: bytes) -> None:
        connection, headers = self._forward()
        with suppress(OSError):
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                connection.putheader(name, value)
            connection.endheaders(body[: self.server.place(len(body))])
        connection.close()
        self._reset()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, sent: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            sending = body if sent is None else body[:sent]
            if "/blobs/sha256:" in self.path:
                self.server.blob_bytes += len(sending)
            self.wfile.write(sending)
        if sent is not None:
            self.close_connection = True

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # the streams share the socket, which closes with the last of them
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def finish(self) -> None:
        """Close as usual, also where the client is gone."""
        with suppress(OSError, ValueError):
            super().finish()


@contextmanager
def faults_before(
    registry: str, seed: int = 0, rate: float = 0.0, faults: Iterable[Fault] = Fault
) -> Iterator[FaultProxy]:
    """Serve a registry through a proxy."""
    with FaultProxy(registry, seed, rate, faults) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
