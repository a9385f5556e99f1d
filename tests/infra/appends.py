"""Commands to append, writers to append them, and a line to Postgres that can be cut on one side only."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

from domain import messages
from infra import config
from infra.db import Database
from infra.eventstore.mapper import Draft, LogEvent, LogNotification, Mapper
from infra.eventstore.recorder import Append, Guard, Key, Recorder, Write
from infra.eventstore.writer import Writer
from tests.notes import Written

MAPPER = Mapper({"notes.written": Written})


def event(stream: str, version: int = 1, text: str = "x", id: UUID | None = None) -> LogEvent:
    return MAPPER.to_stored_event(
        Draft("main", stream, version, id or uuid4(), Written(text), messages.Metadata(actor="tests"))
    )


def write(stream: str, expected: int = 0, count: int = 1, claims: Sequence[messages.Claim] = ()) -> Write:
    return Write(stream, expected, [event(stream, expected + n) for n in range(1, count + 1)], claims)


def append(
    stream: str | None = None,
    expected: int = 0,
    count: int = 1,
    *,
    key: str | None = None,
    request: bytes = b"r",
    claims: Sequence[messages.Claim] = (),
    guards: Sequence[Guard] = (),
    principal: str = "tests",
) -> Append:
    """One write, to a new stream unless one is named."""
    named = f"notes/main/{uuid4()}" if stream is None else stream
    said = None if key is None else Key(principal, key, request.ljust(32, b"."))
    return Append("main", [write(named, expected, count, claims)], said, guards, principal)


@asynccontextmanager
async def open_writers(
    url: str, count: int = 1, settings: config.EventStore | None = None
) -> AsyncIterator[list[Writer]]:
    """Writers as `count` processes would have them, running."""
    database = Database(url, 8)
    writers = [Writer(database, settings or config.EventStore(reconnect_s=0.02)) for _ in range(count)]
    running = [asyncio.create_task(writer.run()) for writer in writers]
    try:
        yield writers
    finally:
        for task in running:
            task.cancel()
        for task in running:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await database.close()


async def whole(database: Database, page: int = 1000) -> list[LogNotification]:
    """The log from its beginning, which must have no gap."""
    recorder = Recorder(database)
    found: list[LogNotification] = []
    while some := await recorder.select_notifications(len(found), page, inclusive_of_start=False):
        found += some
    assert [note.id for note in found] == list(range(1, len(found) + 1))
    return found


class Held:
    """Holds the log's lock, so that what is appended meanwhile waits, and shares a group."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def __aenter__(self) -> None:
        self._connection = await self._database.connect()
        await self._connection.execute("begin")
        await self._connection.execute("select pg_advisory_xact_lock(7305011221)")

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()


async def blocked(database: Database, at_least: int = 1) -> set[int]:
    """The sessions that wait for the log's lock, once there are so many."""
    async with asyncio.timeout(10):
        while True:
            rows = await database.fetch("select pid from pg_locks where locktype = 'advisory' and not granted")
            if len(rows) >= at_least:
                return {row["pid"] for row in rows}
            await asyncio.sleep(0.002)


class Line:
    """Passes bytes between clients and a server; `cut` ends the clients' side and leaves the server's as it is, like
    a network that has parted."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._parts = parts
        self._clients: list[asyncio.StreamWriter] = []
        self._servers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> str:
        """The URL by which the server is reached over the line."""
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        credentials = self._parts.netloc.rpartition("@")[0]
        return urlunsplit(self._parts._replace(netloc=f"{credentials}@127.0.0.1:{port}"))

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        far_reader, server = await asyncio.open_connection(*self._address)
        self._clients.append(client)
        self._servers.append(server)
        for one, other in ((reader, server), (far_reader, client)):
            task = asyncio.create_task(_copy(one, other))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def cut(self) -> None:
        for client in self._clients:
            client.transport.abort()
        self._clients.clear()

    async def close(self) -> None:
        self._listener.close()
        for one in (*self._clients, *self._servers):
            one.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
