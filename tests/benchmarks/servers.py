"""Syncs of servers against a Panel that answers at once, beside whoever asks it without keeping anything and a small
program that keeps the answer; and how soon a thousand clients are cut off once a suspension is confirmed."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid as uuids
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import psycopg

from infra import processes
from tests.benchmarks import cpu, load
from tests.doubles import panel as double
from tests.journeys.system import System, until

SYNCS, SUSPENSIONS = "servers: syncs", "servers: clients cut off"
#: As many as a server takes, and servers enough for all.
EACH, SERVERS, CLIENTS = 30, 34, 1000
_PROCESSES = 2

SETTINGS = """
[gateway]
connections = 100000
[panel]
url = "{url}"
token_id = "{id}"
token = "{token}"
list_s = 0
[servers]
runtime = "none"
[sftp]
enabled = false
"""

#: The Panel: nothing but its answers, each with another limit of memory where that is wished.
PANEL = """
import itertools, json, sys
from aiohttp import web

servers, counted = json.loads(sys.stdin.readline()), itertools.count(1)
state = {"suspended": False, "changing": False}

async def one(request):
    found = servers[request.match_info["uuid"]]
    settings = found["settings"]
    settings["suspended"] = state["suspended"]
    if state["changing"]:
        settings["build"]["memory_limit"] = 100 + next(counted) % 100_000
    body = json.dumps(found).encode()
    length = {"content-length": str(len(body))}  # as whoever asks reads it
    return web.Response(body=body, content_type="application/json", headers=length)

async def every(request):
    return web.json_response({"data": [], "meta": {"current_page": 1, "last_page": 1}})

async def say(request):
    state.update(await request.json())
    return web.Response(status=204)

async def reset(request):
    return web.Response(status=204)

app = web.Application()
app.add_routes([web.get("/api/remote/servers/{uuid}", one), web.get("/api/remote/servers", every)])
app.add_routes([web.post("/api/remote/servers/reset", reset), web.post("/state", say)])
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)
"""

#: What somebody would write instead: the answer is read, and a row has it before the Panel is told.
PEER = """
import asyncpg, aiohttp, json, sys
from aiohttp import web

panel, database, port = sys.argv[1:]

async def begin(app):
    app["session"] = aiohttp.ClientSession()
    app["pool"] = await asyncpg.create_pool(database, min_size=8, max_size=8)

async def sync(request):
    uuid = request.match_info["uuid"]
    async with request.app["session"].get(f"{panel}/api/remote/servers/{uuid}") as answer:
        found = json.loads(await answer.read())
    assert found["settings"]["uuid"] == uuid
    await request.app["pool"].execute(
        "insert into bench_servers values ($1, $2) on conflict (uuid) do update set said = excluded.said",
        uuid, json.dumps(found))
    return web.Response(status=204)

