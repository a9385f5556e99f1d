"""The Docker Engine's API over its socket: answers, streams, and connections that are taken over.

`Engine` speaks the newest version that both sides know and asks for it again whenever the engine was away, for it may
come back as another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import aiohttp
import msgspec
from msgspec import Struct, field
from yarl import URL

from domain import errors

#: One-shot statistics came with 1.41; what this asks means the same up to 1.47.
OLDEST, NEWEST = (1, 41), (1, 47)

_ASK_S = 30.0
_CONNECT_S = 5.0
_LIMIT = 16 * 1024 * 1024
_HEADER = 64 * 1024
_MESSAGE = 2_000

T = TypeVar("T")


class Refused(errors.SyncFailed):
    """The Docker Engine refuses what was asked; `said` are its own words."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"The Docker Engine answered {status}: {said}")
        self.status, self.said = status, said


class _Version(Struct):
    api: str = field(name="ApiVersion", default="")
    oldest: str = field(name="MinAPIVersion", default="1.12")


class _Fault(Struct):
    message: str = ""


class Machine(Struct):
    """What containers there have: bytes, cores, and whether the kernel's killer can be kept from them."""

    memory: int = field(name="MemTotal", default=0)
    cores: int = field(name="NCPU", default=1)
    oom_kill_disable: bool = field(name="OomKillDisable", default=False)


class Engine:
    """Each call raises Refused for an answer that is an error, errors.Unavailable where nobody answers, and
    errors.SyncFailed for an engine too old or too new."""

    def __init__(self, socket: str) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None
        self._version = ""
        self._machine: Machine | None = None
        self._negotiating = asyncio.Lock()

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        kind: type[T],
        within_s: float | None = _ASK_S,
    ) -> T:
        async with self.stream(method, path, query, body, within_s=within_s) as answer:
            return _read(await _whole(answer), kind)

    async def tell(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        within_s: float | None = _ASK_S,
    ) -> None:
        """The same where the answer says nothing."""
        async with self.stream(method, path, query, body, within_s=within_s) as answer:
            await _whole(answer)

    async def machine(self) -> Machine:
        if self._machine is None:
            self._machine = await self.ask("GET", "/info", kind=Machine)
        return self._machine

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        within_s: float | None = None,
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """What it sends, as it comes, until it ends or the deadline has passed."""
        version = self._version or await self._negotiate()
        data = None if body is None else msgspec.json.encode(body)
        async with self._request(method, f"/v{version}{path}", query or {}, data, within_s) as answer:
            yield answer

    async def take(self, path: str, query: Mapping[str, str]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that the engine hands over: after its headers it is a plain stream in both directions."""
        version = self._version or await self._negotiate()
        target = f"/v{version}{path}?{urlencode(query)}"
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await self._hijack(target)
        except (OSError, EOFError, asyncio.LimitOverrunError, TimeoutError) as error:
            raise self._away(error) from None

    async def _hijack(self, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(self._socket, limit=_HEADER)
        try:
            asked = f"POST {target} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
            writer.write(f"{asked}Content-Length: 0\r\n\r\n".encode())
            await writer.drain()
            header = await reader.readuntil(b"\r\n\r\n")
            status = int(header.split(None, 2)[1])
            if status not in (101, 200):
                raise Refused(status, _said(await reader.read(_HEADER)))
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _negotiate(self) -> str:
        async with self._negotiating:
            if not self._version:
                async with self._request("GET", "/version", {}, None, _ASK_S) as answer:
                    self._version = _agree(_read(await _whole(answer), _Version))
            return self._version

    @contextlib.asynccontextmanager
    async def _request(
        self, method: str, path: str, query: Mapping[str, str], data: bytes | None, within_s: float | None
    ) -> AsyncIterator[aiohttp.StreamReader]:
        url = URL(f"http://docker{path}" + (f"?{urlencode(query)}" if query else ""), encoded=True)
        timeout = aiohttp.ClientTimeout(total=within_s, sock_connect=_CONNECT_S)
        headers = {} if data is None else {"Content-Type": "application/json"}
        try:
            async with self._client().request(method, url, data=data, headers=headers, timeout=timeout) as answer:
                if answer.status >= 400:
                    raise Refused(answer.status, _said(await _whole(answer.content)))
                yield answer.content
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise self._away(error) from None

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            # A connection for each request: one kept from before the engine's restart would fail the next.
            connector = aiohttp.UnixConnector(path=self._socket, limit=0, force_close=True)
            self._session = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), read_bufsize=_HEADER
            )
        return self._session

    def _away(self, error: Exception) -> errors.Unavailable:
        self._version, self._machine = "", None
        return errors.Unavailable(f"The Docker Engine does not answer at {self._socket}: {type(error).__name__}")


def container(name: str, what: str = "") -> str:
    """The path of a container, or of something of it."""
    return f"/containers/{quote(name, safe='')}{what}"


def _agree(theirs: _Version) -> str:
    newest, oldest = _number(theirs.api), _number(theirs.oldest)
    if newest < OLDEST:
        raise errors.SyncFailed(f"The Docker Engine is too old: its API is {theirs.api}, 1.41 is needed")
    if oldest > NEWEST:
        raise errors.SyncFailed(f"The Docker Engine is too new: its API begins with {theirs.oldest}")
    major, minor = min(newest, NEWEST)
    return f"{major}.{minor}"


def _number(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    try:
        return int(major), int(minor)
    except ValueError:
        raise errors.SyncFailed("What answers there is no Docker Engine: it names no version of its API") from None


async def _whole(answer: aiohttp.StreamReader) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for part in answer.iter_any():
        parts.append(part)
        size += len(part)
        if size > _LIMIT:
            raise errors.SyncFailed(f"The Docker Engine sends more than {_LIMIT // 1024 // 1024} MiB in one answer")
    return b"".join(parts)


def _read(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise errors.SyncFailed("The Docker Engine's answer is of no use: not what its API says") from None


def _said(raw: bytes) -> str:
    """The reason in an error's body; podman and proxies may send others."""
    try:
        text = msgspec.json.decode(raw, type=_Fault).message
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = raw.decode(errors="replace").strip()
    return text[:_MESSAGE]


def filters(**wanted: list[str]) -> dict[str, str]:
    """As lists of containers are narrowed."""
    return {"filters": json.dumps(wanted)}
