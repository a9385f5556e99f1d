"""Serves an ASGI application on sockets that were bound before, until it is told to stop."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import resource
import socket
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import structlog

from infra import config
from services.gateway.commons import Shared, Told
from services.gateway.connection import Connection

log = structlog.get_logger("gateway")

LOOPBACK = ("127.0.0.1", "::1")
_BACKLOG = 2048
_REBINDS = 20


def bind(settings: config.Gateway) -> list[socket.socket]:
    """Listening sockets: `host` (this machine's loopback addresses by default) on `port`, then on each of
    `also_listen`. Port 0 is the same free port on all addresses. Raises OSError for `port`; a further port
    that is taken is only a warning.
    """
    sockets = _bind_port(settings.host, settings.port)
    for port in settings.also_listen:
        if port in ports(sockets):
            continue
        try:
            sockets += _bind_port(settings.host, port)
        except OSError as error:
            log.warning("further port not opened", port=port, reason=error.strerror or str(error))
    return sockets


def ports(sockets: Iterable[socket.socket]) -> list[int]:
    """The ports in the order in which they were bound, each once."""
    return list(dict.fromkeys(one.getsockname()[1] for one in sockets))


def url(sockets: list[socket.socket]) -> str:
    """Where a client on this machine finds the first socket."""
    host, port = sockets[0].getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = LOOPBACK[0] if sockets[0].family == socket.AF_INET else LOOPBACK[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@asynccontextmanager
async def serving(
    app: Any,
    sockets: list[socket.socket],
    settings: config.Gateway,
    stopping: asyncio.Event,
    told: Told | None = None,
) -> AsyncIterator[None]:
    """Serves while the block runs; `told` are headers of what is refused before the application sees it. At the end
    `stopping` is set, which long polls and streams heed; no more is accepted, idle connections close, and what is in
    flight has `shutdown_s` to end before it is cut off.
    """
    _raise_file_limit()
    shared = Shared(app, settings, told)
    loop = asyncio.get_running_loop()
    async with _lifespan(app):
        _stamp(shared)
        listening: list[asyncio.AbstractServer] = [
            await loop.create_server(lambda: Connection(shared, loop), sock=one, backlog=_BACKLOG) for one in sockets
        ]
        sweeping = asyncio.create_task(_sweep(shared))
        try:
            yield
        finally:
            stopping.set()
            for server in listening:
                server.close()
            for one in sockets:
                one.close()
            try:
                await _settle(shared)
            finally:
                sweeping.cancel()
                await _cut(shared)


def _raise_file_limit() -> None:
    """Each connection is a file; the usual soft limit of 1,024 is for programs that use `select`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _sweep(shared: Shared) -> None:
    """One clock for all connections: a timer for each would cost more than the request it watches."""
    settings = shared.settings
    patience_s = min(settings.header_timeout_s, settings.body_grace_s, settings.write_timeout_s, settings.keep_alive_s)
    tick_s = max(0.005, min(1.0, patience_s / 4))
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(tick_s)
        _stamp(shared)
        now = loop.time()
        for connection in list(shared.state.connections):
            if isinstance(connection, Connection):
                connection.check(now)
        for outlet in list(shared.outlets):
            outlet.check(now)


def _stamp(shared: Shared) -> None:
    shared.state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode())]


async def _settle(shared: Shared) -> None:
    for connection in list(shared.state.connections):
        connection.shutdown()
    for outlet in list(shared.outlets):
        outlet.shutdown()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + shared.settings.shutdown_s
    while (shared.state.connections or shared.outlets or shared.state.tasks) and loop.time() < deadline:
        await asyncio.sleep(0.01)


async def _cut(shared: Shared) -> None:
    for connection in list(shared.state.connections):
        if isinstance(connection, Connection):
            connection.cut()
        else:
            connection.transport.abort()
    for outlet in list(shared.outlets):
        outlet.cut()
    tasks = list(shared.state.tasks)
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1)


@asynccontextmanager
async def _lifespan(app: Any) -> AsyncIterator[None]:
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    started = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "lifespan.startup.complete":
            started.set()

    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}
    running = asyncio.ensure_future(app(scope, inbox.get, send))
    inbox.put_nowait({"type": "lifespan.startup"})
    waiting = asyncio.ensure_future(started.wait())
    await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not started.is_set():
        running.result()  # raises what kept it from starting
    try:
        yield
    finally:
        inbox.put_nowait({"type": "lifespan.shutdown"})
        await running


def _bind_port(host: str, port: int) -> list[socket.socket]:
    for attempt in range(_REBINDS):
        found: list[socket.socket] = []
        try:
            for family, address in _addresses(host, port):
                number = found[0].getsockname()[1] if found else port
                found.append(_listen(family, address, number))
        except OSError as error:
            for one in found:
                one.close()
            # A free port of one address may be taken on the next: then another one.
            if port == 0 and found and error.errno == errno.EADDRINUSE and attempt < _REBINDS - 1:
                continue
            raise
        return found
    raise AssertionError("unreachable")


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if not host:
        return [(socket.AF_INET, LOOPBACK[0]), *([(socket.AF_INET6, LOOPBACK[1])] if _has_ipv6() else [])]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, str(address[0])) for family, _, _, _, address in found))


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind((LOOPBACK[1], 0))
    except OSError:
        return False
    return True


def _listen(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited; else an answer waits 40 ms
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))
        one.bind((address, port))
        one.listen(_BACKLOG)  # now, so that a port that is taken shows here
        one.setblocking(False)
    except OSError as error:
        one.close()
        raise OSError(error.errno, f"{address} port {port}: {error.strerror}") from None
    return one
