"""Who we are to a registry, over which scheme we talk, and whom we tell what."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests
from docker.credentials import CredentialsNotFound, Store

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.registry import Registry
from builder.registry_auth import Login
from builder.registry_session import is_loopback
from tests.registry_fake import Asked, FakeRegistry, Said, fake

__all__ = ["fake"]

NAME = "engines/tiny"
ACCEPT = (oci.INDEX_TYPE,)
FAR = "registry.example:5000"
INDEX = json.dumps({"schemaVersion": 2, "manifests": []}).encode()


@pytest.fixture(autouse=True)
def docker_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write Docker's configuration; without a call there is none."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))

    def write(**content: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")

    return write


def login(user: str = "me", word: str = "secret") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{word}".encode()).decode()}


def registry(host: str = FAR, *, plain_http: bool = False) -> Registry:
    return Registry(host, NAME, plain_http=plain_http, cancel=threading.Event(), listen=lambda _: None)


def refusal(asking: Registry) -> EnginefarmError:
    with pytest.raises(EnginefarmError) as caught:
        asking.manifest("latest", ACCEPT)
    return caught.value


def serve_index(fake: FakeRegistry) -> None:
    fake.manifests[NAME, "latest"] = (oci.INDEX_TYPE, INDEX)


def ask_basic(asked: Asked) -> Said | None:
    right = "Basic " + login()["auth"]
    challenge = {"Www-Authenticate": 'Basic realm="toys"'}
    return None if asked.headers.get("Authorization") == right else Said(status=401, headers=challenge)


class TokenServer:
    """Gives tokens for scopes to who names the user, or to everybody; registries ask for them."""

    def __init__(self, *, user: str | None, realm: str = "https://auth.example/token") -> None:
        self.user = user
        self.realm = realm
        self.given: list[str] = []

    def __call__(self, asked: Asked) -> Said | None:
        if asked.path == "/token":
            return self._give(asked)
        scope = "pull" if asked.method in {"GET", "HEAD"} else "pull,push"
        token = asked.headers.get("Authorization", "").removeprefix("Bearer ")
        if asked.path == "/v2/" or scope not in token:
            wanted = f'Bearer realm="{self.realm}",service="toys",scope="repository:{NAME}:{scope}"'
            return Said(status=401, headers={"Www-Authenticate": wanted})
        return None

    def _give(self, asked: Asked) -> Said:
        if asked.method == "POST":
            form = {name: values[0] for name, values in parse_qs(asked.body.decode()).items()}
            if (form["grant_type"], form["refresh_token"]) != ("refresh_token", "identity"):
                return Said(status=401)
            self.given.append(form["scope"])
            return Said(status=200, body=json.dumps({"access_token": "pull,push"}).encode())
        known = asked.headers.get("Authorization")
        if self.user is not None and known != "Basic " + login(self.user)["auth"]:
            return Said(status=401)
        self.given.append(asked.query["scope"])
        return Said(status=200, body=json.dumps({"token": asked.query["scope"].rpartition(":")[2]}).encode())


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("127.0.0.1:1", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("localhost.example", False),
        ("10.0.0.1:5000", False),
        ("128.0.0.1", False),
        ("", False),
        ("[", False),
    ],
)
def test_what_is_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) is here


@pytest.mark.parametrize(
    ("host", "plain", "url"),
    [
        ("localhost:5000", False, "http://localhost:5000"),
        (FAR, False, f"https://{FAR}"),
        (FAR, True, f"http://{FAR}"),
        ("docker.io", False, "https://registry-1.docker.io"),
    ],
)
def test_the_scheme(fake: FakeRegistry, host: str, plain: bool, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    urls: list[str] = []
    send = fake.send

    def note(request: requests.PreparedRequest) -> requests.Response:
        urls.append(str(request.url))
        return send(request)

    monkeypatch.setattr(fake, "send", note)
    assert registry(host, plain_http=plain).manifest("latest", ACCEPT) is None
    assert urls == [f"{url}/v2/", f"{url}/v2/{NAME}/manifests/latest"]


@pytest.mark.parametrize("plainly", [Said(status=400), requests.ConnectionError("closed")], ids=["says so", "hangs up"])
def test_tls_on_this_machine_is_found(
    fake: FakeRegistry, plainly: Said | Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_index(fake)
    send = fake.send

    def plain_fails(request: requests.PreparedRequest) -> requests.Response:
        if str(request.url).startswith("http:"):
            fake.fail(".", plainly)
        return send(request)

    monkeypatch.setattr(fake, "send", plain_fails)
    assert registry("localhost:5000").manifest("latest", ACCEPT) is not None


def test_nobody_there(fake: FakeRegistry) -> None:
    fake.fail(".", *[requests.ConnectionError("refused")] * 99)
    error = refusal(registry())
    assert error.reason is Reason.REGISTRY_UNREACHABLE
    assert FAR in error.what
    assert "refused" in str(error.why)


def test_anonymous_tokens(fake: FakeRegistry) -> None:
    serve_index(fake)
    server = TokenServer(user=None)
    fake.rules.append(server)
    assert registry().manifest("latest", ACCEPT) is not None
    assert server.given == [f"repository:{NAME}:pull"]


def test_one_token_for_reading_and_one_for_writing(fake: FakeRegistry, docker_config: Callable[..., None]) -> None:
    docker_config(auths={FAR: login()})
    serve_index(fake)
    server = TokenServer(user="me")
    fake.rules.append(server)
    asking = registry()
    for _ in range(2):
        assert asking.manifest("latest", ACCEPT) is not None
        asking.put_manifest("next", INDEX, oci.INDEX_TYPE)
    assert server.given == [f"repository:{NAME}:pull", f"repository:{NAME}:pull,push"]


def test_basic_log_in(fake: FakeRegistry, docker_config: Callable[..., None]) -> None:
    docker_config(auths={FAR: login()})
    serve_index(fake)
    fake.rules.append(ask_basic)
    assert registry().manifest("latest", ACCEPT) is not None


def test_a_credential_helper(
    fake: FakeRegistry, docker_config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    docker_config(credHelpers={FAR: "toy"})
    monkeypatch.setattr(Store, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(Store, "get", lambda _, server: {"ServerURL": server, "Username": "me", "Secret": "secret"})
    serve_index(fake)
    fake.rules.append(ask_basic)
    assert registry().manifest("latest", ACCEPT) is not None


def test_a_credential_helper_that_knows_nothing(
    fake: FakeRegistry, docker_config: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_: Store, server: str) -> None:
        raise CredentialsNotFound(server)

    docker_config(credsStore="toy")
    monkeypatch.setattr(Store, "__init__", lambda *_, **__: None)
    monkeypatch.setattr(Store, "get", unknown)
    serve_index(fake)
    assert registry().manifest("latest", ACCEPT) is not None


def test_an_identity_token(fake: FakeRegistry, docker_config: Callable[..., None]) -> None:
    docker_config(auths={FAR: {**login("<token>"), "identitytoken": "identity"}})
    serve_index(fake)
    server = TokenServer(user="nobody")
    fake.rules.append(server)
    assert registry().manifest("latest", ACCEPT) is not None
    assert len(server.given) == 1


def test_nobody_is_logged_in(fake: FakeRegistry) -> None:
    fake.rules.append(ask_basic)
    error = refusal(registry())
    assert error.reason is Reason.REGISTRY_REFUSED
    assert error.fix == f"docker login {FAR}"


@pytest.mark.parametrize("rule", [ask_basic, TokenServer(user="me")], ids=["basic", "token"])
def test_a_wrong_password(fake: FakeRegistry, docker_config: Callable[..., None], rule: Any) -> None:
    docker_config(auths={FAR: login(word="wrong")})
    fake.rules.append(rule)
    error = refusal(registry())
    assert error.reason is Reason.REGISTRY_REFUSED
    assert error.fix == f"docker login {FAR}"
    assert "wrong" not in str(error)


@pytest.mark.parametrize("challenge", [{}, {"Www-Authenticate": "Bearer"}, {"Www-Authenticate": 'Bearer realm="x"'}])
def test_a_registry_that_asks_for_nothing_known(fake: FakeRegistry, challenge: dict[str, str]) -> None:
    fake.rules.append(lambda _: Said(status=401, headers=challenge))
    assert refusal(registry()).reason in {Reason.REGISTRY_REFUSED, Reason.REGISTRY_UNREACHABLE}


@pytest.mark.parametrize(
    "answer",
    [
        Said(status=200, body=b"<html>"),
        Said(status=200, body=b"[]"),
        Said(status=200, body=b"[" * 100_000),
        Said(status=200, body='{"token": "€"}'.encode()),
        Said(status=200, body=b'{"token": "a\\r\\nX: y"}'),
        Said(status=403),
    ],
)
def test_a_token_server_out_of_order(fake: FakeRegistry, answer: Said) -> None:
    fake.rules.append(lambda asked: answer if asked.path == "/token" else None)
    fake.rules.append(TokenServer(user=None))
    assert refusal(registry()).reason is Reason.REGISTRY_REFUSED


def test_a_busy_token_server_is_asked_again(fake: FakeRegistry) -> None:
    serve_index(fake)
    fake.fail("GET /token", Said(status=503), Said(status=429), requests.ConnectionError("refused"))
    fake.rules.append(TokenServer(user=None))
    assert registry().manifest("latest", ACCEPT) is not None


@pytest.mark.parametrize("content", [{"auths": {FAR: "what"}}, {"credsStore": 5}])
def test_docker_s_configuration_is_broken(
    fake: FakeRegistry, docker_config: Callable[..., None], content: dict[str, Any]
) -> None:
    docker_config(**content)
    fake.rules.append(ask_basic)
    assert "log-in" in refusal(registry()).what


def test_a_log_in_tells_no_secret() -> None:
    shown = repr(Login(**dict(zip(("user", "password", "identity"), ("me", "secret", "token"), strict=True))))
    assert "secret" not in shown
    assert "token" not in shown


@pytest.mark.parametrize(
    ("host", "plain", "reached"), [(FAR, False, False), ("localhost", False, False), (FAR, True, True)]
)
def test_a_way_to_plain_http_elsewhere(fake: FakeRegistry, host: str, plain: bool, reached: bool) -> None:
    serve_index(fake)
    there = f"http://storage.example/v2/{NAME}/manifests/latest"
    fake.rules.append(
        lambda asked: (
            Said(status=307, headers={"Location": there}) if "manifests" in asked.path and asked.host == host else None
        )
    )
    if reached:
        assert registry(host, plain_http=plain).manifest("latest", ACCEPT) is not None
    else:
        error = refusal(registry(host, plain_http=plain))
        assert error.reason is Reason.REGISTRY_REFUSED
        assert "--plain-http" in str(error.fix)
    assert any(one.host == "storage.example" for one in fake.asked) is reached


def test_a_token_server_over_plain_http_gets_no_password(
    fake: FakeRegistry, docker_config: Callable[..., None]
) -> None:
    docker_config(auths={FAR: login()})
    fake.rules.append(TokenServer(user="me", realm="http://auth.example/token"))
    assert refusal(registry()).reason is Reason.REGISTRY_REFUSED
    assert not any(one.path == "/token" for one in fake.asked)


def test_tokens_are_for_the_registry_alone(fake: FakeRegistry, docker_config: Callable[..., None]) -> None:
    docker_config(auths={FAR: login()})
    fake.rules.append(TokenServer(user="me"))
    digest = oci.digest_of(b"content")
    fake.blobs[NAME, digest] = b"content"
    there = f"https://storage.example/v2/{NAME}/blobs/{digest}"
    fake.rules.insert(
        0,
        lambda asked: (
            Said(status=307, headers={"Location": there})
            if asked.host == FAR and "/blobs/" in asked.path and "Authorization" in asked.headers
            else None
        ),
    )
    fake.rules.insert(0, lambda asked: Said(status=200, body=b"content") if asked.host == "storage.example" else None)
    assert registry().read(oci.descriptor("", digest, 7)) == b"content"
    assert ["Authorization" in one.headers for one in fake.asked if one.host == "storage.example"] == [False]


def test_an_upload_elsewhere_gets_no_token(fake: FakeRegistry, docker_config: Callable[..., None]) -> None:
    docker_config(auths={FAR: login()})
    fake.rules.append(lambda asked: Said(status=201) if asked.host == "storage.example" else None)
    fake.rules.append(TokenServer(user="me"))
    place = {"Location": "https://storage.example/upload?signature=x"}
    fake.rules.append(lambda asked: Said(status=202, headers=place) if asked.method == "POST" else None)
    assert registry().push(b"content", oci.digest_of(b"content"), 7)
    there = [one for one in fake.asked if one.host == "storage.example"]
    assert [one.query["signature"] for one in there] == ["x"]
    assert "Authorization" not in there[0].headers


@pytest.mark.parametrize(
    ("variables", "verify"),
    [
        ({}, True),
        ({"SSL_CERT_FILE": "/ca.pem"}, "/ca.pem"),
        ({"REQUESTS_CA_BUNDLE": "/bundle.pem", "SSL_CERT_FILE": "/ca.pem"}, "/bundle.pem"),
    ],
)
def test_certificates(
    fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], verify: str | bool
) -> None:
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    seen: list[object] = []
    send = requests.adapters.HTTPAdapter.send

    def note(self: Any, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        seen.append(options["verify"])
        return send(self, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", note)
    registry().manifest("latest", ACCEPT)
    assert seen == [verify, verify]


@pytest.mark.parametrize(("host", "proxied"), [(FAR, True), ("localhost:5000", False)])
def test_proxies_are_for_the_world_outside(
    fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch, host: str, proxied: bool
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    for name in ("NO_PROXY", "no_proxy", "https_proxy", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    seen: list[bool] = []
    send = requests.adapters.HTTPAdapter.send

    def note(self: Any, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        seen.append(bool(options["proxies"]))
        return send(self, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", note)
    registry(host).manifest("latest", ACCEPT)
    assert seen == [proxied, proxied]


def test_netrc_is_not_used(fake: FakeRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine registry.example login x password y\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    registry().manifest("latest", ACCEPT)
    assert not any("Authorization" in one.headers for one in fake.asked)
