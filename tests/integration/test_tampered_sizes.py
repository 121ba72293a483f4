"""Names that lead elsewhere and bombs, in a real registry: refused before anything deserializes them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from builder import oci
from builder.errors import Reason
from builder.titles import ENGINE
from tests.integration.scene import Scene, make_scene, publish_changed, refused
from tests.published import (
    parcel,
    put,
)

pytestmark = pytest.mark.integration

TEN_GB = 10 << 30


@pytest.fixture
def scene(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return make_scene(registry, tmp_path, monkeypatch)


# names and sizes


@pytest.mark.parametrize(
    "title", ["../../../etc/cron.d/farm", "/etc/passwd", "..", "model.plan/../../x", "model.plan -> /etc/passwd", ""]
)
def test_names_that_lead_elsewhere(scene: Scene, title: str) -> None:
    def add(content: dict[str, Any]) -> None:
        digest, size = put(scene.place, b"* * * * * root id")
        content["layers"].append(oci.descriptor("application/octet-stream", digest, size, {oci.TITLE: title}))

    publish_changed(scene, add)
    assert refused(scene) is Reason.NAME_UNSAFE


def test_a_bomb_that_says_so(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    with scene.blob(one.files[ENGINE]).open("r+b") as file:
        file.truncate(TEN_GB)

    def swell(content: dict[str, Any]) -> None:
        (engine,) = [layer for layer in content["layers"] if layer["annotations"][oci.TITLE] == ENGINE]
        engine["size"] = TEN_GB

    publish_changed(scene, swell, one)
    assert refused(scene) is Reason.SIZE_REFUSED


def test_a_bomb_that_does_not_say_so(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    with scene.blob(one.files[ENGINE]).open("r+b") as file:
        file.truncate(TEN_GB)
    assert refused(scene) is Reason.SIZE_REFUSED
    kept = [path.stat().st_size for path in scene.home.pulls.rglob("*") if path.is_file()]
    assert sum(kept) < 1 << 20


class _Endless(BaseHTTPRequestHandler):
    """Passes questions on; whoever asks for an engine gets one that never ends."""

    protocol_version = "HTTP/1.1"
    upstream, engine, sent = "", "", 0

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.engine in self.path:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
            self.close_connection = True
            try:
                while type(self).sent < TEN_GB:
                    self.wfile.write(piece)
                    type(self).sent += 0x10000
            except OSError:
                pass
            return
        headers = {"Accept": self.headers.get("Accept", "*/*")}
        answer = requests.get(f"http://{self.upstream}{self.path}", headers=headers, timeout=10)
        self.send_response(answer.status_code)
        for name in ("Content-Type", "Docker-Content-Digest"):
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)


@contextmanager
def endless(upstream: str, engine: str) -> Iterator[tuple[str, type[_Endless]]]:
    """Serve a registry whose engine never ends."""
    handler = type("Endless", (_Endless,), {"upstream": upstream, "engine": engine, "sent": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def test_a_stream_without_an_end(scene: Scene) -> None:
    one = parcel()
    scene.publish(one)
    with endless(scene.registry, one.told.engine.sha256) as (address, handler):
        assert refused(scene, address=address) is Reason.SIZE_REFUSED
        # what the sockets hold may be on its way, and no more
        assert handler.sent < 64 << 20
