"""Ten thousand listeners to a library who hear nothing, and then all of them one change, beside aiohttp's bare
server-sent events. Servers and clients are processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra import processes
from tests.journeys.libraries import Device
from tests.journeys.system import System

SECTION = "idle listeners"
FULL, QUICK = 10_000, 1_000
_AT_ONCE = 50

PEER = """
import asyncio, sys
from aiohttp import web

listeners = set()

async def listen(request):
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    queue = asyncio.Queue()
    listeners.add(queue)
    await response.write(b"retry: 1000\\n\\n")
    try:
        while True:
            await response.write(await queue.get())
    finally:
        listeners.discard(queue)

async def tell(request):
    data = b"data: " + await request.read() + b"\\n\\n"
    for queue in listeners:
        queue.put_nowait(data)
    return web.Response()

import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
app = web.Application()
app.add_routes([web.get("/changes", listen), web.post("/tell", tell)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""


class _Listener(asyncio.Protocol):
    """Says when it is being answered, and when it has heard something."""

    def __init__(self, request: bytes, opened: asyncio.Future[None], heard: asyncio.Future[float]) -> None:
        self._request, self._opened, self._heard = request, opened, heard

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._opened.done() and b"retry:" in data:
            self._opened.set_result(None)
        if not self._heard.done() and b"data: " in data:
            self._heard.set_result(time.time())

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self._opened, self._heard):
            if not future.done():
                future.set_exception(exc or ConnectionResetError("a listener was cut off"))


async def listen(host: str, port: int, request: bytes, count: int) -> None:
    """A process of its own: says so when all are open, and when the last of them heard the first thing."""
    loop = asyncio.get_running_loop()
    heard: list[asyncio.Future[float]] = []

    async def some(many: int) -> None:
        for _ in range(many):
            opened: asyncio.Future[None] = loop.create_future()
            heard.append(loop.create_future())
            arguments = (request, opened, heard[-1])
            await loop.create_connection(lambda arguments=arguments: _Listener(*arguments), host, port)  # type: ignore[misc]
            await opened

    await asyncio.gather(*(some(count // _AT_ONCE) for _ in range(_AT_ONCE)))
    print("open", flush=True)
    print(max(await asyncio.gather(*heard)), flush=True)


@asynccontextmanager
async def _listening(url: str, headers: list[str], count: int) -> AsyncIterator[asyncio.subprocess.Process]:
    address = urlsplit(url)
    request = "\r\n".join([f"GET {address.path} HTTP/1.1", f"host: {address.netloc}", *headers, "", ""])
    program = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.library_listeners"),
        *(address.hostname or "", str(address.port), request, str(count)),
        stdout=subprocess.PIPE,
    )
    try:
        await _line(program, 300)
        yield program
    finally:
        with contextlib.suppress(ProcessLookupError):
            program.kill()
        await program.wait()


async def _line(program: asyncio.subprocess.Process, patience_s: float) -> str:
    assert program.stdout is not None
    async with asyncio.timeout(patience_s):
        line = await program.stdout.readline()
    assert line, "the listeners ended"
    return line.decode().strip()


def _rss(pid: int) -> float:
    """KiB of resident memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return float(text.partition("VmRSS:")[2].split()[0])


async def _measure(url: str, headers: list[str], count: int, pid: int, tell: Any) -> tuple[float, float, float, float]:
    """(seconds to open all, KiB each idle, KiB each after the change, seconds until all have heard it)."""
    async with _listening(url, headers, min(count, 100)):  # what the first ones load is nobody's
        pass
    await asyncio.sleep(2)
    before, began = _rss(pid), time.time()
    async with _listening(url, headers, count) as program:
        took = time.time() - began
        await asyncio.sleep(2)
        idle = (_rss(pid) - before) / count
        began = time.time()
        await asyncio.to_thread(tell)
        last = float(await _line(program, 120))
        await asyncio.sleep(1)
        return took, idle, (_rss(pid) - before) / count, last - began


async def run(system: System, device: Device, quick: bool) -> list[dict[str, Any]]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    count = min(QUICK if quick else FULL, (hard - 200) // _AT_ONCE * _AT_ONCE)
    device.follow()
    headers = [f"authorization: Bearer {device.token}", "accept: text/event-stream", f"last-event-id: {device.cursor}"]
    url = f"{system.ready['url']}/api/v1/sync/changes"

    def change() -> None:
        device.upload("heard.txt", b"by everybody")

    ours = await _measure(url, headers, count, system.pids["gateway"], change)
    port = processes.choose_port()
    peer = subprocess.Popen([sys.executable, "-c", PEER, str(port)], stderr=subprocess.DEVNULL)
    try:
        await _up(port)
        here = f"http://127.0.0.1:{port}"
        told = json.dumps(device.changes()[-1:])
        theirs = await _measure(f"{here}/changes", [], count, peer.pid, lambda: _post(port, told))
    finally:
        peer.kill()  # it would wait for its listeners
        peer.wait(30)
    return [_row("undrift", count, ours, "<= 12 KiB", "9 KiB"), _row("aiohttp, bare", count, theirs, "", "")]


def _row(who: str, count: int, found: tuple[float, float, float, float], must: str, aim: str) -> dict[str, Any]:
    return {
        "section": SECTION,
        "server": who,
        "listeners": f"{count:,}",
        "opened_s": f"{found[0]:.1f}",
        "KiB each": f"{found[1]:.1f}",
        "after a change": f"{found[2]:.1f}",
        "all_heard_s": f"{found[3]:.2f}",
        "must": must,
        "aim": aim,
    }


async def _up(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.05)


def _post(port: int, body: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/tell", body)
    assert connection.getresponse().status == 200
    connection.close()


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    asyncio.run(listen(sys.argv[1], int(sys.argv[2]), sys.argv[3].encode(), int(sys.argv[4])))
