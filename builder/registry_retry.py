"""What is worth a second try when talking to a registry, and how long to wait for it."""

from __future__ import annotations

import email.utils
import http.client
import re
import threading
import time

import requests
import urllib3

from builder.errors import EnginefarmError, Reason

ATTEMPTS = 5
PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""What passes on a second attempt: a server that is busy or restarts."""

_PAUSE_S = 0.5
# who is told to wait longer had better come back another time
_LONGEST_PAUSE_S = 120.0
_MANY = 64 << 10
_NUMBER = re.compile(r"[0-9]{1,18}")
_SECRET = re.compile(r"\?[^\s)'\"]*|(?<=//)[^/\s@]*@")


class PassingError(Exception):
    """Something that may pass. `pause_s`: how long the server asks to wait."""

    def __init__(self, why: str, pause_s: float | None = None) -> None:
        super().__init__(why)
        self.pause_s = pause_s


class Patience:
    """Attempts at one thing. Whoever gets further between two of them has all of them again."""

    def __init__(self, cancel: threading.Event, attempts: int = ATTEMPTS) -> None:
        self._cancel = cancel
        self._attempts = attempts
        self._failed = 0

    def progress(self, count: int) -> None:
        """Note that so many bytes went over since the last failure."""
        if count >= _MANY:
            self._failed = 0

    def pause(self, error: PassingError, url: str) -> None:
        """Wait before the next attempt.

        Raises:
            EnginefarmError: REGISTRY_UNREACHABLE after the last one, INTERRUPTED.

        """
        pause_s = error.pause_s if error.pause_s is not None else _PAUSE_S * float(2**self._failed)
        self._failed += 1
        if self._failed >= self._attempts or pause_s > _LONGEST_PAUSE_S:
            what = f"{shown(url)}: the registry does not answer"
            raise EnginefarmError(Reason.REGISTRY_UNREACHABLE, what, why=str(error)) from error
        if self.wait(pause_s):
            raise EnginefarmError(Reason.INTERRUPTED, "talking to a registry was stopped") from error

    def wait(self, pause_s: float) -> bool:
        """Wait; true where it is time to stop."""
        return self._cancel.wait(pause_s)


def as_passing(error: Exception, url: str) -> Exception:
    """Tell what may pass (refused, reset, timed out) from what does not (names, certificates, URLs)."""
    why = _SECRET.sub("", str(error) or repr(error))
    cause = getattr(error.args[0], "reason", None) if error.args else None
    lasting = (
        isinstance(error, requests.exceptions.SSLError | requests.exceptions.InvalidURL | FileNotFoundError)
        or isinstance(cause, urllib3.exceptions.NameResolutionError | urllib3.exceptions.SSLError)
        or (isinstance(error, OSError) and "CA certificate" in why)
    )
    if lasting:
        what = f"{shown(url)} cannot be reached"
        return EnginefarmError(Reason.REGISTRY_UNREACHABLE, what, why=why, fix=_fix_of_tls(why))
    broken = (
        requests.ConnectionError,
        requests.Timeout,
        requests.exceptions.ChunkedEncodingError,
        urllib3.exceptions.HTTPError,
        http.client.HTTPException,
        ConnectionError,
        TimeoutError,
    )
    if isinstance(error, broken):
        return PassingError(why)
    return EnginefarmError(Reason.REGISTRY_UNREACHABLE, f"{shown(url)} cannot be reached", why=why)


def _fix_of_tls(why: str) -> str | None:
    """Say what helps where no TLS came about; null where it is something else."""
    if "WRONG_VERSION_NUMBER" in why or "record layer failure" in why:
        return "if it talks plain HTTP, --plain-http allows it; else check name, port and proxy"
    if "CERTIFICATE_VERIFY_FAILED" in why or "CA certificate" in why:
        return "let REQUESTS_CA_BUNDLE or SSL_CERT_FILE name a file of certificates with that of its authority"
    return None


def retry_after(text: str | None) -> float | None:
    """Read the header of that name: seconds to wait, null where it says nothing."""
    if text is None:
        return None
    if (seconds := number(text.strip())) is not None:
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def number(text: str | None) -> int | None:
    """Read a count that a header tells; null where it tells none. Other alphabets have digits as well."""
    return int(text) if text is not None and _NUMBER.fullmatch(text) else None


def shown(url: str) -> str:
    """Shorten a URL for messages: a password may stand before the host, and storage takes the query for one."""
    return _SECRET.sub("", url)
