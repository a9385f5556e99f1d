"""Answers that go on: server-sent events to any number of clients, each of which costs little while nothing happens.

A client is a `Stream`: where it has come to, and an outlet to write to. It has no task of its own unless it has to
catch up; what happens is pushed to those that have caught up, and who has no room for more catches up again later,
from wherever the log, the rows or the memory of the feed has it. So nothing is ever queued for a slow client.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from infra.db import CONNECTION_LOST
from services.gateway.cycle import STREAM
from services.gateway.headers import Pair
from services.gateway.outlet import Outlet

log = structlog.get_logger("gateway")

#: What a client waits before it comes back, in ms.
RETRY_MS = 1000
MEDIA = b"text/event-stream; charset=utf-8"
_HEADERS: tuple[Pair, ...] = (
    (b"content-type", MEDIA),
    (b"cache-control", b"no-store, no-transform"),  # nor may anybody compress it: that takes a buffer
    (b"x-accel-buffering", b"no"),
    (b"connection", b"close"),
)
_RETRY_S = 0.25

encode = msgspec.json.Encoder().encode


class Sent(Struct):
    """A server-sent event as it is documented: `data` is JSON, whose shape goes with the name of the event."""

    data: str
    event: str = "message"
    id: str = ""


def frame(event: str | None, data: bytes, id: str | None = None) -> bytes:
    """A server-sent event; `data` is JSON, so it has no line ends. With `id` the client comes back behind it."""
    named = b"" if event is None else b"event: %b\n" % event.encode()
    marked = b"" if id is None else b"id: %b\n" % id.encode()
    return b"%b%bdata: %b\n\n" % (marked, named, data)


class Stream(ABC):
    """One client of a feed."""

    __slots__ = ("_outlet", "_streams", "_task", "principal")

    def __init__(self, streams: Streams, principal: str) -> None:
        self.principal = principal
        self._streams = streams
        self._outlet: Outlet | None = None
        self._task: asyncio.Task[None] | None = None

    # what a feed does

    @abstractmethod
    async def catch_up(self) -> bool:
        """Pushes what the client lacks, and answers whether that was all, and the stream now hears of whatever
        follows; False when there was no room for more. A lost connection to Postgres may be raised."""

    @abstractmethod
    def leave(self) -> None:
        """The feed's last word with this stream: it hears of nothing any more."""

    def beat(self) -> bytes:
        """What is sent now and then, so that either side notices when the other has gone."""
        return b":\n\n"

    # what feeds use

    @property
    def open(self) -> bool:
        return self._outlet is not None and self._outlet.open

    def push(self, frame: bytes) -> bool:
        """Sends; whether there is room for more."""
        return self._outlet is not None and self._outlet.open and self._outlet.push(frame)

    def lag(self) -> None:
        """Where a push found no room: the feed forgets the stream, which catches up once there is some."""
        self.leave()
        if self._outlet is not None and not self._outlet.full:
            self._follow()

    def end(self) -> None:
        """The answer is complete."""
        if self._outlet is not None:
            self._outlet.finish()

    # what the outlet says

    def opened(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._streams.add(self)
        self.push(b"retry: %d\n\n" % RETRY_MS)
        self._follow()

    def drained(self) -> None:
        self._follow()

    def stop(self) -> None:
        self.end()

    def gone(self) -> None:
        self._outlet = None
        self._streams.discard(self)
        self.leave()
        if self._task is not None:
            self._task.cancel()

    def _follow(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._catch_up())

    async def _catch_up(self) -> None:
        try:
            while self._outlet is not None and self._outlet.open and not self._outlet.full:
                try:
                    if await self.catch_up():
                        return
                except CONNECTION_LOST:
                    await asyncio.sleep(_RETRY_S)
        except Exception:
            log.exception("a stream ended in an error of ours")
            self.end()
        finally:
            self._task = None


class Streams:
    """All streams of a gateway: what ends them from outside, and their heartbeats."""

    def __init__(self, stopping: asyncio.Event, is_revoked: Callable[[str], bool], beat_s: float) -> None:
        self._stopping, self._is_revoked, self._beat_s = stopping, is_revoked, beat_s
        self._open: dict[str, set[Stream]] = {}
        self._turns: list[set[Stream]] = [set() for _ in range(_TURNS)]
        self._next = 0
        self.count = 0

    def add(self, stream: Stream) -> None:
        self._open.setdefault(stream.principal, set()).add(stream)
        self._turns[self._next % _TURNS].add(stream)
        self._next += 1
        self.count += 1
        if self._stopping.is_set() or self._is_revoked(stream.principal):
            stream.end()

    def discard(self, stream: Stream) -> None:
        mine = self._open.get(stream.principal, set())
        if stream in mine:
            self.count -= 1
            mine.discard(stream)
            if not mine:
                del self._open[stream.principal]
            for turn in self._turns:
                turn.discard(stream)

    def revoke(self, principal: str) -> None:
        """A credential opens nothing any more, nor does it keep anything open."""
        for stream in list(self._open.get(principal, ())):
            stream.end()

    async def run(self) -> None:
        """Serves until cancelled: a few at a time, so that ten thousand do not hold everything up at once."""
        turn = 0
        while True:
            await asyncio.sleep(self._beat_s / _TURNS)
            turn = (turn + 1) % _TURNS
            for stream in list(self._turns[turn]):
                stream.push(stream.beat())


_TURNS = 50


class Live:
    """An answer whose body is a stream's. It is an ASGI application, as Reply is."""

    status = 200

    def __init__(self, stream: Stream, headers: Iterable[Pair] = ()) -> None:
        self._stream = stream
        self._headers = [*_HEADERS, *headers]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        start = {"type": "http.response.start", "status": self.status, "headers": self._headers}
        if scope["method"] == "HEAD":
            await send(start)
            await send({"type": "http.response.body", "body": b""})
        else:
            await send({**start, STREAM: self._stream})
