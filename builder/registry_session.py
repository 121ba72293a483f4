"""Talks HTTP to one registry: who may, over which scheme, through which proxy, and what is worth a second try."""

from __future__ import annotations

import http.client
import io
import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import oras.provider
import requests
import urllib3
from docker.auth import INDEX_NAME
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from builder import oci
from builder.errors import EnginefarmError, Reason
from builder.hang_up import note_line, watched
from builder.registry_auth import Login, authorise, is_basic, read_login
from builder.registry_retry import PASSING, PassingError, Patience, as_passing, retry_after, shown

T = TypeVar("T")
Body = Any
"""What requests takes for a body: bytes, or an iterable with a length."""

_HUB = "registry-1.docker.io"
_WAIT_S = (10.0, 60.0)
# where a registry reads a large file again before it answers
_COMMIT_S = (10.0, 600.0)
_KNOCK_ATTEMPTS = 3
_TEXT_BYTES = 600
_PART = 64 << 10
SLOW_S = 60.0
"""Within this a small part of an answer has to come: what comes more slowly does not end in anybody's lifetime."""
_TOKEN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a registry said, read whole. `url` is where it said so; relative places start there."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    url: str

    @property
    def missing(self) -> bool:
        """True where there is nothing of that name."""
        return self.status == HTTPStatus.NOT_FOUND


