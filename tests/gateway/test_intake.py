"""Large bodies go straight from their connection into buffers: whole, in order, no faster than they are worked on; and
the connection is as good as before, however the body ended. Each on the loop of the product and on Python's own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
import uvloop

from infra import config
from services.gateway import bodies, server
from services.gateway.cycle import BODY
from services.gateway.intake import Intake, coming

DONE = 20
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


class App:
    """Takes bodies by an intake and answers their SHA-256, or does what its path says."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = asyncio.Event()
        self.broke_off: list[bytes] = []
        self.direct = 0
        self.filled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{step}"
                await send({"type": f"lifespan.{step}.complete"})
            return
        self.direct += BODY in scope["extensions"]
        call = SimpleNamespace(scope=scope, receive=receive)
        length = int(dict(scope["headers"]).get(b"content-length", b"1000000"))
        said = b"early"
        if scope["path"] != "/unread":
            async with coming(call, length, 100) as intake:
                self.entered.set()
                if scope["path"] != "/early":
                    said = await self._taken(intake)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
        await send({"type": "http.response.body", "body": said})

    async def _taken(self, intake: Intake) -> bytes:
        digest = hashlib.sha256()
        try:
            while (piece := await intake.next()) is not None:
                self.filled += len(piece.data)
                intake.work(piece, None, partial(self._work, digest, piece.data))
            await intake.settled()
        except bodies.Disconnected:
            await intake.settled()
            self.broke_off.append(digest.digest())
            raise
        return digest.hexdigest().encode()

    def _work(self, digest: Any, data: memoryview) -> None:
        assert self.gate.wait(DONE)
        digest.update(data)


