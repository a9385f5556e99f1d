"""One connection: uvicorn's protocol, with a patience that ends and answers in the family's shape."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import Any
from urllib.parse import unquote

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from infra import config
from services.gateway import dialects
from services.gateway.commons import Shared
from services.gateway.cycle import BODY, EXTENSIONS, Cycle
from services.gateway.headers import Pair
from services.gateway.inlet import Inlet
from services.gateway.intake import Intake
from services.gateway.outlet import Outlet, Stream

MAX_TARGET = 16 * 1024
MAX_HEADER = 64 * 1024
MAX_FIELDS = 200

_LINGER_S = 2.0
_LARGE = 100_000
_FRESH, _IDLE, _HEADER, _BODY, _DRAIN, _REFUSED = range(6)

# Clients cause what uvicorn logs; what is worth a line is logged by us, once.
_QUIET = logging.getLogger("undrift.gateway.http")
_QUIET.setLevel(logging.CRITICAL + 1)


def _target(url: bytes) -> tuple[bytes, bytes]:
    """Path and query of a request's target."""
    if url.startswith(b"/") and not url.startswith(b"//") and b"#" not in url:
        path, _, query = url.partition(b"?")
        return path, query
    parsed = httptools.parse_url(url)
    return parsed.path, parsed.query or b""


