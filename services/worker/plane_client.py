"""Requests to Plane: under its rate limit, again where that helps, and with words for a person where it does not."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from domain import errors
from domain.plans import plane
from services.worker import remote
from services.worker.collecting import Context

T = TypeVar("T")

#: How often a request is made that fails for reasons that may pass.
_TRIES = 5
_PAUSE_S = 0.5
_PAUSE_MAX_S = 30.0
_STORM = 200
_SAID = 200


class Denied(Exception):
    """This is not to be had with this key, whatever else is."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Client:
    """A context manager. `requests` counts what was asked."""

    def __init__(self, context: Context, spec: plane.Spec) -> None:
        self._remote, self._log, self._deadline = context.remote, context.log, context.deadline
        self._spec, self._key = spec, context.secrets["apiKey"]
        self._name = hashlib.sha256(f"{spec.base_url}\0{self._key}".encode()).hexdigest()
        self._http = remote.Http(connect_s=min(10.0, spec.timeout), total_s=spec.timeout)
        self.requests = 0

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.__exit__(kind, error, trace)

    # What is asked.

    def check(self) -> str:
        """Whether the key is good; the remote's time. Raises errors.RemoteRefused."""
        return self._ask(plane.me_url(self._spec), _object)[1]

    def page(self, url: str) -> tuple[plane.Envelope, str]:
        """One page of a list, and the remote's time. Raises Denied."""
        return self._ask(url, plane.envelope)

    def row(self, url: str) -> plane.Row | None:
        """One thing by its id; None when it is not there. Raises Denied."""
        try:
            found: plane.Row = self._ask(url, _object)[0]
        except Denied as denied:
            if denied.status == 404:
                return None
            raise
        return found

    # How.

    def _ask(self, url: str, read: Callable[[Any], T]) -> tuple[T, str]:
        """Raises Denied, errors.RemoteRefused, errors.RemoteUnavailable, errors.RemoteBusy, Stopped."""
        tries = 0
        while True:
            try:
                answer = self._answer(url)
                if answer.status >= 500:
                    raise errors.RemoteUnavailable(f"{self._host} has trouble of its own (HTTP {answer.status})")
                if answer.status != 200:
                    raise self._refusal(url, answer)
                return self._read(answer, read), _date(answer)
            except errors.RemoteBusy:
                raise
            except errors.RemoteUnavailable as error:
                tries += 1
                if tries >= _TRIES:
                    raise
                self._log("warn", f"{error.message}; asking again")
                self._remote.sleep(min(_PAUSE_MAX_S, _PAUSE_S * 2 ** (tries - 1)) * random.uniform(0.5, 1))

    @property
    def _host(self) -> str:
        return remote.place(self._spec.base_url)

    def _answer(self, url: str) -> remote.Response:
        """The first answer that is not 429. Raises errors.RemoteBusy when the remote wants more than our patience."""
        waited, refusals = 0.0, 0
        while True:
            answer = self._once(url)
            if answer.status != 429:
                return answer
            refusals += 1
            wait = remote.seconds(answer.headers.get("retry-after"))
            pause = _until_reset(answer) if wait is None else wait
            pause = max(pause if pause is not None else _PAUSE_S * 2 ** min(refusals, 6), min(0.02 * refusals, 1.0))
            waited += pause
            if waited > self._spec.patience or refusals > _STORM:
                raise errors.RemoteBusy(f"{self._host} asks to be left alone for {pause:.0f} s", retry_after=pause)
            if refusals == 1:
                self._log("info", f"{self._host} allows no more requests for {pause:.0f} s")
            self._remote.sleep(pause)

    def _once(self, url: str) -> remote.Response:
        """Within the limit that all runs with this key share."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise errors.TimedOut()
        self._remote.permit(self._name, self._spec.patience)
        self.requests += 1
        try:
            answer = self._http.get(url, {"X-Api-Key": self._key, "Accept": "application/json"})
        except errors.Error:
            self._remote.learn(self._name)
            raise
        wait = remote.seconds(answer.headers.get("retry-after")) if answer.status in (429, 503) else None
        left, reset = _number(answer.headers.get("x-ratelimit-remaining")), _reset(answer)
        self._remote.learn(self._name, None if left is None else int(left), reset, wait)
        return answer

    def _read(self, answer: remote.Response, read: Callable[[Any], T]) -> T:
        try:
            return read(msgspec.json.decode(answer.body))
        except (ValueError, msgspec.MsgspecError, RecursionError):
            raise errors.RemoteUnavailable(f"{self._host} answers what Plane's API never does") from None

    def _refusal(self, url: str, answer: remote.Response) -> Exception:
        """What a status below 500 means."""
        said = _said(answer)
        if answer.status == 401 or (answer.status == 403 and url == plane.me_url(self._spec)):
            return errors.RemoteRefused(
                f"{self._host} does not accept the API key{said}; set a valid one as config.apiKey"
            )
        if url == plane.me_url(self._spec):
            return errors.RemoteRefused(
                f"There is no Plane API at {self._host} (HTTP {answer.status}); check config.baseUrl"
            )
        if answer.status == 403:
            self.check()  # raises when it is the key itself that is no longer good
        return Denied(answer.status, f"HTTP {answer.status}{said}")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("no object")
    return value


def _said(answer: remote.Response) -> str:
    """What the answer says to a person, if that is short and plain."""
    try:
        body = msgspec.json.decode(answer.body)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return ""
    text = (body.get("detail") or body.get("error")) if isinstance(body, dict) else None
    return f" ({text[:_SAID]})" if isinstance(text, str) and text.isprintable() else ""


def _number(text: str | None) -> float | None:
    found = remote.seconds(text)
    return found if found is not None and found < 2**40 else None


def _reset(answer: remote.Response) -> float | None:
    """When the window ends, of which only whole seconds are told."""
    at = _number(answer.headers.get("x-ratelimit-reset"))
    return None if at is None else at + 1


def _until_reset(answer: remote.Response) -> float | None:
    at = _reset(answer)
    return None if at is None else max(0.0, at - datetime.now(UTC).timestamp())


def _date(answer: remote.Response) -> str:
    """The remote's time, ours where it does not say."""
    try:
        at = parsedate_to_datetime(answer.headers["date"])
    except (KeyError, ValueError, TypeError):
        at = datetime.now(UTC)
    return plane.stamp(at if at.tzinfo is not None else at.replace(tzinfo=UTC))
