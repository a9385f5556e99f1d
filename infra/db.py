"""Connections to Postgres: our own free list, because a pool's reset query costs half the throughput."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg

ROLE = "undrift_app"

#: What a lost or refused connection looks like: the outcome of what was under way is unknown.
CONNECTION_LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)


@contextmanager
def naming_loss(connection: asyncpg.Connection[asyncpg.Record]) -> Iterator[None]:
    """asyncpg calls the use of a connection that has died an InterfaceError, like a wrong argument: tell them apart.
    One that dies between two statements can also leave it confused about what is in progress."""
    try:
        yield
    except asyncpg.InternalClientError as error:
        connection.terminate()
        raise ConnectionResetError("the connection to Postgres is closed") from error
    except asyncpg.InterfaceError as error:
        if connection.is_closed():
            raise ConnectionResetError("the connection to Postgres is closed") from error
        raise


class NotDurable(Exception):
    """The server or the session would acknowledge what a power cut can take back."""


class Database:
    """Up to `size` connections under the application's role, which cannot change the log.

    A connection that died is dropped when it is given back; the next use opens another, so a restart of the
    server needs nothing from callers but their own retry.
    """

    def __init__(self, dsn: str, size: int = 8, role: str | None = ROLE, name: str = "undrift") -> None:
        self.dsn = dsn
        self._settings = {
            "application_name": name,
            "jit": "off",
            "timezone": "UTC",
            # A process that stands still in the middle of a transaction must not hold the log's lock for ever.
            "idle_in_transaction_session_timeout": "30s",
        }
        if role:
            self._settings["role"] = role
        self._free: list[asyncpg.Connection[asyncpg.Record]] = []
        self._slots = asyncio.Semaphore(size)
        self._closed = False

    async def connect(self) -> asyncpg.Connection[asyncpg.Record]:
        """A connection of the caller's own, outside the free list."""
        return await asyncpg.connect(self.dsn, server_settings=self._settings, timeout=10, command_timeout=60)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        async with self._slots:
            connection = await self._take()
            try:
                with naming_loss(connection):
                    yield connection
            except (asyncio.CancelledError, TimeoutError):
                # What was under way goes on for a moment: the next user could find a transaction begun and never
                # committed, or have its own statement cancelled.
                connection.terminate()
                raise
            finally:
                self._give(connection)

    async def _take(self) -> asyncpg.Connection[asyncpg.Record]:
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
        return await self.connect()

    def _give(self, connection: asyncpg.Connection[asyncpg.Record]) -> None:
        if connection.is_closed():
            return
        if self._closed or connection.is_in_transaction():
            connection.terminate()
        else:
            self._free.append(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def fetch(self, sql: str, *args: Any) -> list[asyncpg.Record]:
        async with self.connection() as connection:
            return await connection.fetch(sql, *args)

    async def fetchrow(self, sql: str, *args: Any) -> asyncpg.Record | None:
        async with self.connection() as connection:
            return await connection.fetchrow(sql, *args)

    async def fetchval(self, sql: str, *args: Any) -> Any:
        async with self.connection() as connection:
            return await connection.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        async with self.connection() as connection:
            return await connection.execute(sql, *args)

    async def close(self) -> None:
        self._closed = True
        free, self._free = self._free, []
        for connection in free:
            await connection.close(timeout=2)


async def assert_durable(database: Database) -> None:
    """Raises NotDurable, naming the setting, unless acknowledged commits survive a power cut."""
    rows = await database.fetch(
        "select name, setting from pg_settings where name in ('fsync', 'full_page_writes', 'synchronous_commit')"
    )
    for row in rows:
        allowed = ("on", "remote_apply", "remote_write", "local") if row["name"] == "synchronous_commit" else ("on",)
        if row["setting"] not in allowed:
            raise NotDurable(f"Postgres runs with {row['name']} = {row['setting']}; Undrift needs it on")