class _Stop(Exception):
    """The parser is to stop here."""


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, and an end to patience: for headers, slow bodies, slow readers, idle connections.

    `_since` is when the sweep first saw the present phase, so that a request itself never reads the clock.
    """

    def __init__(self, shared: Shared, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(shared.config, shared.state, {}, loop)
        self.logger = _QUIET
        self.access_log = False
        self.url = b""
        self._shared = shared
        self._phase = _FRESH
        self._since: float | None = None
        self._stalled_since: float | None = None
        self._closing_since: float | None = None
        self._arrived = 0
        self._header_size = 0
        self._hosts = 0
        self._refusal = 400
        self._deaf = False
        self._declining = False
        self._address = ""
        self._left = 0
        self._inlet: Inlet | None = None

    # what the transport says

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._address = self.client[0] if self.client else ""
        if not self._shared.welcome(self._address):
            self._refuse(503, [(b"retry-after", b"1")])

    def connection_lost(self, exc: Exception | None) -> None:
        self._shared.leave(self._address)
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        began = self._phase
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self._shared.leave(self._address)
                self.handle_websocket_upgrade()
            else:
                self._decline(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._reject()
        else:
            if began == _HEADER == self._phase:
                self._arrived += len(data)
                if self._arrived > MAX_HEADER:
                    self._refusal = 431
                    self._reject()

    # what the parser says

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._phase != _FRESH:
            self._since = None
        self._phase = _HEADER
        self._arrived = self._header_size = self._hosts = self._left = 0

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > MAX_TARGET:
            self._refusal = 414
            raise _Stop

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        self._header_size += len(name) + len(value)
        if name == b"host":
            self._hosts += 1
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        elif name == b"content-length":
            self._left = int(value)  # the parser has seen that it is one
        if self._header_size > MAX_HEADER or len(self.headers) > MAX_FIELDS:
            self._refusal = 431
            raise _Stop

    def on_headers_complete(self) -> None:
        if self._hosts != 1 and (self._hosts or self.parser.get_http_version() != "1.0"):
            raise _Stop
        upgrading = self.parser.should_upgrade()
        self._declining = upgrading and not self._should_upgrade()
        if self._declining:
            if self.parser.get_method() == b"CONNECT":
                raise _Stop
            return
        if upgrading:
            super().on_headers_complete()
        else:
            self._begin()
        self._phase = _BODY
        self._since = None
        self._arrived = 0

    def _begin(self) -> None:
        """Hands the request to the application, or puts it behind the one before it."""
        version = self.parser.get_http_version()
        scope: Any = self.scope
        scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        scope["raw_path"], scope["query_string"] = _target(self.url)
        path = scope["raw_path"].decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["extensions"] = EXTENSIONS
        before = self.cycle
        self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=_QUIET,
            access_logger=_QUIET,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self.cycle.hand_over = self._hand_over
        if self._left >= _LARGE:
            self.cycle.turn_aside = self._turn_aside
            scope["extensions"] = {**EXTENSIONS, BODY: self.cycle}
        if before is None or before.response_complete:
            self._start_asgi_task(self.cycle, self.app)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_body(self, body: bytes) -> None:
        self.body_came(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self._declining:
            return
        super().on_message_complete()
        self._phase = _IDLE
        self._since = None

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._deaf:
            self.transport.close()
        elif self._phase == _BODY:
            self._phase = _DRAIN
            self._since = None
        elif self._phase == _IDLE:
            self._since = None

    def _hand_over(self, cycle: Cycle, stream: Stream) -> None:
        """An outlet takes our place in front of the transport, and this connection's part is over."""
        self.server_state.total_requests += 1
        self.pipeline.clear()
        self.flow.resume_reading()
        outlet = Outlet(
            self.transport,
            stream,
            partial(self._shared.released, self._address),
            chunked=bool(cycle.chunked_encoding),
            full=self.flow.write_paused,
            timeout_s=self._shared.settings.write_timeout_s,
        )
        self.transport.set_protocol(outlet)
        self.connections.discard(self)
        self._shared.outlets.add(outlet)
        stream.opened(outlet)

    # bodies that come by an inlet

    def _turn_aside(self, cycle: Cycle, intake: Intake) -> Inlet | None:
        """What is left of a body goes into an intake. None where it has come, or others stand before it."""
        if self.cycle is not cycle or self._phase != _BODY or self.transport.is_closing():
            return None
        intake.put(cycle.body)
        cycle.body = bytearray()
        self._inlet = Inlet(self, intake, self._left)
        return self._inlet

    def body_came(self, count: int) -> None:
        self._arrived += count
        self._left -= count

    def body_ended(self) -> None:
        """The parser, which has not seen all of it, ends with it."""
        self._inlet = None
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.on_message_complete()

    # what the sweep says

    def check(self, now: float) -> None:
        """Ends the connection when its patience has run out."""
        settings = self._shared.settings
        if self.transport.is_closing():
            if self._closing_since is None:
                self._closing_since = now
            elif now - self._closing_since > settings.write_timeout_s:
                self.transport.abort()
        elif self.flow.write_paused and self._is_stalled(now, settings.write_timeout_s):
            self.transport.abort()
        elif self._since is None:
            self._since = now
            if self._phase == _BODY:
                self._arrived = 0
        else:
            self._check_phase(now - self._since, settings)

    def _is_stalled(self, now: float, patience_s: float) -> bool:
        if self._stalled_since is None:
            self._stalled_since = now
        return now - self._stalled_since > patience_s

    def _check_phase(self, elapsed: float, settings: config.Gateway) -> None:
        phase = self._phase
        if phase == _BODY:
            self._check_body(elapsed, settings)
        elif phase == _HEADER:
            if elapsed > settings.header_timeout_s and not self._is_busy():
                self._refuse(408)
        elif phase == _IDLE:
            if elapsed > settings.keep_alive_s and not self._is_busy():
                self.transport.close()
        elif elapsed > {_FRESH: settings.header_timeout_s, _DRAIN: settings.body_grace_s}.get(phase, _LINGER_S):
            self.transport.close()

    def _check_body(self, elapsed: float, settings: config.Gateway) -> None:
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._since = None  # it is we who are slow
        elif elapsed >= settings.body_grace_s:
            enough = self._arrived >= settings.body_min_bytes_per_s * elapsed
            self._since = None
            if not enough:
                self._refusal = 408
                self._reject()

    def _decline(self, rest: bytes) -> None:
        """Reads the request again as if no upgrade had been asked for: the parser skips the body of one that is,
        and a command must not be taken for one without a body."""
        kept = [pair for pair in self.headers if pair[0] not in (b"connection", b"upgrade")]
        lines = [b"%b %b HTTP/1.1" % (self.parser.get_method(), self.url), b"connection: close"]
        lines += [name + b": " + value for name, value in kept]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join(lines) + b"\r\n\r\n" + rest)

    # how it ends

    def cut(self) -> None:
        """Ends it now, in the middle of whatever it does."""
        if self.cycle is not None:
            self.cycle.disconnected = True
        self.transport.abort()

    def _is_busy(self) -> bool:
        return bool(self.pipeline) or (self.cycle is not None and not self.cycle.response_complete)

    def _reject(self) -> None:
        """Ends a request that cannot be read on; those before it on the same connection are answered first."""
        if self._phase == _BODY and not self.pipeline:
            if self.cycle.response_started:
                self.transport.close()
            else:
                self._refuse(self._refusal)
        elif self._is_busy():
            if self._phase == _BODY:
                self.pipeline.popleft()
            self._deaf = True
        else:
            self._refuse(self._refusal)

    def _refuse(self, status: int, headers: Iterable[Pair] = ()) -> None:
        """Answers without the application, in the shape of the path's family, and ends the connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._inlet is not None:
            self._inlet.leave()
        self._deaf = True
        self._phase = _REFUSED
        self._since = None
        if self.transport.is_closing():
            return
        path = self.url.partition(b"?")[0].decode("latin-1")
        reply = dialects.by_path(path).condition(status, path)
        told = () if self._shared.told is None else self._shared.told(path, self.client)
        lines = [*self.server_state.default_headers, *reply.headers, *headers, *told, (b"connection", b"close")]
        lines += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(reply.body))]
        head = b"".join(b"%b: %b\r\n" % line for line in lines)
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + reply.body)
        if self.transport.can_write_eof():
            self.transport.write_eof()  # and let the client read it, before what it still sends resets it
        else:
            self.transport.close()
