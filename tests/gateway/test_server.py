"""Real sockets: whoever drips, floods, stalls or babbles is let go; whoever works is answered to the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
import structlog
import uvloop

from infra import config
from services.gateway import server

DONE = 20  # seconds after which a test that waits for an end has failed


class App:
    """An application that shows what it was sent, and waits where a test wants it to."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.entered = asyncio.Event()
        self.stopping = asyncio.Event()
        self.disconnected = 0
        self.lifespan: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": (await self._message(receive))["text"]})
            await send({"type": "websocket.close"})
        else:
            await getattr(self, scope["path"].strip("/").split("/")[-1])(receive, send)

    async def _message(self, receive: Any) -> Any:
        while (message := await receive())["type"] == "websocket.connect":
            pass
        return message

    async def _live(self, receive: Any, send: Any) -> None:
        for step in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{step}"
            self.lifespan.append(step)
            await send({"type": f"lifespan.{step}.complete"})

    async def echo(self, receive: Any, send: Any) -> None:
        raw = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected += 1
                return
            raw += message["body"]
            if not message["more_body"]:
                break
        await _answer(send, raw)

    async def early(self, receive: Any, send: Any) -> None:
        await _answer(send, b"early")

    async def wait(self, receive: Any, send: Any) -> None:
        self.entered.set()
        await self.gate.wait()
        await _answer(send, b"waited")

    async def stream(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first\n", "more_body": True})
        self.entered.set()
        await self.stopping.wait()
        await send({"type": "http.response.body", "body": b"last\n"})

    async def flood(self, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
                await asyncio.sleep(0)
            await send({"type": "http.response.body", "body": b""})
        finally:
            self.entered.set()


async def _answer(send: Any, raw: bytes) -> None:
    headers = [(b"content-length", str(len(raw)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": raw})


@pytest.fixture
def app() -> App:
    return App()


class Wire:
    """A client that sends bytes as it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def drip(self, *pieces: bytes, every_s: float = 0.01) -> None:
        """Sends the pieces over and over until the server ends the connection."""
        with contextlib.suppress(ConnectionError, RuntimeError):
            while not self.reader.at_eof():
                for piece in pieces:
                    self.writer.write(piece)
                    await self.writer.drain()
                    await asyncio.sleep(every_s)

    async def end(self) -> bytes:
        """What arrives until the server ends the connection."""
        got = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DONE):
                while piece := await self.reader.read(65_536):
                    got += piece
        return got


@contextlib.asynccontextmanager
async def connect(url: str) -> AsyncIterator[Wire]:
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def parsed(raw: bytes) -> tuple[int, dict[str, Any]]:
    head, _, body = raw.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


async def exchange(url: str, raw: bytes) -> bytes:
    async with connect(url) as wire:
        wire.writer.write(raw)
        return await wire.end()


# patience


async def test_a_header_that_drips_is_408_in_the_familys_shape(serve: Any, app: App) -> None:
    url = await serve(app, header_timeout_s=0.15)
    async with connect(url) as wire:
        wire.writer.write(b"GET /api/sync/echo HTTP/1.1\r\nHost: x\r\nX: ")
        dripping = asyncio.create_task(wire.drip(b"y"))
        status, found = parsed(await wire.end())
        await dripping

    assert (status, found["code"]) == (408, "REQUEST_TIMEOUT")


async def test_a_header_that_drips_whole_lines_ends_too(serve: Any, app: App) -> None:
    url = await serve(app, header_timeout_s=0.15)
    async with connect(url) as wire:
        wire.writer.write(b"GET / HTTP/1.1\r\n")
        dripping = asyncio.create_task(wire.drip(b"X: y\r\n"))
        assert parsed(await wire.end())[0] == 408
        await dripping


async def test_a_connection_that_says_nothing_or_only_blank_lines_is_closed(serve: Any, app: App) -> None:
    url = await serve(app, header_timeout_s=0.15)
    async with connect(url) as silent, connect(url) as blank:
        dripping = asyncio.create_task(blank.drip(b"\r\n"))
        assert (await silent.end(), await blank.end()) == (b"", b"")
        await dripping


async def test_an_idle_keep_alive_is_closed_and_not_answered(serve: Any, app: App) -> None:
    url = await serve(app, keep_alive_s=0.15)
    got = await exchange(url, b"GET /early HTTP/1.1\r\nHost: x\r\n\r\n")

    assert got.count(b"HTTP/1.1") == 1
    assert got.endswith(b"early")


async def test_the_next_header_on_a_connection_has_its_own_deadline(serve: Any, app: App) -> None:
    url = await serve(app, header_timeout_s=0.15)
    async with connect(url) as wire:
        wire.writer.write(b"GET /early HTTP/1.1\r\nHost: x\r\n\r\nGET /early HT")
        got = await wire.end()

    assert [line[:20].partition(b"\r")[0] for line in got.split(b"HTTP/1.1")[1:]] == [
        b" 200 OK",
        b" 408 Request Timeout",
    ]


@pytest.mark.parametrize("head", [b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
async def test_a_body_that_drips_is_408_and_the_application_learns_it(serve: Any, app: App, head: bytes) -> None:
    url = await serve(app, body_grace_s=0.15, body_min_bytes_per_s=10_000)
    async with connect(url) as wire:
        wire.writer.write(b"POST /api/v1/sync/echo HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n\r\n")
        dripping = asyncio.create_task(wire.drip(b"1\r\nx\r\n"))
        status, found = parsed(await wire.end())
        await dripping

    assert (status, found["errorCode"], app.disconnected) == (408, "INVALID_REQUEST", 1)


async def test_a_body_that_stops_ends_too(serve: Any, app: App) -> None:
    url = await serve(app, body_grace_s=0.15)
    got = await exchange(url, b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")

    assert parsed(got)[0] == 408


async def test_a_slow_body_that_is_fast_enough_arrives(serve: Any, app: App) -> None:
    url = await serve(app, body_grace_s=0.4, body_min_bytes_per_s=1)
    async with connect(url) as wire:
        wire.writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 4000\r\n\r\n")
        for _ in range(40):
            wire.writer.write(b"z" * 100)
            await asyncio.sleep(0.02)
        got = await wire.end()

    assert got.endswith(b"\r\n\r\n" + b"z" * 4000)


async def test_an_application_that_takes_its_time_is_not_the_clients_fault(serve: Any, app: App) -> None:
    url = await serve(app, body_grace_s=0.05, keep_alive_s=0.05)
    async with connect(url) as wire:
        wire.writer.write(b"POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc")
        await app.entered.wait()
        await asyncio.sleep(0.3)
        app.gate.set()
        got = await wire.end()

    assert got.endswith(b"waited")


async def test_a_body_that_goes_on_after_the_answer_is_not_read_for_ever(serve: Any, app: App) -> None:
    url = await serve(app, body_grace_s=0.15, body_min_bytes_per_s=1)
    async with connect(url) as wire:
        wire.writer.write(b"POST /early HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        dripping = asyncio.create_task(wire.drip(b"x" * 1000))
        assert (await wire.end()).endswith(b"early")
        await dripping


async def test_a_client_that_waits_for_100_continue_is_waited_for(serve: Any, app: App) -> None:
    url = await serve(app, body_grace_s=0.05)
    raw = b"POST /wait HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
    async with connect(url) as wire:
        wire.writer.write(raw)
        await app.entered.wait()
        await asyncio.sleep(0.2)
        app.gate.set()
        assert (await wire.end()).endswith(b"waited")


async def test_a_reader_that_does_not_read_is_cut_off(serve: Any, app: App) -> None:
    url = await serve(app, write_timeout_s=0.15)
    async with connect(url) as wire:
        wire.writer.write(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(DONE):
            await app.entered.wait()
        got = await wire.end()

    assert len(got) < 100_000_000


async def test_500_connections_that_drip_are_closed_while_others_are_served(serve: Any, app: App) -> None:
    url = await serve(app, header_timeout_s=0.5)
    async with contextlib.AsyncExitStack() as stack, aiohttp.ClientSession() as session:
        wires = [await stack.enter_async_context(connect(url)) for _ in range(500)]
        for wire in wires:
            wire.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nX: y")
        for _ in range(20):
            async with session.get(f"{url}/early") as answer:
                assert await answer.text() == "early"
        ends = await asyncio.gather(*(wire.end() for wire in wires))

    assert {parsed(got)[0] for got in ends} == {408}


async def test_the_loop_that_the_product_runs_on_is_as_strict(app: App) -> None:
    async def run() -> list[bytes]:
        settings = config.Gateway(port=0, also_listen=[], header_timeout_s=0.15, body_grace_s=0.15, shutdown_s=0.1)
        sockets = server.bind(settings)
        url = server.url(sockets)
        head = b"POST /echo HTTP/1.1\r\nHost: x\r\n"
        async with server.serving(App(), sockets, settings, asyncio.Event()), asyncio.timeout(DONE):
            return [
                await exchange(url, head + b"X: y"),
                await exchange(url, head + b"Content-Length: 9\r\n\r\nabc"),
                await exchange(url, head + b"Connection: close\r\nContent-Length: 3\r\n\r\nabc"),
                await exchange(url, head + b"nonsense\r\n\r\n"),
            ]

    dripped, starved, echoed, refused = await asyncio.to_thread(uvloop.run, run())

    assert [parsed(got)[0] for got in (dripped, starved, refused)] == [408, 408, 400]
    assert echoed.endswith(b"abc")


# limits and nonsense


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET /api/v1/" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /api/v1/x HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /api/v1/x HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1_000_000, 431),
        (b"GET /api/v1/x HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 300 + b"\r\n", 431),
        (b"GET /api/v1/x HTTP/1.1\r\n\r\n", 400),
        (b"GET /api/v1/x HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n", 400),
        (b"GET /api/v1/\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET /api/v1/x HTTP/1.1\r\nHost: x\r\nX: \0\r\n\r\n", 400),
        (b"POST /api/v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST /api/v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /api/v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
        (b"POST /api/v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST /api/v1/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (
            b"POST /api/v1/e HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"HELO mail\r\n", 400),
    ],
)
async def test_what_is_no_request_is_refused_in_json(serve: Any, app: App, raw: bytes, status: int) -> None:
    got = await exchange(await serve(app), raw)
    answered, found = parsed(got)

    assert (answered, found["errorCode"]) == (status, "INVALID_REQUEST")
    assert b"connection: close" in got


async def test_nonsense_after_a_request_does_not_swallow_its_answer(serve: Any, app: App) -> None:
    url = await serve(app)
    async with connect(url) as wire:
        wire.writer.write(
            b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET /early HTTP/1.1\r\nHost: x\r\n\r\nnonsense\r\n\r\n"
        )
        await app.entered.wait()
        app.gate.set()
        got = await wire.end()

    assert [part.rpartition(b"\r\n\r\n")[2] for part in got.split(b"HTTP/1.1")[1:]] == [b"waited", b"early"]


async def test_a_broken_body_behind_another_request_leaves_that_ones_answer_whole(serve: Any, app: App) -> None:
    url = await serve(app)
    broken = b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"
    async with connect(url) as wire:
        wire.writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + broken)
        await app.entered.wait()
        app.gate.set()
        got = await wire.end()

    assert got.endswith(b"waited")
    assert got.count(b"HTTP/1.1") == 1


async def test_pipelined_requests_are_answered_in_order(serve: Any, app: App) -> None:
    pieces = [f"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{n}" for n in range(9)]
    url = await serve(app, keep_alive_s=0.1)
    got = await exchange(url, "".join(pieces).encode())

    assert [part.rpartition(b"\r\n\r\n")[2] for part in got.split(b"HTTP/1.1")[1:]] == [b"%d" % n for n in range(9)]


async def test_an_upgrade_to_something_else_is_answered_as_if_not_asked_for(serve: Any, app: App) -> None:
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    url = await serve(app)
    for body in (b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"):
        got = await exchange(url, head + body)
        assert got.startswith(b"HTTP/1.1 200")
        assert got.endswith(b"abc")
    async with connect(url) as wire:
        for piece in (head, b"Content-Length: 3\r\n\r\n", b"a", b"bc"):
            wire.writer.write(piece)
            await asyncio.sleep(0.02)
        assert (await wire.end()).endswith(b"abc")


async def test_http_1_0_needs_no_host(serve: Any, app: App) -> None:
    assert (await exchange(await serve(app), b"GET /early HTTP/1.0\r\n\r\n")).endswith(b"early")


async def test_websockets_go_through(serve: Any, app: App) -> None:
    url = await serve(app, header_timeout_s=0.3, connections_per_address=1)
    async with aiohttp.ClientSession() as session:
        for _ in range(3):
            async with session.ws_connect(f"{url}/ws") as socket_:
                await asyncio.sleep(0.4)
                await socket_.send_str("hello")
                assert (await socket_.receive()).data == "hello"


async def test_more_connections_than_there_is_room_for_are_told_to_come_back(serve: Any, app: App) -> None:
    url = await serve(app, connections=3)
    async with connect(url), connect(url), connect(url):
        got = await exchange(url, b"")
    status, found = parsed(got)

    assert (status, found["errorCode"], b"retry-after: 1" in got) == (503, "UNAVAILABLE", True)
    assert (await exchange(url, b"GET /early HTTP/1.0\r\n\r\n")).endswith(b"early")


# stopping


async def started(app: App, **settings: Any) -> tuple[str, asyncio.Task[None]]:
    patient = config.Gateway(port=0, also_listen=[], **settings)
    sockets = server.bind(patient)

    async def run() -> None:
        async with server.serving(app, sockets, patient, app.stopping):
            await app.stopping.wait()

    return server.url(sockets), asyncio.create_task(run())


async def ended(task: asyncio.Task[None]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        async with asyncio.timeout(DONE):
            await task


async def test_what_is_in_flight_is_answered_when_it_stops(app: App) -> None:
    url, task = await started(app, shutdown_s=10)
    async with connect(url) as busy, connect(url) as idle:
        busy.writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await app.entered.wait()
        task.cancel()
        assert await idle.end() == b""
        with pytest.raises(ConnectionError):
            await exchange(url, b"")
        app.gate.set()
        got = await busy.end()
    await ended(task)

    assert got.endswith(b"waited")
    assert b"connection: close" in got
    assert app.lifespan == ["startup", "shutdown"]


async def test_open_streams_are_told_and_do_not_hold_it_up(app: App) -> None:
    url, task = await started(app, shutdown_s=10)
    async with connect(url) as wire:
        wire.writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        await app.entered.wait()
        app.stopping.set()
        got = await wire.end()
    await ended(task)

    assert b"last" in got
    assert not task.cancelled()


async def test_what_does_not_end_in_time_is_cut_off(app: App) -> None:
    url, task = await started(app, shutdown_s=0.05)
    async with connect(url) as wire:
        wire.writer.write(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        await app.entered.wait()
        task.cancel()
        await ended(task)
        assert await wire.end() == b""

    assert app.lifespan == ["startup", "shutdown"]


async def test_an_application_that_cannot_start_says_why() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("no such table")

    with pytest.raises(LookupError, match="no such table"):
        async with server.serving(broken, [], config.Gateway(), asyncio.Event()):
            pass


# addresses


async def test_both_addresses_of_this_machine_share_one_free_port(serve: Any, app: App) -> None:
    url = await serve(app)
    port = urlsplit(url).port
    hosts = ["127.0.0.1", "[::1]"] if server._has_ipv6() else ["127.0.0.1"]
    for host in hosts:
        assert (await exchange(f"http://{host}:{port}", b"GET /early HTTP/1.0\r\n\r\n")).endswith(b"early")


def test_a_further_port_that_is_taken_is_a_warning_and_the_first_is_an_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with structlog.testing.capture_logs() as logs:
            sockets = server.bind(config.Gateway(port=0, also_listen=[taken]))
        try:
            assert taken not in server.ports(sockets)
            assert [(line["log_level"], line["port"]) for line in logs] == [("warning", taken)]
        finally:
            for one in sockets:
                one.close()
        with pytest.raises(OSError, match=str(taken)):
            server.bind(config.Gateway(port=taken))


async def test_further_ports_serve_the_same(app: App) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    patient = config.Gateway(port=0, also_listen=[free])
    sockets = server.bind(patient)
    async with server.serving(app, sockets, patient, asyncio.Event()):
        for port in server.ports(sockets):
            assert (await exchange(f"http://127.0.0.1:{port}", b"GET /early HTTP/1.0\r\n\r\n")).endswith(b"early")
        assert free in server.ports(sockets)


def test_a_host_may_be_given() -> None:
    for host, shown in (("127.0.0.2", "127.0.0.2"), ("0.0.0.0", "127.0.0.1"), ("localhost", None)):
        sockets = server.bind(config.Gateway(host=host, port=0, also_listen=[]))
        try:
            assert len(set(server.ports(sockets))) == 1
            if shown:
                assert server.url(sockets) == f"http://{shown}:{server.ports(sockets)[0]}"
        finally:
            for one in sockets:
                one.close()
