"""A small HTTP load generator: keep-alive connections that send one request after the other, bounded in time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvloop


@dataclass
class Load:
    """What came of it: answers per second, latencies in ms, and statuses that were not 2xx."""

    per_second: float
    p50_ms: float
    p99_ms: float
    failures: int


class _Client(asyncio.Protocol):
    def __init__(self, make: Callable[[], bytes], until: float, latencies: list[float]) -> None:
        self._make, self._until, self._latencies = make, until, latencies
        self._buffer = b""
        self.failures = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(self._make())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or b"0")
        if len(body) < length:
            return
        self._buffer = body[length:]
        now = time.perf_counter()
        self._latencies.append(now - self._sent)
        self.failures += not head.startswith(b"HTTP/1.1 2")
        if now < self._until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def request(method: str, url: str, body: bytes = b"", headers: tuple[str, ...] = ()) -> bytes:
    parts = urlsplit(url)
    lines = [f"{method} {parts.path or '/'} HTTP/1.1", f"host: {parts.netloc}", *headers]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _run(url: str, make: Callable[[], bytes], connections: int, seconds: float) -> Load:
    parts = urlsplit(url)
    latencies: list[float] = []
    until = time.perf_counter() + seconds
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    clients = [
        (await loop.create_connection(lambda: _Client(make, until, latencies), parts.hostname, parts.port))[1]
        for _ in range(connections)
    ]
    async with asyncio.timeout(seconds + 30):
        await asyncio.gather(*(client.done for client in clients))
    elapsed = time.perf_counter() - started
    quantiles = statistics.quantiles(latencies, n=100)
    failures = sum(client.failures for client in clients)
    return Load(len(latencies) / elapsed, quantiles[49] * 1000, quantiles[98] * 1000, failures)


def run(url: str, make: Callable[[], bytes], connections: int = 32, seconds: float = 3.0) -> Load:
    """Asks over `connections` connections for `seconds`; `make` gives the bytes of each request."""
    return uvloop.run(_run(url, make, connections, seconds))
