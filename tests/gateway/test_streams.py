"""Answers that go on, over real sockets: framed, resumed, beating, bounded, and ended whenever somebody must."""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest

from services.gateway.streams import Live, Stream, Streams, frame

DONE = 20
Serve = Callable[..., Awaitable[str]]


class Numbers:
    """A feed of numbers from 1 on, each in a frame of `size` bytes."""

    def __init__(self, size: int = 100) -> None:
        self.last = 0
        self.size = size
        self.streams: set[NumberStream] = set()

    def frame(self, number: int) -> bytes:
        return frame("number", b'"' + b"%d" % number + b"." * self.size + b'"', str(number))

    def count(self, more: int) -> None:
        for _ in range(more):
            self.last += 1
            for stream in list(self.streams):
                stream.tell(self.last)


class NumberStream(Stream):
    __slots__ = ("at", "caught_up", "feed", "left")

    def __init__(self, streams: Streams, feed: Numbers, at: int, principal: str = "key:one") -> None:
        super().__init__(streams, principal)
        self.feed, self.at = feed, at
        self.left = asyncio.Event()
        self.caught_up = 0

    async def catch_up(self) -> bool:
        self.caught_up += 1
        while self.at < self.feed.last:
            await asyncio.sleep(0)
            self.at += 1
            if not self.push(self.feed.frame(self.at)):
                return False
        self.feed.streams.add(self)
        return True

    def tell(self, number: int) -> None:
        self.at = number
        if not self.push(self.feed.frame(number)):
            self.lag()

    def leave(self) -> None:
        self.feed.streams.discard(self)

    def gone(self) -> None:
        super().gone()
        self.left.set()


class App:
    """A server of numbers: `Last-Event-ID` is where a client was."""

    def __init__(self, feed: Numbers, beat_s: float = 60.0) -> None:
        self.feed = feed
        self.stopping = asyncio.Event()
        self.revoked: set[str] = set()
        self.streams = Streams(self.stopping, self.revoked.__contains__, beat_s)
        self.opened: list[NumberStream] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
            return
        at = int(dict(scope["headers"]).get(b"last-event-id", b"0"))
        stream = NumberStream(self.streams, self.feed, at)
        self.opened.append(stream)
        await Live(stream, [(b"x-more", b"1")])(scope, receive, send)


def numbers(body: bytes) -> list[int]:
    lines = [line for line in body.split(b"\n") if line.startswith(b"id: ")]
    return [int(line[4:]) for line in lines]


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(DONE):
        while not true():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def wire(url: str, *lines: str, receive_buffer: int = 0) -> AsyncIterator[tuple[Any, Any]]:
    """A bare connection that has sent a request."""
    parts = urlsplit(url)
    one = socket.socket()
    if receive_buffer:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    one.setblocking(False)
    await asyncio.get_running_loop().sock_connect(one, (parts.hostname, parts.port))
    reader, writer = await asyncio.open_connection(sock=one, limit=2**15)
    writer.write(("\r\n".join(lines or ("GET / HTTP/1.1", "host: x")) + "\r\n\r\n").encode())
    try:
        yield reader, writer
    finally:
        writer.close()


@pytest.fixture
def feed() -> Numbers:
    return Numbers()


@pytest.fixture
def app(feed: Numbers) -> App:
    return App(feed)


async def take(response: aiohttp.ClientResponse, count: int) -> list[int]:
    """The next so many numbers."""
    found: list[int] = []
    async with asyncio.timeout(DONE):
        while len(found) < count:
            found += numbers(await response.content.readline())
    return found


async def test_what_was_and_what_comes_arrive_once_and_in_order(serve: Serve, app: App, feed: Numbers) -> None:
    feed.count(3)
    url = await serve(app)
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert await take(response, 3) == [1, 2, 3]
        await until(lambda: feed.streams)
        feed.count(2)
        assert await take(response, 2) == [4, 5]
        headers = response.headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert "no-store" in headers["cache-control"]
    assert (headers["x-accel-buffering"], headers["x-more"]) == ("no", "1")


async def test_it_goes_on_behind_the_last_event(serve: Serve, app: App, feed: Numbers) -> None:
    feed.count(9)
    url = await serve(app)
    async with aiohttp.ClientSession() as session, session.get(url, headers={"Last-Event-ID": "6"}) as response:
        assert await take(response, 3) == [7, 8, 9]


async def test_an_idle_stream_has_no_task(serve: Serve, app: App, feed: Numbers) -> None:
    url = await serve(app)
    before = len(asyncio.all_tasks())
    async with wire(url), wire(url), wire(url):
        await until(lambda: len(feed.streams) == 3)
        await until(lambda: len(asyncio.all_tasks()) == before)
        assert app.streams.count == 3
    await until(lambda: app.streams.count == 0)


async def test_a_client_that_leaves_is_forgotten(serve: Serve, app: App, feed: Numbers) -> None:
    url = await serve(app)
    async with wire(url):
        await until(lambda: feed.streams)
    async with asyncio.timeout(DONE):
        await app.opened[0].left.wait()
    assert not feed.streams
    feed.count(1)
    assert not app.opened[0].open


