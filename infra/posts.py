"""POST to one address outside: connections that are kept, a budget of time for each attempt, and as little as possible
believed of what answers.

Hand-written because it has to check the address that it connects to, end what drips, and cost little: a general client
takes three times the processor. Redirects, proxies and cookies do not exist here.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from typing import cast

import httptools
from msgspec import Struct

from infra import config, egress

#: Of an answer nobody reads more; it is thrown away.
_MOST = 64 * 1024
#: How long the rest of an answer may take whose status is known, so that its connection can be used again.
_REST_S = 1.0
#: Unused connections are closed before most servers do so.
_IDLE_S = 4.0


class Failed(Exception):
    """No answer; the message says why in words that tell nothing of what was sent or answered."""


class Answer(Struct, frozen=True):
    """`retry_after` is the header as it came."""

    status: int
    retry_after: str | None = None


class _Line(asyncio.Protocol):
    """One connection, with one request at a time on it."""

    def __init__(self, poster: Poster) -> None:
        self._poster = poster
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Answer] | None = None
        self._retry_after: str | None = None
        self._received = 0
        self._whole = True
        self._resting = False
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport | None = None
        self.since = 0.0

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._whole:
            return self.end("the connection was broken")  # nobody asked
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return self.end("the answer was not HTTP")
        if self._whole or self._waiter is None or not (self._waiter.done() or self._received > _MOST):
            return None
        if self._received > _MOST:
            self.end("the answer was too large")
        elif not self._resting:
            self._rest()
        return None

    def eof_received(self) -> bool:
        self.end("the connection was closed")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self.end("the connection was broken" if error else "the connection was closed")

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 11 and name.lower() == b"retry-after":
            self._retry_after = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Answer(status, self._retry_after))

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < 200:
            return
        self._whole = True
        self._disarm()
        if self._parser.should_keep_alive() and self._received <= _MOST:
            self.since = self._loop.time()
            self._poster.give(self)
        else:
            self.end("")

    # What the poster calls.

    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    @property
    def heard(self) -> bool:
        """Whether anything of an answer has come."""
        return self._received > 0

    async def ask(self, request: bytes, deadline: float) -> Answer:
        """The answer as soon as its status is known. Raises Failed."""
        assert self.transport is not None
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        self._retry_after, self._received, self._whole, self._resting = None, 0, False, False
        self._timer = self._loop.call_at(deadline, self.end, "there was no answer in time")
        self.transport.write(request)
        try:
            return await waiter
        except BaseException:
            if self._waiter is waiter:
                self.end("")
            raise

    def end(self, reason: str) -> None:
        """Closes it; whoever waits is told why."""
        self._disarm()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(Failed(reason))
        if self.transport is not None:
            self.transport.abort()
            self.transport = None

    def _rest(self) -> None:
        """Its status is known. Whoever asked goes on, and by then somebody else may be asking: all is settled here."""
        self._disarm()
        self._resting = True
        self._timer = self._loop.call_later(_REST_S, self.end, "")

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Poster:
    """Posts to one target. As many connections as there are posts at the same time."""

    def __init__(
        self,
        target: egress.Target,
        settings: config.Webhooks,
        tls: ssl.SSLContext,
        resolver: egress.Resolve = egress.system_resolver,
    ) -> None:
        self.target = target
        self._settings, self._tls, self._resolver = settings, tls, resolver
        self._idle: deque[_Line] = deque()
        self._lookup: asyncio.Future[list[str]] | None = None
        self._closed = False
        self._head = f"POST {target.path} HTTP/1.1\r\nHost: {target.authority}\r\n".encode()

    async def post(self, headers: bytes, body: bytes, timeout_s: float) -> Answer:
        """`headers` are lines that end in CR LF, without those of the length and the host. Raises Failed, and
        egress.Refused where the target leads to an address that is not allowed."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        request = b"%b%bContent-Length: %d\r\n\r\n%b" % (self._head, headers, len(body), body)
        line = self._free()
        if line is not None:
            try:
                return await line.ask(request, deadline)
            except Failed:
                if asyncio.get_running_loop().time() >= deadline or line.heard:
                    raise  # else it was closed while nobody used it, and says nothing of the receiver
        return await (await self._connect(deadline)).ask(request, deadline)

    def give(self, line: _Line) -> None:
        """Takes back a connection that can be used again."""
        if self._closed:
            line.end("")
        else:
            self._idle.append(line)

    def close(self) -> None:
        """Ends the connections that are not in use, and the others once they are not any more."""
        self._closed = True
        while self._idle:
            self._idle.pop().end("")

    def _free(self) -> _Line | None:
        oldest = asyncio.get_running_loop().time() - _IDLE_S
        while self._idle and self._idle[0].since < oldest:
            self._idle.popleft().end("")
        while self._idle:
            line = self._idle.pop()
            if line.usable:
                return line
        return None

    async def _connect(self, deadline: float) -> _Line:
        try:
            async with asyncio.timeout_at(deadline):
                addresses = await self._addresses()
                for n, address in enumerate(addresses, start=1):
                    try:
                        return await self._open(address)
                    except OSError:
                        if n == len(addresses):
                            raise
        except TimeoutError:
            raise Failed("no connection in time") from None
        except ssl.SSLError:
            raise Failed("no connection that can be trusted (TLS)") from None
        except OSError:
            raise Failed("no connection") from None
        raise Failed("no connection")

    async def _open(self, address: str) -> _Line:
        """To this address, whatever the name says by now."""
        tls, name = (self._tls, self.target.host) if self.target.tls else (None, None)
        transport, line = await asyncio.get_running_loop().create_connection(
            lambda: _Line(self), address, self.target.port, ssl=tls, server_hostname=name
        )
        try:
            egress.check_address(self.target, str(transport.get_extra_info("peername")[0]), self._settings)
        except egress.Refused:
            line.end("")
            raise
        return line

    async def _addresses(self) -> list[str]:
        """One look-up at a time: a name server that does not answer holds one thread for each target."""
        if self._lookup is None:
            self._lookup = asyncio.ensure_future(egress.resolve(self.target, self._settings, self._resolver))
            self._lookup.add_done_callback(self._looked_up)
        return await asyncio.shield(self._lookup)

    def _looked_up(self, lookup: asyncio.Future[list[str]]) -> None:
        self._lookup = None
        if not lookup.cancelled():
            lookup.exception()  # whoever asked may have gone
