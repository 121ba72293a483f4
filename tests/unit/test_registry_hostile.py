"""Registries that mean harm: what they say may cost a refusal, and nothing else."""

from __future__ import annotations

import base64
import gzip
import json
import threading
from pathlib import Path

import pytest
import requests

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.registry import Registry
from builder.registry_retry import as_passing, retry_after, shown
from tests.artifacts import refusal
from tests.registry_fake import Asked, FakeRegistry, Said, fake

__all__ = ["fake"]

HOST, NAME, FAR = "localhost:5000", "engines/tiny", "registry.example:5000"
DIGEST = f"sha256:{'a' * 64}"
ACCEPT = (oci.INDEX_TYPE,)


@pytest.fixture
def registry(fake: FakeRegistry) -> Registry:
    """Talk to the fake."""
    return Registry(HOST, NAME, cancel=threading.Event(), listen=lambda _: None)


@pytest.fixture
def far(fake: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """Talk to the fake as one that asks for a log-in, and have one."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    content = {"auths": {FAR: {"auth": base64.b64encode(b"me:secret").decode()}}}
    (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return Registry(FAR, NAME, cancel=threading.Event(), listen=lambda _: None)


def ask_token(asked: Asked) -> Said | None:
    challenge = {"Www-Authenticate": 'Bearer realm="https://auth.example/token",service="s",scope="pull"'}
    is_out = asked.host == FAR and "Authorization" not in asked.headers
    return Said(status=401, headers=challenge) if is_out else None


@pytest.mark.parametrize("lists", [True, False])
def test_what_describes_nothing_is_no_referrer(registry: Registry, fake: FakeRegistry, lists: bool) -> None:
    fake.lists_referrers = lists
    good = {"digest": DIGEST, "artifactType": "application/vnd.a"}
    body = json.dumps({"manifests": [1, None, [], {"digest": 5}, {}, good]}).encode()
    fake.fail(
        "GET .*/(referrers|manifests)/",
        *([Said(status=200, body=body)] if lists else [Said(status=404), Said(status=200, body=body)]),
    )
    assert registry.referrers(DIGEST, "application/vnd.a") == [good]


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"manifests": ' + b"[" * 100_000, b"9" * 5000])
def test_a_list_of_referrers_that_is_a_bomb(registry: Registry, fake: FakeRegistry, body: bytes) -> None:
    fake.fail("GET .*/referrers/", Said(status=200, body=body))
    with pytest.raises(EnginefarmError) as caught:
        registry.referrers(DIGEST)
    assert caught.value.reason is Reason.REGISTRY_REFUSED


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_a_list_without_end(registry: Registry, fake: FakeRegistry, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.registry._MOST_PAGES", 50)
    body = json.dumps({"manifests": [{"digest": "x" * size}]}).encode()
    again = Said(status=200, body=body, headers={"Link": '<?again>; rel="next"'})
    fake.rules.append(lambda asked: again if "/referrers/" in asked.path else None)
    with pytest.raises(EnginefarmError) as caught:
        registry.referrers(DIGEST)
    assert caught.value.reason is Reason.SIZE_REFUSED
    assert len(fake.asked) <= 52


def test_ways_that_lead_nowhere(registry: Registry, fake: FakeRegistry) -> None:
    nowhere = "http://[::1"
    fake.fail(
        "GET .*/referrers/", Said(status=200, body=b'{"manifests": []}', headers={"Link": f'<{nowhere}>; rel="next"'})
    )
    fake.fail("GET .*/manifests/latest", Said(status=307, headers={"Location": nowhere}))
    fake.fail("POST .*/uploads/", Said(status=202), Said(status=202, headers={"Location": nowhere}))
    told = []
    for ask in (
        lambda: registry.referrers(DIGEST),
        lambda: registry.manifest("latest", ACCEPT),
        lambda: registry.push(b"[]", oci.digest_of(b"[]"), 2),
        lambda: registry.push(b"[]", oci.digest_of(b"[]"), 2),
    ):
        with pytest.raises(EnginefarmError) as caught:
            ask()
        told.append(caught.value.reason)
    assert told == [Reason.REGISTRY_REFUSED, Reason.REGISTRY_UNREACHABLE, *[Reason.REGISTRY_REFUSED] * 2]


@pytest.mark.parametrize("text", ["²", "9" * 400, "-5", "Mon, 01 Jan 0100 00:00:00 -0000", "soon"])
def test_a_strange_time_to_wait(text: str) -> None:
    seconds = retry_after(text)
    assert seconds is None or seconds >= 0


def test_broken_connections_show_no_password_either() -> None:
    text = "HTTPConnectionPool(host='x'): url: /x?X-Signature=secret (Caused by 'https://me:secret@there/a?b=secret')"
    told = as_passing(requests.ConnectionError(text), "https://me:secret@there/")
    assert str(told) == "HTTPConnectionPool(host='x'): url: /x (Caused by 'https://there/a')"
    assert shown("https://me:secret@there/a?b=secret") == "https://there/a"


@pytest.mark.parametrize(
    ("error", "fix"),
    [
        (requests.exceptions.SSLError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"), "REQUESTS_CA_BUNDLE"),
        (OSError("Could not find a suitable TLS CA certificate bundle, invalid path: /none"), "REQUESTS_CA_BUNDLE"),
        (requests.exceptions.SSLError("[SSL: WRONG_VERSION_NUMBER] wrong version number"), "--plain-http"),
        (requests.exceptions.SSLError("[SSL] record layer failure"), "--plain-http"),
        (requests.exceptions.InvalidURL("no port 99999"), "check name"),
    ],
)
def test_what_helps_where_there_is_no_tls(error: Exception, fix: str) -> None:
    told = as_passing(error, "https://there/v2/")
    assert isinstance(told, EnginefarmError)
    assert fix in (told.fix or "")


@pytest.mark.filterwarnings("error")
def test_a_credential_helper_that_is_not_installed(
    far: Registry, fake: FakeRegistry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What many have whose home is mounted into a container; a registry that asks for nothing needs no log-in."""
    (tmp_path / "config.json").write_text('{"credsStore": "not-installed"}', encoding="utf-8")
    assert far.manifest("latest", ACCEPT) is None
    fake.rules.append(ask_token)
    error = refusal(lambda: Registry(FAR, NAME, cancel=threading.Event(), listen=print).manifest("latest", ACCEPT))
    assert error.reason is Reason.REGISTRY_REFUSED
    assert "docker-credential-not-installed" in (error.why or "")
    assert "config.json" in (error.fix or "")
    assert capsys.readouterr() == ("", "")


def test_the_log_in_is_not_for_those_that_we_are_sent_to(far: Registry, fake: FakeRegistry) -> None:
    challenge = {"Www-Authenticate": 'Bearer realm="https://thief.example/token",service="s",scope="x"'}
    fake.rules.append(lambda asked: Said(status=401, headers=challenge) if asked.host == "storage.example" else None)
    fake.fail("GET .*/manifests/", Said(status=307, headers={"Location": "https://storage.example/x?sig=secret"}))
    error = refusal(lambda: far.manifest("latest", ACCEPT))
    assert error.reason is Reason.REGISTRY_REFUSED
    assert "secret" not in str(error)
    assert not any(one.host == "thief.example" for one in fake.asked)


@pytest.mark.parametrize("encoding", [{}, {"Content-Encoding": "gzip"}])
def test_a_token_server_that_sends_a_bomb(far: Registry, fake: FakeRegistry, encoding: dict[str, str]) -> None:
    body = gzip.compress(b" " * (3 << 20) + b'{"token": "pull"}') if encoding else b"x" * (3 << 20)
    fake.rules.append(lambda asked: Said(status=200, body=body, headers=encoding) if asked.path == "/token" else None)
    fake.rules.append(ask_token)
    assert refusal(lambda: far.manifest("latest", ACCEPT)).reason is (
        Reason.REGISTRY_REFUSED if encoding else Reason.SIZE_REFUSED
    )


def test_a_token_server_that_is_nowhere(far: Registry, fake: FakeRegistry) -> None:
    fake.fail("GET /token", Said(status=307, headers={"Location": "http://[::1"}))
    fake.rules.append(ask_token)
    assert refusal(lambda: far.manifest("latest", ACCEPT)).reason is Reason.REGISTRY_UNREACHABLE


@pytest.mark.parametrize("there", ["http://localhost:9/x", "http://127.0.0.1/x", "http://[::1]:80/x"])
def test_a_registry_elsewhere_asks_nothing_of_services_here(far: Registry, fake: FakeRegistry, there: str) -> None:
    fake.fail("GET .*/manifests/", Said(status=307, headers={"Location": there}))
    assert refusal(lambda: far.manifest("latest", ACCEPT)).reason is Reason.REGISTRY_REFUSED
    assert {one.host for one in fake.asked} == {FAR}