class Session:
    """One registry as one user. Safe for several threads. Nothing is sent before the first question."""

    def __init__(self, host: str, *, plain_http: bool, cancel: threading.Event) -> None:
        self.host = host
        self.cancel = cancel
        self._at = _HUB if host == INDEX_NAME else host
        self._loopback = is_loopback(self._at)
        self._plain_http = plain_http
        self._lock = threading.RLock()
        self._registry: Any = None
        self._login = Login()
        self._authorization: str | None = None

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        allowed: tuple[int, ...] = (),
        limit: int = oci.DOCUMENT_BYTES,
    ) -> Answer:
        """Ask something small, again where that helps. `path`: below `/v2/`, or a whole URL.

        Answers that are neither good nor `allowed` are errors; one of more than `limit` bytes is refused.

        Raises:
            EnginefarmError: REGISTRY_UNREACHABLE, REGISTRY_REFUSED, SIZE_REFUSED, INTERRUPTED.

        """
        return self.insist(path, lambda: self._ask(method, path, dict(headers or {}), body, allowed, limit))

    def insist(self, path: str, action: Callable[[], T]) -> T:
        """Try until it works, the error is none that passes, or patience ends; see `ask` for the errors."""
        patience = Patience(self.cancel)
        while True:
            try:
                return action()
            except PassingError as error:
                patience.pause(error, self._url(path))

    def open(
        self, method: str, path: str, headers: Mapping[str, str], body: Body = None, allowed: tuple[int, ...] = ()
    ) -> requests.Response:
        """Ask once and leave the answer's body to be read; close it.

        Raises:
            PassingError: it may work the next time.
            EnginefarmError: REGISTRY_UNREACHABLE, REGISTRY_REFUSED.

        """
        self._open()
        url = self._url(path)
        response = self._authorised(method, url, headers, body)
        if response.ok or response.status_code in allowed:
            return response
        with response:
            text = _text(response)
        why = f"{method} {shown(url)}: {response.status_code} {response.reason}\n{text}".rstrip()
        if response.status_code in PASSING:
            raise PassingError(why, retry_after(response.headers.get("Retry-After")))
        fix = f"docker login {self.host}" if response.status_code == HTTPStatus.UNAUTHORIZED else None
        raise EnginefarmError(Reason.REGISTRY_REFUSED, f"{self.host} refused", why=why, fix=fix)

    def _ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None, allowed: tuple[int, ...], limit: int
    ) -> Answer:
        with self.open(method, path, headers, body, allowed) as response:
            content = read_some(response, limit + 1) if method != "HEAD" else b""
        if len(content) > limit:
            what = f"{shown(response.url)} is larger than {limit} bytes"
            raise EnginefarmError(Reason.SIZE_REFUSED, what, fix="do not use this artifact")
        return Answer(status=response.status_code, headers=response.headers, content=content, url=response.url)

    def _url(self, path: str) -> str:
        prefix = self._registry.prefix if self._registry is not None else "https"
        return urljoin(f"{prefix}://{self._at}/v2/", path)

    def _authorised(self, method: str, url: str, headers: Mapping[str, str], body: Body) -> requests.Response:
        token = self._authorisation(url)
        response = self._send(method, url, {**headers, **token}, body)
        # nor is the log-in for those that it sends us to: they could name a token server of their own
        asked_by_own = self._is_own(url) and self._is_own(response.url)
        if response.status_code != HTTPStatus.UNAUTHORIZED or not asked_by_own:
            return response
        with response:
            _text(response)
        with self._lock:
            # another thread may have got a new one meanwhile
            if self._authorisation(url) == token:
                self._authorization = authorise(self._registry, self._login, response)
        return self._send(method, url, {**headers, **self._authorisation(url)}, body)

    def _authorisation(self, url: str) -> dict[str, str]:
        # tokens are for the registry alone, not for where it sends us
        known = self._authorization
        return {"Authorization": known} if known is not None and self._is_own(url) else {}

    def _is_own(self, url: str) -> bool:
        return urlsplit(url).netloc == self._at

    def _send(self, method: str, url: str, headers: Mapping[str, str], body: Body) -> requests.Response:
        wait = _COMMIT_S if method in {"PUT", "PATCH"} else _WAIT_S
        try:
            response: requests.Response = self._registry.session.request(
                method, url, headers=headers, data=body, stream=True, timeout=wait, verify=_verify()
            )
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            # a ValueError: sent to where there is no place
            raise as_passing(error, url) from error
        return response

    def _open(self) -> None:
        with self._lock:
            if self._registry is None:
                patience = Patience(self.cancel, _KNOCK_ATTEMPTS)
                while self._registry is None:
                    try:
                        self._registry = self._knock()
                    except PassingError as error:
                        patience.pause(error, f"{self._at}/v2/")

    def _knock(self) -> Any:
        """Find out how to talk: plainly on this machine and where asked to, and how to log in."""
        prefixes = ["http", "https"] if self._loopback else ["http" if self._plain_http else "https"]
        errors: list[Exception] = []
        for prefix in prefixes:
            try:
                challenge = self._challenge(prefix)
            except _WrongSchemeError as error:
                errors.append(error)
                continue
            self._login = read_login(self.host, challenge)
            registry = self._connect(prefix, "basic" if is_basic(challenge) else "token")
            if self._login.user is not None:
                registry.auth.set_basic_auth(self._login.user, self._login.password)
            return registry
        raise next((error for error in errors if "certificate" in str(error).lower()), errors[0]).args[0]

    def _challenge(self, prefix: str) -> str:
        url = f"{prefix}://{self._at}/v2/"
        session = self._connect(prefix, "token").session
        try:
            with session.get(url, timeout=_WAIT_S, verify=_verify(), stream=True) as response:
                status, challenge = response.status_code, str(response.headers.get("Www-Authenticate", ""))
        except (requests.RequestException, OSError, ValueError) as error:
            raise _WrongSchemeError(as_passing(error, url)) from error
        finally:
            session.close()
        if status in PASSING:
            raise PassingError(f"GET {url}: {status}")
        if status == HTTPStatus.BAD_REQUEST:
            # what a server for TLS says to plain HTTP
            raise _WrongSchemeError(PassingError(f"GET {url}: {status}"))
        return challenge

    def _connect(self, prefix: str, kind: str) -> Any:
        # it writes to standard error what comes back as an error here
        logging.getLogger("oras.logger").setLevel(logging.CRITICAL + 1)
        registry = oras.provider.Registry(self._at, insecure=prefix == "http", tls_verify=_verify(), auth_backend=kind)
        # of its own, so that a token server that is busy can be told from one that refuses
        registry.auth.session = requests.Session()
        registry.auth.session.hooks["response"] += [_refuse_passing, _limit]
        for session in (registry.session, registry.auth.session):
            # a proxy is for the world outside
            session.trust_env = not self._loopback
            # else requests looks for a log-in of its own in ~/.netrc and sends it instead
            session.auth = lambda request: request
            session.headers.update({"User-Agent": "enginefarm", "Accept-Encoding": "identity"})
            for scheme in ("http://", "https://"):
                session.mount(scheme, _Door(plain_http=self._plain_http, here=self._loopback))
        return registry


