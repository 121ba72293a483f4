"""Who we are to a registry: Docker's log-ins, credential helpers included, and the tokens got for them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import oras.auth.utils
import requests
from docker.auth import load_config
from docker.errors import DockerException

from builder.errors import EnginefarmError, Reason
from builder.registry_retry import as_passing

_NO_TOKEN = (requests.exceptions.JSONDecodeError, AttributeError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """A log-in: user and password, or a token that a token server takes in their place, or neither."""

    user: str | None = None
    password: str | None = None
    identity: str | None = None

    def __repr__(self) -> str:
        """Tell no secret."""
        return f"Login(user={self.user!r})"


def read_login(host: str, challenge: str) -> Login:
    """Look up what `docker login HOST` has left. `challenge`: how the registry asks who we are, empty if it does not.

    Raises:
        EnginefarmError: REGISTRY_REFUSED where the registry asks and the log-in cannot be read, or where it wants a
            password and there is none.

    """
    try:
        with warnings.catch_warnings():
            # the library says on standard error, too, that a credential helper is not installed
            warnings.simplefilter("ignore", UserWarning)
            found = load_config().resolve_authconfig(host) or {}
    except (DockerException, ValueError, AttributeError, TypeError) as error:
        # the library takes its own file's form for granted
        if not challenge:
            return Login()
        what, helper = f"Docker's log-in for {host} cannot be read", "or take its helper out of Docker's config.json"
        fix = f"docker login {host}" + (f", {helper}" if isinstance(error, DockerException) else "")
        raise EnginefarmError(Reason.REGISTRY_REFUSED, what, why=str(error), fix=fix) from error
    needed = is_basic(challenge)
    # files and credential helpers spell them differently
    user, password = (found.get(name) or found.get(name.title()) for name in ("username", "password"))
    if user is None and needed:
        raise EnginefarmError(Reason.REGISTRY_REFUSED, f"nobody is logged in to {host}", fix=f"docker login {host}")
    return Login(user=user, password=password or "", identity=found.get("IdentityToken"))


def is_basic(challenge: str) -> bool:
    """Say whether a registry wants user and password with each question."""
    return challenge.lower().startswith("basic")


def authorise(registry: Any, login: Login, refused: requests.Response) -> str:
    """Answer a registry that asks who we are; return the value of the header to send from now on.

    `registry`: oras-py's, whose session and authentication are used.

    Raises:
        PassingError: the token server did not answer this time.
        EnginefarmError: REGISTRY_REFUSED.

    """
    challenge = str(refused.headers.get("Www-Authenticate", ""))
    host = registry.hostname
    try:
        if login.identity is not None and challenge.lower().startswith("bearer"):
            return _sendable(f"Bearer {_exchange(registry.auth.session, login.identity, challenge)}")
        # the token that was given for reading does not do for writing, and the library keeps it
        registry.auth.token = None
        headers, _ = registry.auth.authenticate_request(refused, {})
        return _sendable(str(headers["Authorization"]))
    except _NO_TOKEN as error:
        # the library trusts what token servers say, and says nothing where they refuse
        what = f"{host} asks who you are, and did not take the answer"
        raise EnginefarmError(
            Reason.REGISTRY_REFUSED, what, why=challenge or repr(error), fix=f"docker login {host}"
        ) from error
    except (requests.RequestException, OSError, ValueError) as error:
        # a ValueError: the token server is nowhere
        raise as_passing(error, str(refused.url)) from error


def _sendable(header: str) -> str:
    if not header.isascii() or not header.isprintable():
        msg = "the token server gave what is no token"
        raise TypeError(msg)
    return header


def _exchange(session: Any, identity: str, challenge: str) -> str:
    """Get a token for an identity token, which oras-py does not know."""
    asked = oras.auth.utils.parse_auth_header(challenge)
    form = {
        "grant_type": "refresh_token",
        "client_id": "enginefarm",
        "refresh_token": identity,
        "service": asked.service or "",
        "scope": asked.scope or "",
    }
    response = session.post(asked.realm, data=form)
    if response.status_code != HTTPStatus.OK:
        msg = f"the token server says {response.status_code}"
        raise TypeError(msg)
    return str(response.json()["access_token"])