class Client:
    def __init__(self, url: str) -> None:
        self.url = url
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Client:
        where = urlsplit(self.url)
        self.reader, self.writer = await asyncio.open_connection(where.hostname, where.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    def send(self, path: str, body: bytes, *more: bytes, length: int | None = None) -> None:
        size = b"Content-Length: %d" % (len(body) if length is None else length)
        self.writer.write(b"\r\n".join([b"PUT %b HTTP/1.1" % path.encode(), b"Host: x", size, *more, b"", body]))

    async def answer(self) -> tuple[int, bytes]:
        async with asyncio.timeout(DONE):
            head = await self.reader.readuntil(b"\r\n\r\n")
            status = int(head.split()[1])
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            return status, await self.reader.readexactly(int(lengths[0].split()[1]) if lengths else 0)


@contextlib.asynccontextmanager
async def serving(**patience: Any) -> AsyncIterator[tuple[App, str]]:
    settings = config.Gateway(port=0, also_listen=[], **{"shutdown_s": 0.5, **patience})
    sockets, app = server.bind(settings), App()
    async with server.serving(app, sockets, settings, asyncio.Event()), asyncio.timeout(2 * DONE):
        yield app, server.url(sockets)


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


async def on(run: Callable[[Any], None], scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await scenario()

    await asyncio.to_thread(run, main())


@LOOPS
async def test_bodies_of_any_size_come_whole_one_after_the_other(run: Any) -> None:
    async def scenario() -> None:
        async with serving() as (app, url), Client(url) as client:
            for size in (0, 1, 99_999, 100_000, 262_144, 1_048_476, 1_048_576, 5_000_000, 20_000_001):
                data = os.urandom(size)
                client.send("/up", data)
                assert await client.answer() == (200, sha(data))
            assert app.direct == 6

    await on(run, scenario)


@LOOPS
async def test_what_stands_behind_a_body_is_answered_behind_it(run: Any) -> None:
    async def scenario() -> None:
        bodies_ = [os.urandom(size) for size in (3_000_000, 300_000, 10, 2_000_000)]
        async with serving() as (_, url), Client(url) as client:
            for data in bodies_:
                client.send("/up", data)
            assert [await client.answer() for _ in bodies_] == [(200, sha(data)) for data in bodies_]

    await on(run, scenario)


@LOOPS
async def test_chunked_bodies_and_those_that_wait_to_be_asked_for(run: Any) -> None:
    data = os.urandom(3_000_000)

    async def scenario() -> None:
        async with serving() as (_, url), Client(url) as client:
            client.writer.write(b"PUT /up HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            for at in range(0, len(data), 700_000):
                piece = data[at : at + 700_000]
                client.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.writer.write(b"0\r\n\r\n")
            assert await client.answer() == (200, sha(data))
            client.send("/up", b"", b"Expect: 100-continue", length=len(data))
            assert await client.answer() == (100, b"")
            client.writer.write(data)
            assert await client.answer() == (200, sha(data))

    await on(run, scenario)


@LOOPS
@pytest.mark.parametrize("path", ["/early", "/unread"])
async def test_a_body_that_nobody_wants_is_dropped_and_the_next_request_served(run: Any, path: str) -> None:
    data = os.urandom(10_000_000)

    async def scenario() -> None:
        async with serving() as (_, url), Client(url) as client:
            client.send(path, data)
            assert await client.answer() == (200, b"early")
            client.send("/up", data)
            assert await client.answer() == (200, sha(data))

    await on(run, scenario)


@LOOPS
async def test_no_more_is_read_than_there_are_buffers_for(run: Any) -> None:
    data = os.urandom(40_000_000)

    async def scenario() -> None:
        async with serving() as (app, url), Client(url) as client:
            app.gate.clear()
            client.send("/up", data)
            while app.filled < 3 << 20:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            assert app.filled <= 4 << 20
            app.gate.set()
            assert await client.answer() == (200, sha(data))

    await on(run, scenario)


@LOOPS
async def test_a_body_that_breaks_off_counts_as_far_as_it_came(run: Any) -> None:
    data = os.urandom(3_000_000)

    async def scenario() -> None:
        async with serving() as (app, url):
            async with Client(url) as client:
                client.send("/up", data, length=9_000_000)
                await app.entered.wait()
                await client.writer.drain()
            while not app.broke_off:
                await asyncio.sleep(0.01)
            assert app.broke_off == [hashlib.sha256(data).digest()]
            async with Client(url) as client:
                client.send("/up", data)
                assert await client.answer() == (200, sha(data))

    await on(run, scenario)


@LOOPS
async def test_a_body_that_drips_is_refused(run: Any) -> None:
    async def scenario() -> None:
        async with serving(body_grace_s=0.3, body_min_bytes_per_s=1000) as (app, url), Client(url) as client:
            client.send("/up", b"x" * 1000, length=9_000_000)
            await app.entered.wait()
            assert (await client.answer())[0] == 408
            assert await client.reader.read() == b""
            while not app.broke_off:
                await asyncio.sleep(0.01)

    await on(run, scenario)


@LOOPS
async def test_a_slow_worker_is_not_the_clients_fault(run: Any) -> None:
    data = os.urandom(10_000_000)

    async def scenario() -> None:
        async with serving(body_grace_s=0.05, body_min_bytes_per_s=1_000_000) as (app, url), Client(url) as client:
            app.gate.clear()
            client.send("/up", data)
            while app.filled < 3 << 20:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.4)
            app.gate.set()
            assert await client.answer() == (200, sha(data))

    await on(run, scenario)


async def test_what_a_work_raises_ends_it_and_later_works_are_left_out() -> None:
    done: list[int] = []

    def fails() -> None:
        raise OSError("the disk has gone")

    intake = Intake(1000)
    intake.put(b"x" * 1000)
    intake.end()
    piece = await intake.next()
    assert piece is not None
    intake.work(piece, None, fails)
    intake.work(piece, None, partial(done.append, 1))
    with pytest.raises(OSError, match="the disk has gone"):
        await intake.settled()
    with pytest.raises(OSError, match="the disk has gone"):
        await intake.next()
    intake.close()
    assert done == []


async def test_what_came_can_be_had_when_no_more_comes_for_a_moment() -> None:
    intake, got = Intake(1 << 20), []
    for text in (b"one", b"", b"two"):
        intake.put(text)
        piece = await intake.next(0.01)
        assert piece is not None
        got.append(bytes(piece.data))
    intake.put(b"three")
    intake.end()
    assert (last := await intake.next(0.01)) is not None
    assert ([*got, bytes(last.data)], await intake.next()) == ([b"one", b"", b"two", b"three"], None)
    intake.close()