class _WrongSchemeError(Exception):
    """Perhaps the other scheme does. Holds what to raise where neither does."""


class _Line(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        note_line(self.sock)


class _SecureLine(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        note_line(self.sock)


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Line


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureLine


_POOLS = {"http": _Pool, "https": _SecurePool}


class _Door(HTTPAdapter):
    """Refuses to talk plainly to other machines, wherever the registry sends us, and waits for nobody for ever.

    `here`: the registry is on this machine. No other has a say in what is asked of services here that talk plainly.
    """

    def __init__(self, *, plain_http: bool, here: bool) -> None:
        super().__init__()
        self._plain_http = plain_http
        self._here = here

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Open connections that a stopped run can hang up."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        """Open connections through a proxy likewise."""
        manager: Any = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        """Send it, or not."""
        url = urlsplit(str(request.url))
        is_here = self._here and is_loopback(url.netloc)
        if url.scheme == "http" and not self._plain_http and not is_here:
            what = f"{shown(str(request.url))} is plain HTTP: everybody on the way could read and change it"
            raise EnginefarmError(Reason.REGISTRY_REFUSED, what, fix="--plain-http allows it")
        options["timeout"] = options.get("timeout") or _WAIT_S
        return super().send(request, *arguments, **options)


def _refuse_passing(response: requests.Response, **_: Any) -> None:
    if response.status_code in PASSING:
        why = f"{shown(response.url)}: {response.status_code} {response.reason}"
        raise PassingError(why, retry_after(response.headers.get("Retry-After")))


def _limit(response: requests.Response, **_: Any) -> None:
    """Read what a token server says, and no more than a token can be: the library would read all of it."""
    content = read_some(response, _TOKEN_BYTES + 1)
    response.close()
    if len(content) > _TOKEN_BYTES:
        what = f"{shown(response.url)} is larger than {_TOKEN_BYTES} bytes"
        raise EnginefarmError(Reason.SIZE_REFUSED, what, why="it was asked for a token", fix="ask who runs it")
    response.raw = io.BytesIO(content)
    response.headers.pop("Content-Encoding", None)


def follow(url: str, place: str | None) -> str:
    """Find where an answer sends us: a whole URL, or a place relative to `url`, which gave the answer.

    Raises:
        EnginefarmError: REGISTRY_REFUSED where that is no place.

    """
    try:
        if place is not None:
            return urljoin(url, place)
        why = "it does not say where to go on"
    except ValueError as error:
        why = str(error)
    raise EnginefarmError(Reason.REGISTRY_REFUSED, f"{shown(url)} leads nowhere", why=why, fix=None)


def is_loopback(host: str) -> bool:
    """Say whether a host, with or without a port, is this machine."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def read_some(response: requests.Response, count: int) -> bytes:
    """Read so many bytes of an answer as they came, fewer at its end.

    Raises:
        PassingError: the connection broke.

    """
    content = bytearray()
    try:
        with watched(line_of(response), lambda: len(content), SLOW_S):
            # a connection that was closed too early shows at the next reading only
            while part := response.raw.read(min(_PART, count - len(content)), decode_content=False):
                content += part
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise as_passing(error, response.url) from error
    return bytes(content)


def line_of(response: requests.Response) -> socket.socket | None:
    """Find the connection that an answer comes on; null where it does not come on one."""
    line: object = getattr(response.raw, "_fp", None)
    for name in ("fp", "raw", "_sock"):
        line = getattr(line, name, None)
    return line if isinstance(line, socket.socket) else None


class Reader:
    """Reads an answer's body as it came, into memory that is there already: twice as fast as having it allocated."""

    def __init__(self, response: requests.Response) -> None:
        self._url = response.url
        # what lies under urllib3, which would make a copy of every part
        self._source: Any = getattr(response.raw, "_fp", None) or response.raw

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer as far as it goes; 0 at the end, and where a connection was closed too early.

        Raises:
            PassingError: the connection broke.

        """
        try:
            return int(self._source.readinto(buffer))
        except (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError) as error:
            raise as_passing(error, self._url) from error


def _text(response: requests.Response) -> str:
    try:
        return read_some(response, _TEXT_BYTES).decode(errors="replace").strip()
    except PassingError:
        return ""


def _verify() -> str | bool:
    """Name the certificates to trust, as requests and as OpenSSL would."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True