app = web.Application()
app.on_startup.append(begin)
app.add_routes([web.post("/api/servers/{uuid}/sync", sync)])
web.run_app(app, host="127.0.0.1", port=int(port), print=None, access_log=None)
"""


@contextmanager
def program(source: str, *arguments: str, port: int, said: str = "") -> Iterator[str]:
    """The address of a program that listens."""
    running = subprocess.Popen([sys.executable, "-c", source, *arguments, str(port)], stdin=subprocess.PIPE, text=True)
    assert running.stdin is not None
    try:
        running.stdin.write(said)
        running.stdin.close()
        assert until(lambda: running.poll() is not None or _listens(port), 30)
        assert running.poll() is None
        yield f"http://127.0.0.1:{port}"
    finally:
        running.kill()
        running.wait(30)


def _listens(port: int) -> bool:
    async def knock() -> bool:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return True
        return False

    return asyncio.run(knock())


# Syncs.


def _request(url: str, uuid: str) -> bytes:
    headers = (f"authorization: Bearer {double.TOKEN}", "content-type: application/json", "content-length: 0")
    return load.request("POST", f"{url}/api/servers/{uuid}/sync", headers=headers)


def _syncs(url: str, uuids: list[str], connections: int, seconds: float) -> load.Load:
    every = itertools.cycle([_request(url, uuid) for uuid in uuids])
    return load.run(url, lambda: next(every), connections, seconds)


def _asked(url: str, uuids: list[str], connections: int, seconds: float) -> load.Load:
    every = itertools.cycle([load.request("GET", f"{url}/api/remote/servers/{uuid}") for uuid in uuids])
    return load.run(url, lambda: next(every), connections, seconds)


def syncs(system: System, panel: str, uuids: list[str], quick: bool) -> list[dict[str, Any]]:
    seconds = 2.0 if quick else 8.0
    rows: list[dict[str, Any]] = []
    with psycopg.connect(system.ready["database_url"], autocommit=True) as connection:
        connection.execute("create table bench_servers (uuid text primary key, said text not null)")
    peer = (panel, system.ready["database_url"])
    with program(PEER, *peer, port=processes.choose_port()) as other:
        for connections in (1, 16):
            limit = _asked(panel, uuids, connections, seconds)
            kept = _syncs(other, uuids, connections, seconds)
            rows.append(_row("the Panel asked, nothing kept", connections, limit, None, "limit"))
            rows.append(_row("aiohttp, a row kept", connections, kept, None, "peer"))
            for changing in (False, True):
                asyncio.run(say(panel, changing=changing))
                before, began = cpu.seconds(system.pids), time.monotonic()
                found = _syncs(system.ready["url"], uuids, connections, seconds)
                spent = cpu.per_request(before, cpu.seconds(system.pids), found.per_second * (time.monotonic() - began))
                name = "undrift, each changes something" if changing else "undrift, nothing changes"
                ratio = f"{found.per_second / kept.per_second:.2f} x peer"
                rows.append({**_row(name, connections, found, sum(spent.values()), ratio)})
            asyncio.run(say(panel, changing=False))
    return rows


def _row(who: str, connections: int, found: load.Load, spent: int | None, note: str) -> dict[str, Any]:
    assert not found.failures, (who, found)
    return {
        "section": SYNCS,
        "who": who,
        "at once": connections,
        "per_s": f"{found.per_second:,.0f}",
        "p50_ms": f"{found.p50_ms:.1f}",
        "p99_ms": f"{found.p99_ms:.1f}",
        "CPU_us each": "" if spent is None else f"{spent:,}",
        "": note,
    }


async def say(panel: str, **state: bool) -> None:
    async with aiohttp.ClientSession() as session, session.post(f"{panel}/state", json=state) as answer:
        assert answer.status == 204


# Clients.

_HELLO = (
    "GET /api/servers/{uuid}/ws HTTP/1.1\r\nhost: {host}\r\norigin: {origin}\r\nupgrade: websocket\r\n"
    "connection: Upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


class _Socket(asyncio.Protocol):
    """Shows its token, and notes when it was let in and when it ended."""

    def __init__(self, hello: bytes, token: str) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[float] = loop.create_future()
        self._hello, self._data = hello, b""
        said = json.dumps({"event": "auth", "args": [token]}).encode()
        self._auth = b"\x81\xfe" + len(said).to_bytes(2, "big") + bytes(4) + said  # a mask of zeros

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.write(self._hello)

    def data_received(self, data: bytes) -> None:
        self._data = (self._data + data)[-4096:]
        if self._auth and b"\r\n\r\n" in self._data:
            self._transport.write(self._auth)
            self._auth = b""
        if not self.opened.done() and b"auth success" in self._data:
            self.opened.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionResetError(f"not let in: {self._data!r}"))
        self.closed.set_result(time.time())


async def clients(origin: str) -> None:
    """A process of its own. Each line that it is told is `{"url", "each": {uuid: [token, count]}}`: all connect, it
    says so, and once all have ended when the last of each server did."""
    loop = asyncio.get_running_loop()
    while line := await asyncio.to_thread(sys.stdin.readline):
        told = json.loads(line)
        address = told["url"].removeprefix("http://")
        host, _, port = address.partition(":")
        sockets: dict[str, list[_Socket]] = {}
        for uuid, (token, count) in told["each"].items():
            hello = _HELLO.format(uuid=uuid, host=address, origin=origin).encode()
            made = [loop.create_connection(lambda: _Socket(hello, token), host, int(port)) for _ in range(count)]  # noqa: B023
            sockets[uuid] = [socket for _, socket in await asyncio.gather(*made)]
            await asyncio.gather(*(socket.opened for socket in sockets[uuid]))
        print("open", flush=True)
        last = {uuid: max(await asyncio.gather(*(one.closed for one in every))) for uuid, every in sockets.items()}
        print(json.dumps(last), flush=True)


class _Crowd:
    """Clients in processes of their own."""

    def __init__(self, stack: ExitStack, origin: str) -> None:
        self._programs = [self._program(stack, origin) for _ in range(_PROCESSES)]

    def _program(self, stack: ExitStack, origin: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.benchmarks.servers", origin]
        made = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.callback(made.wait, 30)
        stack.callback(made.kill)
        return made

    def open(self, url: str, tokens: dict[str, str]) -> None:
        left = CLIENTS
        shares: list[dict[str, tuple[str, int]]] = [{} for _ in self._programs]
        for number, (uuid, token) in enumerate(tokens.items()):
            shares[number % _PROCESSES][uuid] = token, min(EACH, left)
            left -= min(EACH, left)
        for one, share in zip(self._programs, shares, strict=True):
            assert one.stdin is not None
            print(
                json.dumps({"url": url, "each": {uuid: how for uuid, how in share.items() if how[1]}}), file=one.stdin
            )
            one.stdin.flush()
        for one in self._programs:
            assert self._line(one) == "open\n"

    def closed(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for one in self._programs:
            found |= json.loads(self._line(one))
        return found

    def _line(self, one: subprocess.Popen[str]) -> str:
        assert one.stdout is not None
        return one.stdout.readline()


async def _all(url: str, uuids: list[str]) -> dict[str, float]:
    """Syncs servers at the same time; when each was confirmed."""

    async def sync(session: aiohttp.ClientSession, uuid: str) -> float:
        async with session.post(f"{url}/api/servers/{uuid}/sync") as answer:
            assert answer.status == 204, answer
            return time.time()

    headers = {"Authorization": f"Bearer {double.TOKEN}"}
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        return dict(zip(uuids, await asyncio.gather(*(sync(session, uuid) for uuid in uuids)), strict=True))


def suspensions(system: System, panel: str, uuids: list[str], quick: bool) -> list[dict[str, Any]]:
    url = system.ready["url"]
    one, everybody = list[float](), list[float]()
    signer = double.Panel()  # which only signs
    signer.url = panel
    tokens = {uuid: signer.token(uuid, lives_s=3600) for uuid in uuids}
    with ExitStack() as stack:
        crowd = _Crowd(stack, panel)
        for _ in range(3 if quick else 30):
            crowd.open(url, tokens)
            asyncio.run(say(panel, suspended=True))
            confirmed = asyncio.run(_all(url, uuids))
            closed = crowd.closed()
            one += [closed[uuid] - confirmed[uuid] for uuid in closed]
            everybody.append(max(closed.values()) - max(confirmed.values()))
            asyncio.run(say(panel, suspended=False))
            asyncio.run(_all(url, uuids))
    return [_closed("of a server", one, "", ""), _closed(f"of {CLIENTS:,} on {SERVERS} servers", everybody, "1", "0.2")]


def _closed(what: str, found: list[float], must: str, aim: str) -> dict[str, Any]:
    """Before the 204 is before."""
    found = [max(one, 0.0) for one in found]
    quantiles = statistics.quantiles(found, n=100, method="inclusive")
    return {
        "section": SUSPENSIONS,
        "from the 204 to the last": what,
        "suspensions": len(found),
        "p50_s": f"{quantiles[49]:.3f}",
        "p99_s": f"{min(quantiles[98], max(found)):.3f}",
        "most_s": f"{max(found):.3f}",
        "must": must,
        "aim": aim,
    }


def run(quick: bool) -> list[dict[str, Any]]:
    uuids_ = [str(uuids.UUID(int=number, version=4)) for number in range(SERVERS)]
    said = {uuid: {"settings": double.settings(uuid), "process_configuration": double.process()} for uuid in uuids_}
    with (
        tempfile.TemporaryDirectory(prefix="undrift-bench-") as directory,
        program(PANEL, port=processes.choose_port(), said=json.dumps(said) + "\n") as panel,
    ):
        made = SETTINGS.format(url=panel, id=double.TOKEN_ID, token=double.TOKEN)
        system = System(Path(directory), settings=made)
        try:
            system.start()
            for uuid in uuids_:
                assert system.post("/api/servers", {"uuid": uuid}, token=double.TOKEN).status == 202
            rows = syncs(system, panel, uuids_, quick)
            return [*rows, *suspensions(system, panel, uuids_, quick)]
        finally:
            system.stop()


if __name__ == "__main__":
    asyncio.run(clients(sys.argv[1]))