async def test_head_is_answered_without_a_stream(serve: Serve, app: App) -> None:
    url = await serve(app)
    async with aiohttp.ClientSession() as session, session.head(url) as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert app.streams.count == 0


async def test_http_1_0_is_answered_without_chunks(serve: Serve, app: App, feed: Numbers) -> None:
    feed.count(2)
    url = await serve(app)
    async with wire(url, "GET / HTTP/1.0") as (reader, _):
        await until(lambda: feed.streams)
        app.opened[0].end()
        async with asyncio.timeout(DONE):
            answer = await reader.read(-1)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"transfer-encoding" not in head.lower()
    assert body == b"retry: 1000\n\n" + feed.frame(1) + feed.frame(2)


async def test_what_is_sent_behind_the_request_changes_nothing(serve: Serve, app: App, feed: Numbers) -> None:
    feed.count(1)
    url = await serve(app)
    pipelined = ("GET / HTTP/1.1", "host: x", "", "GET / HTTP/1.1", "host: x", "", "garbage")
    async with wire(url, *pipelined) as (reader, writer):
        await until(lambda: feed.streams)
        writer.write(b"more garbage\r\n\r\n" * 10)
        async with asyncio.timeout(DONE):
            answer = await reader.readuntil(b'."\n')
            feed.count(1)
            answer += await reader.readuntil(b'."\n')
            app.opened[0].end()
            answer += await reader.read(-1)
    assert numbers(answer) == [1, 2]
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.endswith(b"0\r\n\r\n")


async def test_a_stream_says_now_and_then_that_it_lives(serve: Serve, feed: Numbers) -> None:
    app = App(feed, beat_s=0.2)
    url = await serve(app)
    beating = asyncio.create_task(app.streams.run())
    async with wire(url) as (reader, _), asyncio.timeout(DONE):
        for _ in range(3):
            await reader.readuntil(b"\r\n:\n\n\r\n")
    beating.cancel()


async def test_a_revoked_credential_keeps_nothing_open(serve: Serve, app: App, feed: Numbers) -> None:
    url = await serve(app)
    async with wire(url) as (reader, _), wire(url) as (other, _):
        await until(lambda: len(feed.streams) == 2)
        app.revoked.add("key:one")
        app.streams.revoke("key:one")
        async with asyncio.timeout(DONE):
            assert (await reader.read(-1)).endswith(b"0\r\n\r\n")
            await other.read(-1)
    async with wire(url) as (reader, _), asyncio.timeout(DONE):  # admitted before, begun after
        assert (await reader.read(-1)).endswith(b"0\r\n\r\n")
    await until(lambda: app.streams.count == 0)


async def test_a_server_that_stops_ends_its_streams_well(app: App, feed: Numbers) -> None:
    from infra import config
    from services.gateway import server

    settings = config.Gateway(port=0, also_listen=[], shutdown_s=DONE)
    sockets = server.bind(settings)
    feed.count(1)
    async with asyncio.timeout(DONE):
        async with server.serving(app, sockets, settings, app.stopping):
            reader, writer = await asyncio.open_connection(*sockets[0].getsockname()[:2])
            writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: feed.streams)
        answer = await reader.read(-1)
    writer.close()
    assert numbers(answer) == [1]
    assert answer.endswith(b"0\r\n\r\n")


async def test_a_slow_reader_gets_everything_and_costs_little(serve: Serve) -> None:
    feed = Numbers(size=20_000)
    app = App(feed)
    url = await serve(app, write_timeout_s=DONE)
    async with wire(url, receive_buffer=4096) as (reader, _), wire(url) as (quick, _):
        await until(lambda: len(feed.streams) == 2)
        slow = app.opened[0]
        drained = asyncio.create_task(_numbers(quick, 1000))
        for _ in range(100):
            feed.count(10)
            await asyncio.sleep(0)
        assert slow not in feed.streams
        assert slow._outlet is not None
        assert slow._outlet.transport.get_write_buffer_size() < 64 * 1024 + 2 * 20_200
        assert list(range(1, 1001)) == await _numbers(reader, 1000)
        assert list(range(1, 1001)) == await drained
        assert slow.caught_up > 1
        feed.count(1)
        assert await _numbers(reader, 1) == [1001]


async def _numbers(reader: Any, count: int) -> list[int]:
    found: list[int] = []
    async with asyncio.timeout(DONE * 3):
        while len(found) < count:
            found += numbers(await reader.readuntil(b"\n"))
    return found


async def test_who_does_not_read_at_all_is_let_go(serve: Serve) -> None:
    feed = Numbers(size=20_000)
    app = App(feed)
    url = await serve(app, write_timeout_s=0.2)
    async with wire(url, receive_buffer=4096) as (_, writer):
        writer.transport.pause_reading()
        await until(lambda: feed.streams)
        feed.count(1000)
        async with asyncio.timeout(DONE):
            await app.opened[0].left.wait()
    assert app.streams.count == 0


async def test_ended_streams_leave_nothing_behind(serve: Serve, app: App, feed: Numbers) -> None:
    url = await serve(app)
    for _ in range(20):
        async with wire(url):
            await until(lambda: feed.streams)
        await until(lambda: not app.streams.count)
    app.opened.clear()
    gc.collect()
    assert not [one for one in gc.get_objects() if isinstance(one, NumberStream)]
