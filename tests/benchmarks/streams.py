"""Idle clients of server-sent events: what one costs in memory, and how soon all of them are told; beside aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra import processes
from tests.benchmarks.http import instance

SECTION = "streams: idle clients of server-sent events"
_AT_ONCE = 200

#: The same with the usual library: a task and a queue for each client.
PEER = """
import asyncio, sys
from aiohttp import web

queues = set()

async def events(request):
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"retry: 1000\\n\\n")
    queue = asyncio.Queue(100)
    queues.add(queue)
    try:
        while True:
            await response.write(await queue.get())
    finally:
        queues.discard(queue)

async def tell(request):
    for queue in queues:
        queue.put_nowait(b'data: {"type":"integrations.created"}\\n\\n')
    return web.Response()

app = web.Application()
app.router.add_get("/events", events)
app.router.add_post("/tell", tell)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""


class Clients:
    """Connections that are told nothing, until something happens."""

    def __init__(self, url: str, headers: str = "") -> None:
        parts = urlsplit(url)
        self._where = parts.hostname, parts.port
        target = f"{parts.path}?{parts.query}".rstrip("?")
        self._request = f"GET {target} HTTP/1.1\r\nHost: {parts.netloc}\r\n{headers}\r\n".encode()
        self._open: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def more(self, count: int) -> None:
        for _ in range(count // _AT_ONCE):
            await asyncio.gather(*(self._one() for _ in range(_AT_ONCE)))

    async def _one(self) -> None:
        reader, writer = await asyncio.open_connection(*self._where)
        writer.write(self._request)
        await reader.readuntil(b"retry: 1000\n\n")
        self._open.append((reader, writer))

    async def told(self) -> None:
        await asyncio.gather(*(reader.readuntil(b"integrations.created") for reader, _ in self._open))

    def close(self) -> None:
        for _, writer in self._open:
            writer.close()


def _resident(pid: int) -> int:
    match = re.search(r"^VmRSS:\s+([0-9]+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])


async def measure(clients: Clients, pid: int, count: int, tell: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """KiB for each client, and seconds until the last is told."""
    await clients.more(_AT_ONCE)  # what is allocated once is not theirs
    before = _resident(pid)
    await clients.more(count)
    await asyncio.sleep(1)
    cost = (_resident(pid) - before) / count
    began = time.perf_counter()
    await asyncio.gather(clients.told(), tell())
    elapsed = time.perf_counter() - began
    clients.close()
    return cost, elapsed


def _post(url: str, body: Any, token: str = "") -> None:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="POST")
    urllib.request.urlopen(request, timeout=30).close()


async def ours(count: int) -> tuple[float, float]:
    with instance() as ready:
        token, url = ready["admin_token"], ready["url"]
        with urllib.request.urlopen(f"{url}/readyz", timeout=30) as answer:
            head = json.load(answer)["head"]
        headers = f"Authorization: Bearer {token}\r\nAccept: text/event-stream\r\n"
        clients = Clients(f"{url}/api/v1/feeds/events?after={head}", headers)
        config = {"baseUrl": "http://127.0.0.1:1", "workspace": "acme", "apiKey": f"plane_api_{'0' * 32}"}
        body = {"id": "told", "name": "told", "kind": "plane", "config": config}

        async def tell() -> None:
            await asyncio.to_thread(_post, f"{url}/api/sync/integrations", body, token)

        return await measure(clients, ready["processes"]["gateway"], count, tell)


@contextlib.contextmanager
def _peer() -> Iterator[tuple[str, int]]:
    port = processes.choose_port()
    program = subprocess.Popen([sys.executable, "-c", PEER, str(port)])
    try:
        while processes.port_is_free(port):
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}", program.pid
    finally:
        program.kill()  # told nicely it waits for its streams
        program.wait(10)


async def peer(count: int) -> tuple[float, float]:
    with _peer() as (url, pid):

        async def tell() -> None:
            await asyncio.to_thread(_post, f"{url}/tell", {})

        return await measure(Clients(f"{url}/events"), pid, count, tell)


async def _run(count: int) -> list[dict[str, Any]]:
    cost, told = await ours(count)
    peer_cost, peer_told = await peer(count)
    row = {
        "section": SECTION,
        "clients": count,
        "kib_each": round(cost, 1),
        "aiohttp_kib_each": round(peer_cost, 1),
        "must": "<= 12 KiB",
        "all_told_s": round(told, 3),
        "aiohttp_all_told_s": round(peer_told, 3),
    }
    return [row]


def run(quick: bool) -> list[dict[str, Any]]:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return asyncio.run(_run(1_000 if quick else 10_000))


if __name__ == "__main__":
    for row in run("--quick" in sys.argv):
        print(row)
