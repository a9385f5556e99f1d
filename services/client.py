"""A small synchronous HTTP client for the command line: JSON in and out, safe to repeat, patient with a restart."""

from __future__ import annotations

import http.client
import json
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import urlsplit

#: What an interrupted exchange looks like; http.client raises ValueError for a closed response as well.
_INTERRUPTED = (OSError, http.client.HTTPException)
_BUSY = (429, 503)


class Unreachable(Exception):
    """Nobody answers there, or somebody who is not Undrift; the message names the address."""


class WrongAddress(Exception):
    """The address or the token cannot be used in a request at all."""


class Refused(Exception):
    """The instance answered with an error. `code` is the family's own; `details` is what a program may need."""

    def __init__(self, status: int, code: str, message: str, details: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, dict(details)


@dataclass(frozen=True)
class Answer:
    """`body` is the JSON of a success; header names are in lower case."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


class Client:
    """One kept connection to one instance.

    Every POST carries an idempotency key, so repeating a request that was cut off does nothing twice. An instance
    that answered before may be restarting: it is waited for `patience_s` seconds; one that never did is not.
    """

    def __init__(self, url: str, token: str | None = None, *, patience_s: float = 30.0) -> None:
        """Raises WrongAddress."""
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError as error:
            raise WrongAddress(f"{url!r} is not an address: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise WrongAddress(f"{url!r} is not an address like http://127.0.0.1:8080")
        if token is not None and not (token.isascii() and token.isprintable()):
            raise WrongAddress("the token holds characters that no token has")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._address = (parts.hostname, port)
        self._prefix = parts.path.rstrip("/")
        self._headers = {"Accept": "application/json", "User-Agent": "undrift-cli"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self._patience_s = patience_s
        self._connection: http.client.HTTPConnection | None = None
        self._answered = False

    def get(self, path: str, *, timeout_s: float = 30.0) -> Answer:
        """Raises Unreachable and Refused, as `post` does."""
        return self._call("GET", path, None, {}, timeout_s)

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
        timeout_s: float = 60.0,
    ) -> Answer:
        """`key` is the idempotency key, one of its own where none is given."""
        chosen = {"Idempotency-Key": key or uuid.uuid4().hex, **(headers or {})}
        encoded = None if body is None else json.dumps(body, ensure_ascii=False).encode()
        if encoded is not None:
            chosen["Content-Type"] = "application/json"
        return self._call("POST", path, encoded, chosen, timeout_s)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def raw(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        timeout_s: float = 60.0,
    ) -> tuple[int, Mapping[str, str], bytes]:
        """(status, headers, body) of a request that may be repeated. Raises Unreachable, and Refused for an error."""
        status, found, raw = self._patient(method, path, body, headers or {}, timeout_s)
        if status >= 400:
            self._judge(status, found, raw)
        return status, found, raw

    def _call(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float) -> Answer:
        return self._judge(*self._patient(method, path, body, headers, timeout_s))

    def _patient(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, dict[str, str], bytes]:
        deadline = time.monotonic() + self._patience_s
        pause_s = 0.1
        while True:
            try:
                status, found, raw = self._exchange(method, path, body, headers, timeout_s)
            except _INTERRUPTED as error:
                self.close()
                if not self._answered or time.monotonic() + pause_s > deadline:
                    raise Unreachable(f"{self.url} does not answer: {_reason(error)}") from None
            else:
                self._answered = True
                if status not in _BUSY or time.monotonic() + _retry_after(found) > deadline:
                    return status, found, raw
                pause_s = max(pause_s, _retry_after(found))
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 1.0)

    @contextmanager
    def stream(
        self, path: str, headers: Mapping[str, str], *, timeout_s: float = 60.0
    ) -> Iterator[http.client.HTTPResponse]:
        """A large answer, to be read in pieces, over a connection of its own. Raises Unreachable."""
        connection = self._kind(*self._address, timeout=timeout_s)
        try:
            connection.request("GET", self._prefix + path, None, {**self._headers, **headers})
            yield connection.getresponse()
        except _INTERRUPTED as error:
            raise Unreachable(f"{self.url} does not answer: {_reason(error)}") from None
        finally:
            connection.close()

    def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], timeout_s: float
    ) -> tuple[int, dict[str, str], bytes]:
        if self._connection is None:
            self._connection = self._kind(*self._address, timeout=min(timeout_s, 10.0))
            self._connection.connect()
        cast(socket.socket, self._connection.sock).settimeout(timeout_s)
        self._connection.request(method, self._prefix + path, body, {**self._headers, **headers})
        response = self._connection.getresponse()
        raw = response.read()
        found = {name.lower(): value for name, value in response.getheaders()}
        if response.will_close:
            self.close()
        return response.status, found, raw

    def _judge(self, status: int, headers: Mapping[str, str], raw: bytes) -> Answer:
        try:
            body = json.loads(raw)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise Unreachable(f"{self.url} does not answer as Undrift does (status {status})")
        if 200 <= status < 300:
            return Answer(status, body, headers)
        raise _refused(status, body)


def _refused(status: int, body: Mapping[str, Any]) -> Refused:
    """An error in whichever of the families' shapes."""
    code = str(body.get("code") or body.get("errorCode") or "")
    if "error" in body:
        message, details = str(body["error"]), body.get("details")
    else:
        said = [str(body[name]) for name in ("message", "details") if body.get(name)]
        message, details = ": ".join(said) or f"status {status}", body.get("context")
    return Refused(status, code, message, details if isinstance(details, dict) else {})


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _retry_after(headers: Mapping[str, str]) -> float:
    text = headers.get("retry-after", "")
    return float(text) if text.isdecimal() else 1.0
