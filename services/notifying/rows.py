"""The rows of `undrift.deliveries` as the notifier works with them, and what it asks of the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, TypeAlias

import asyncpg
from msgspec import Struct

from domain import messages
from infra.db import Database, naming_loss
from infra.eventstore.recorder import COLUMNS, notification
from infra.eventstore.store import Store

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
#: (tenant, endpoint)
Key = tuple[str, str]

_COLUMNS = "seq, position, name, stream, message, replay, attempts, first_at, made_at, due"
#: Rows are found by index whatever the statistics say: a plan made while a table was small must not outlive it.
_BY_INDEX = "set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off"


class Row(Struct, eq=False):
    """One message for one endpoint. `event` is what it is about, as soon as it was read."""

    seq: int
    position: int
    name: str
    stream: str
    message: str
    replay: str | None = None
    attempts: int = 0
    first_at: datetime | None = None
    made_at: datetime | None = None
    due: datetime | None = None
    event: messages.Recorded | None = None


class Own:
    """One connection whose statements go by index, opened again when it is lost; one user at a time."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = asyncio.Lock()
        self._connection: Connection | None = None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Connection]:
        async with self._lock:
            connection = self._connection
            if connection is None or connection.is_closed():
                connection = self._connection = await self._database.connect()
                await connection.execute(_BY_INDEX)
            try:
                with naming_loss(connection):
                    yield connection
            except (asyncio.CancelledError, TimeoutError):
                connection.terminate()
                raise

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.terminate()


async def first_pending(own: Own, key: Key) -> int | None:
    """The lowest number that waits."""
    async with own.use() as connection:
        # The fence keeps this among what waits: in order of numbers it would walk through all that is done.
        found: int | None = await connection.fetchval(
            "select min(seq) from (select seq from undrift.deliveries"
            " where tenant = $1 and endpoint = $2 and state = 'pending' offset 0) waiting",
            *key,
        )
    return found


async def pending(own: Own, key: Key, after: int, most: int) -> list[Row]:
    """What waits behind a number, in order."""
    return await _rows(
        own,
        f"select {_COLUMNS} from undrift.deliveries where tenant = $1 and endpoint = $2 and seq > $3"
        " and state = 'pending' order by seq limit $4",
        *key,
        after,
        most,
    )


async def of_stream(own: Own, key: Key, stream: str, first: int, until: int, most: int) -> list[Row]:
    """What waits of one stream, in order."""
    return await _rows(
        own,
        f"select {_COLUMNS} from undrift.deliveries where tenant = $1 and endpoint = $2 and stream = $3"
        " and seq >= $4 and seq <= $5 and state = 'pending' order by seq limit $6",
        *key,
        stream,
        first,
        until,
        most,
    )


async def asked(own: Own) -> dict[Key, list[Row]]:
    """What somebody wants once more; whoever gets it from here has to do it."""
    found: dict[Key, list[Row]] = {}
    async with own.use() as connection:
        rows = await connection.fetch(
            "update undrift.deliveries set asked = false, made_at = clock_timestamp()"
            f" where state = 'pending' and asked returning tenant, endpoint, {_COLUMNS}"
        )
    for row in sorted(rows, key=lambda row: row["seq"]):
        found.setdefault((row["tenant"], row["endpoint"]), []).append(Row(*row[2:]))
    return found


async def _rows(own: Own, sql: str, *values: Any) -> list[Row]:
    async with own.use() as connection:
        return [Row(*row) for row in await connection.fetch(sql, *values)]


async def events(store: Store, positions: Sequence[int]) -> Mapping[int, messages.Recorded]:
    """The events at these positions."""
    rows = await store.database.fetch(
        f"select {COLUMNS} from undrift.events where pos = any ($1::bigint[])", sorted(set(positions))
    )
    return {one.position: one for one in await store.decode([notification(row) for row in rows])}
