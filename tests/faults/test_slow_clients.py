"""Five hundred clients that drip, and everybody else is served."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.journeys.system import System

DRIPS = 500
BODY = 100_000


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    system = System(tmp_path_factory.mktemp("slow"))
    try:
        yield system.start()
    finally:
        system.stop()


class Drip:
    """One connection that sends a byte now and then; `answer` is what it was told before it was closed."""

    def __init__(self, system: System, text: bytes) -> None:
        address = urlsplit(system.ready["url"])
        self.host, self.port, self.text = address.hostname, address.port, text
        self.answer: bytes | None = None

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        reading = asyncio.create_task(reader.read())
        try:
            head, _, rest = self.text.rpartition(b"\0")
            writer.write(head)
            for byte in rest:
                writer.write(bytes([byte]))
                await writer.drain()
                done, _ = await asyncio.wait([reading], timeout=0.5)
                if done:
                    break
        except ConnectionError:
            pass
        finally:
            try:
                self.answer = await asyncio.wait_for(reading, 60)
            except ConnectionError:
                self.answer = b""
            writer.close()


@asynccontextmanager
async def dripping(system: System, text: bytes) -> AsyncIterator[list[Drip]]:
    """All of them while the block runs, and until the server has closed the last."""
    drips = [Drip(system, text) for _ in range(DRIPS)]
    running = [asyncio.create_task(drip.run()) for drip in drips]
    try:
        await asyncio.sleep(1)
        yield drips
    finally:
        await asyncio.gather(*running)


HEADER = b"\0" + b"GET /api/sync/jobs HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 1000
SLOW_BODY = (
    b"POST /api/sync/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n\0{" % BODY
) + b" " * 1000


@pytest.mark.parametrize("text", [HEADER, SLOW_BODY], ids=["header", "body"])
async def test_others_are_served_and_who_drips_is_closed(slow: System, text: bytes) -> None:
    before = slow.head()
    async with dripping(slow, text) as drips, aiohttp.ClientSession(slow.ready["url"]) as session:
        for _ in range(200):
            async with session.get("/api/sync/jobs", timeout=aiohttp.ClientTimeout(5)) as answer:
                assert answer.status == 200
                await answer.read()
        assert slow.sync(slow.folder(a="1"), slow.place()).json()["success"] is True
        assert any(drip.answer is None for drip in drips)  # they dripped all the while
    assert all(drip.answer is not None for drip in drips)
    assert {drip.answer.partition(b"\r\n")[0] for drip in drips if drip.answer} <= {
        b"HTTP/1.1 408 Request Timeout",
        b"HTTP/1.1 408 ",
    }
    assert slow.head() < before + 20  # the sync, and nothing of theirs


async def test_who_does_not_read_holds_up_nobody(slow: System) -> None:
    address = urlsplit(slow.ready["url"])
    request = b"GET /schema/rapidoc-min.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    connections = []
    for _ in range(100):
        _, writer = await asyncio.open_connection(address.hostname, address.port, limit=1024)
        writer.write(request * 50)
        connections.append(writer)
    async with aiohttp.ClientSession(slow.ready["url"]) as session:
        for _ in range(100):
            async with session.get("/api/sync/jobs", timeout=aiohttp.ClientTimeout(5)) as answer:
                assert answer.status == 200
    slow.stop()  # open connections hold up no stop
    for writer in connections:
        writer.transport.abort()
    slow.start()
