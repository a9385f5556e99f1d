"""A small HTTP load generator: keep-alive connections that send one request after the other, bounded in time."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


#: Told the header of each answer, and when it was there.
Heard = Callable[[bytes, float], None] | None

_END = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length: "


def _length(data: bytes, end: int) -> int:
    """The length of the body, from a header that ends at `end`; servers of ours and the peer's write it so."""
    at = data.find(_LENGTH, 0, end)
    return int(data[at + len(_LENGTH) : data.find(b"\r\n", at + len(_LENGTH))]) if at >= 0 else 0


class _Client(asyncio.Protocol):
    def __init__(
        self, make: Callable[[], bytes], until: float, latencies: list[float], every: float = 0.0, heard: Heard = None
    ) -> None:
        self._make, self._until, self._latencies = make, until, latencies
        self._every, self._heard = every, heard
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
        data = self._buffer + data
        end = data.find(_END) + len(_END)
        if end < len(_END) or len(data) < end + _length(data, end):
            self._buffer = data
            return
        self._buffer = data[end + _length(data, end) :]
        now = time.perf_counter()
        self._latencies.append(now - self._sent)
        self.failures += not data.startswith(b"HTTP/1.1 2")
        if self._heard is not None:
            self._heard(data[:end], now)
        if now >= self._until:
            self._transport.close()
        elif self._every:
            asyncio.get_running_loop().call_later(max(0.0, self._sent + self._every - now), self._send)
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(None)


def request(method: str, url: str, body: bytes = b"", headers: tuple[str, ...] = ()) -> bytes:
    parts = urlsplit(url)
    lines = [f"{method} {parts.path or '/'} HTTP/1.1", f"host: {parts.netloc}", *headers]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def measure(
    url: str, make: Callable[[], bytes], connections: int, seconds: float, rate: float = 0.0, heard: Heard = None
) -> Load:
    """As `run`; with a `rate`, so many requests per second over all connections."""
    parts = urlsplit(url)
    latencies: list[float] = []
    until = time.perf_counter() + seconds
    started = time.perf_counter()
    loop = asyncio.get_running_loop()
    every = connections / rate if rate else 0.0
    clients = []
    for _ in range(connections):
        begin = partial(_Client, make, until, latencies, every, heard)
        clients.append((await loop.create_connection(begin, parts.hostname or "", parts.port or 80))[1])
    async with asyncio.timeout(seconds + 30):
        await asyncio.gather(*(client.done for client in clients))
    elapsed = time.perf_counter() - started
    quantiles = statistics.quantiles(latencies, n=100, method="inclusive")
    failures = sum(client.failures for client in clients)
    return Load(len(latencies) / elapsed, quantiles[49] * 1000, quantiles[98] * 1000, failures)


def run(url: str, make: Callable[[], bytes], connections: int = 32, seconds: float = 3.0) -> Load:
    """Asks over `connections` connections for `seconds`; `make` gives the bytes of each request."""
    return uvloop.run(measure(url, make, connections, seconds))
