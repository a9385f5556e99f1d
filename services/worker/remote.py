"""HTTP as workers' children speak it: blocking, bounded in time and size, to the host that was named and no other."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self
from urllib.parse import urlsplit

from domain import errors
from infra import lean

if TYPE_CHECKING:
    import aiohttp
    import yarl
else:
    aiohttp, yarl = lean.later("aiohttp"), lean.later("yarl")

USER_AGENT = "Undrift"
_HOPS = 5
_PIECE = 64 * 1024
_MIB = 1024 * 1024
#: Where no remote of ours lives: an address there is a mistake, or somebody after the cloud's own metadata.
_NOWHERE = ("is_link_local", "is_multicast", "is_unspecified", "is_reserved")


class Response(NamedTuple):
    """Header names are in lower case; of fields sent twice the last counts."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Http:
    """A client to be entered as a context manager. `connect_s` and `total_s` bound each request, `limit` its answer.

    What the status means is the caller's business. Raises errors.RemoteUnavailable for what may pass (nobody
    answers, time is up, the answer broke off) and errors.RemoteRefused for what will not (an address that cannot be,
    a certificate that is not valid, a redirect to elsewhere, an answer larger than allowed).
    """

    def __init__(self, *, connect_s: float = 10.0, total_s: float = 60.0, limit: int = 32 * _MIB) -> None:
        self._timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=connect_s)
        self._limit = limit
        self._loop: asyncio.AbstractEventLoop | None = None
        self._session: aiohttp.ClientSession | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._session = self._loop.run_until_complete(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop is not None
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
        self._loop.close()

    async def _open(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=4, socket_factory=_socket)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=self._timeout,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT},
        )

    def get(self, url: str, headers: Mapping[str, str] | None = None) -> Response:
        """One GET, following redirects on the same host."""
        assert self._loop is not None
        return self._loop.run_until_complete(self._get(check(url), headers or {}))

    async def _get(self, url: str, headers: Mapping[str, str]) -> Response:
        host = urlsplit(url).hostname
        for _ in range(_HOPS):
            response = await self._once(url, headers)
            where = response.headers.get("location")
            if response.status not in (301, 302, 303, 307, 308) or where is None:
                return response
            url = check(_joined(url, where))
            if urlsplit(url).hostname != host:
                raise errors.RemoteRefused(f"{host} sends us to another host, {urlsplit(url).hostname}")
        raise errors.RemoteRefused(f"{host} sends us from one place to another and comes to no end")

    async def _once(self, url: str, headers: Mapping[str, str]) -> Response:
        assert self._session is not None
        at = place(url)
        try:
            async with self._session.get(url, headers=headers, allow_redirects=False) as answer:
                body = await self._body(answer, at)
                return Response(answer.status, {name.lower(): text for name, text in answer.headers.items()}, body)
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError, ssl.SSLError) as error:
            raise errors.RemoteRefused(f"A secure connection to {at} is not possible: {_reason(error)}") from None
        except aiohttp.InvalidURL:
            raise errors.RemoteRefused(f"{at} is not an address that can be asked") from None
        except aiohttp.ClientConnectorDNSError:
            raise errors.RemoteUnavailable(f"There is no host of the name {urlsplit(url).hostname}") from None
        except TimeoutError:
            raise errors.RemoteUnavailable(f"{at} did not answer in time") from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, Forbidden):
                raise errors.RemoteRefused(f"{at} is an address where nothing is ever asked") from None
            raise errors.RemoteUnavailable(f"{at} is out of reach: {_reason(error)}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise errors.RemoteUnavailable(f"{at} broke off its answer: {type(error).__name__}") from None

    async def _body(self, answer: aiohttp.ClientResponse, at: str) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in answer.content.iter_chunked(_PIECE):
            parts.append(part)
            size += len(part)
            if size > self._limit:
                raise errors.RemoteRefused(f"{at} sends more than {self._limit // _MIB} MiB in one answer")
        return b"".join(parts)


class Forbidden(OSError):
    """The address is one where nothing is asked."""


def check(url: str) -> str:
    """An http or https address with a host and without credentials. Raises errors.RemoteRefused."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # out of range: ValueError
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        good = False
    if not good:
        raise errors.RemoteRefused("An address begins with http:// or https:// and a host, without user and password")
    return url


def place(url: str) -> str:
    """The part of an address that may be told: host and port."""
    return urlsplit(url).netloc.rpartition("@")[2]


def seconds(text: str | None) -> float | None:
    """The seconds of a `Retry-After`; None for what is none (a date too: clocks differ)."""
    try:
        found = None if text is None else float(text)
    except ValueError:
        return None
    return found if found is not None and 0 <= found < float("inf") else None


def _joined(url: str, where: str) -> str:
    try:
        return str(yarl.URL(url).join(yarl.URL(where)))
    except ValueError:
        return ""


def _socket(info: Any) -> socket.socket:
    """As aiohttp would make it, unless the address that a name led to is one where nothing is asked."""
    family, kind, protocol, _, address = info
    found = ipaddress.ip_address(str(address[0]).partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    if any(getattr(mapped or found, name) for name in _NOWHERE):
        raise Forbidden(str(found))
    return socket.socket(family=family, type=kind, proto=protocol)


def _reason(error: BaseException) -> str:
    """In a few words, without addresses."""
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return inner.verify_message
    return getattr(inner, "strerror", None) or getattr(inner, "reason", None) or type(inner).__name__
