"""The Panel's remote interface, as a node asks it: each call within a budget, after which nothing more is sent."""

from __future__ import annotations

import asyncio
import base64
import random
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, Literal, TypeVar
from urllib.parse import urlsplit

import aiohttp
import msgspec
from msgspec import Struct, field

from domain import errors
from domain.plans.servers import Listed, ListPage
from infra import wings
from infra.config import Panel as Settings

_FIRST_S, _FACTOR, _SPREAD, _LONGEST_S = 0.5, 1.5, 0.5, 12.0
_LIMIT = 16 * 1024 * 1024
_PIECE = 64 * 1024
_PER_PAGE = 50
_PAGES_AT_ONCE = 4

T = TypeVar("T")


class Said(Struct):
    """One of the errors that the Panel names; `status` is a text there."""

    code: str = "_MissingResponseCode"
    status: str | int = ""
    detail: str = ""


class _Faults(Struct):
    errors: list[Said] = field(default_factory=list)


class Login(Struct):
    """Somebody who may use SFTP on a server."""

    server: str
    user: str
    permissions: list[str] = field(default_factory=list)


class Activity(Struct):
    """What somebody did; `timestamp` is RFC 3339."""

    server: str
    event: str
    metadata: dict[str, Any]
    ip: str
    timestamp: str
    user: str | None = None


class Refused(errors.RemoteRefused):
    """The Panel refuses what was asked; trying again changes nothing."""

    def __init__(self, status: int, said: Said) -> None:
        super().__init__(f"The Panel answered {status}: {said.code}")
        self.status, self.said = status, said


class Panel:
    """A client to be entered as an asynchronous context manager.

    Raises errors.NotFound where the Panel does not know the server, Refused for what it refuses otherwise,
    errors.RemoteRefused for an answer that is of no use, errors.RemoteUnavailable when the budget is used up.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._base = settings.url.rstrip("/") + "/api/remote"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Panel:
        settings = self._settings
        secure: ssl.SSLContext | bool = True
        if settings.ca_file:
            secure = await asyncio.to_thread(ssl.create_default_context, cafile=settings.ca_file)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=secure, limit=settings.connections),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s),
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Accept": "application/vnd.pterodactyl.v1+json", "Content-Type": "application/json"},
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def server(self, uuid: str, within_s: float | None = None) -> bytes:
        """The configuration of one server, as the Panel wrote it."""
        return await self._ask("GET", f"/servers/{uuid}", within_s=within_s)

    async def servers(self, within_s: float | None = None) -> AsyncIterator[Sequence[Listed]]:
        """All servers of this node, page by page, in no order."""
        first = await self._page(0, within_s)
        yield first.data
        rest = range(max(first.meta.current_page, 1) + 1, first.meta.last_page + 1)
        for start in range(0, len(rest), _PAGES_AT_ONCE):
            some = rest[start : start + _PAGES_AT_ONCE]
            for page in await asyncio.gather(*(self._page(number, within_s) for number in some)):
                yield page.data

    async def reset(self) -> None:
        """After a start: what the Panel believed to be going on here is not."""
        await self._ask("POST", "/servers/reset")

    async def login(
        self,
        kind: Literal["password", "public_key"],
        username: str,
        secret: str,
        ip: str,
        session: bytes = b"",
        version: bytes = b"",
    ) -> Login:
        """Who may use SFTP with these credentials, a password or the line of a public key; whoever may not is Refused.
        `session` and the client's `version` are for the Panel's own log."""
        body = {
            "type": kind,
            "username": username,
            "password": secret,
            "ip": ip,
            "session_id": base64.b64encode(session).decode(),
            "client_version": base64.b64encode(version).decode(),
        }
        return self._read(await self._ask("POST", "/sftp/auth", body), Login)

    async def report(self, activities: Sequence[Activity]) -> None:
        await self._ask("POST", "/activity", {"data": activities})

    async def _page(self, number: int, within_s: float | None) -> ListPage:
        raw = await self._ask("GET", f"/servers?page={number}&per_page={_PER_PAGE}", within_s=within_s)
        return self._read(raw, ListPage)

    def _read(self, raw: bytes, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(raw, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise errors.RemoteRefused("The Panel's answer is of no use: not what its interface says") from None

    async def _ask(self, method: str, path: str, body: Any = None, within_s: float | None = None) -> bytes:
        """Tried again until the budget is used up, as the real Wings does; no request outlives the budget, so that
        nothing is learned after whoever waits for it has given up."""
        until = time.monotonic() + (self._settings.budget_s if within_s is None else within_s)
        pause_s = _FIRST_S
        data = None if body is None else msgspec.json.encode(body)
        while True:
            try:
                async with asyncio.timeout(max(until - time.monotonic(), 0)):
                    return await self._once(method, path, data)
            except TimeoutError:
                raise errors.RemoteUnavailable("The Panel did not answer in time") from None
            except errors.RemoteUnavailable:
                wait_s = pause_s * random.uniform(1 - _SPREAD, 1 + _SPREAD)
                if time.monotonic() + wait_s >= until:
                    raise
                await asyncio.sleep(wait_s)
                pause_s = min(pause_s * _FACTOR, _LONGEST_S)

    async def _once(self, method: str, path: str, data: bytes | None) -> bytes:
        assert self._session is not None
        at = urlsplit(self._base).netloc
        try:
            async with self._session.request(
                method, self._base + path, data=data, allow_redirects=False, headers=self._credentials()
            ) as answer:
                return self._judge(answer.status, await _body(answer))
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError):
            raise errors.RemoteRefused(f"A secure connection to the Panel at {at} is not possible") from None
        except aiohttp.InvalidURL:
            raise errors.RemoteRefused("The Panel's address is not one that can be asked") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise errors.RemoteUnavailable(f"The Panel is out of reach: {type(error).__name__}") from None

    def _credentials(self) -> dict[str, str]:
        """As they are now: the Panel may have renewed them."""
        id, token = self._settings.token_id, self._settings.token
        return {
            "User-Agent": f"Pterodactyl Wings/v{wings.VERSION} (id:{id})",
            "Authorization": f"Bearer {id}.{token}",
        }

    def _judge(self, status: int, body: bytes) -> bytes:
        if 200 <= status < 300:
            return body
        if 300 <= status < 400:
            raise errors.RemoteRefused("The Panel sends us elsewhere; its address may have changed")
        said = _said(body)
        if status == 404:
            raise errors.NotFound("The Panel knows no such server", kind="server")
        if 400 <= status < 500:
            raise Refused(status, said)
        raise errors.RemoteUnavailable(f"The Panel answered {status}: {said.code}")


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    parts: list[bytes] = []
    size = 0
    if (answer.content_length or 0) > _LIMIT:
        raise _too_much()
    async for part in answer.content.iter_chunked(_PIECE):
        parts.append(part)
        size += len(part)
        if size > _LIMIT:
            raise _too_much()
    return b"".join(parts)


def _too_much() -> errors.RemoteRefused:
    return errors.RemoteRefused(f"The Panel sends more than {_LIMIT // 1024 // 1024} MiB in one answer")


def _said(body: bytes) -> Said:
    try:
        found = msgspec.json.decode(body, type=_Faults).errors
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = []
    return found[0] if found else Said()
