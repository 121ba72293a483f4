"""Getting at registries: log-ins, helpers, certificates of one's own, proxies."""

from __future__ import annotations

import base64
import datetime as dt
import http.server
import ipaddress
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from builder.errors import EnginefarmError, Reason
from builder.publish import choose_packages, parse_destination, push_engines
from builder.publish_seal import Seal
from builder.store import Store
from tests.integration.publishing import fill, push, read_index

pytestmark = pytest.mark.integration

# of the password "secret"
HTPASSWD = "somebody:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Make a store with two engines."""
    store = Store(tmp_path / "home" / "store")
    fill(store)
    return store


def write_login(folder: Path, monkeypatch: pytest.MonkeyPatch, **content: Any) -> None:
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


def test_docker_s_log_in(
    store: Store, serve_registry: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = serve_registry(HTPASSWD)
    write_login(tmp_path, monkeypatch, auths={closed: {"auth": base64.b64encode(b"somebody:secret").decode()}})
    assert push(store, closed)[0].listed == 2
    write_login(tmp_path, monkeypatch, auths={closed: {"auth": base64.b64encode(b"somebody:wrong").decode()}})
    with pytest.raises(EnginefarmError) as caught:
        push(store, closed)
    assert caught.value.reason is Reason.REGISTRY_REFUSED
    assert caught.value.fix == f"docker login {closed}"


def test_a_credential_helper(
    store: Store, serve_registry: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = serve_registry(HTPASSWD)
    helper = tmp_path / "docker-credential-toy"
    answer = json.dumps({"ServerURL": closed, "Username": "somebody", "Secret": "secret"})
    helper.write_text(f"#!/bin/sh\ncat >/dev/null\necho '{answer}'\n", encoding="utf-8")
    helper.chmod(helper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    write_login(tmp_path, monkeypatch, credHelpers={closed: "toy"})
    assert push(store, closed)[0].listed == 2


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1, signed by itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.timezone.utc)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "toys")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(here, critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    private = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)
    return tmp_path / "cert.pem", tmp_path / "key.pem"


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_certificates_of_ones_own(
    store: Store,
    serve_registry: Callable[..., str],
    certificate: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    secure = serve_registry(tls=certificate)
    with pytest.raises(EnginefarmError) as caught:
        push(store, secure)
    assert caught.value.reason is Reason.REGISTRY_UNREACHABLE
    assert "certificate" in str(caught.value.why).lower()
    monkeypatch.setenv(variable, str(certificate[0]))
    assert push(store, secure)[0].listed == 2


class _Proxy(http.server.BaseHTTPRequestHandler):
    """Passes plain requests on to the one registry that there is, whatever host they name."""

    upstream = ""
    hosts: list[str] = []  # noqa: RUF012
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def handle_any(self) -> None:
        url = urlsplit(self.path)
        self.hosts.append(url.netloc)
        length = int(self.headers.get("Content-Length", 0))
        connection = http.client.HTTPConnection(self.upstream)
        target = url.path + (f"?{url.query}" if url.query else "")
        connection.request(self.command, target, self.rfile.read(length), dict(self.headers))
        answer = connection.getresponse()
        body = answer.read()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("Content-Length", answer.getheader("Content-Length") or str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815


def test_a_proxy(store: Store, registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Proxy, "upstream", registry)
    monkeypatch.setattr(_Proxy, "hosts", [])
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Proxy) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
        place = parse_destination("registry.example:5000/engines", "latest", plain_http=True)
        seal = Seal(store=store, signer=None)
        packages = choose_packages(store, [])
        try:
            (pushed,) = push_engines(packages, place, cancel=threading.Event(), listen=lambda _: None, seal=seal)
        finally:
            server.shutdown()
            thread.join()
    assert pushed.listed == 2
    assert set(_Proxy.hosts) == {"registry.example:5000"}
    index = read_index(registry)
    assert index is not None
    assert index.digest == pushed.digest
