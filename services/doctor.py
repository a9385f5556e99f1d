"""The doctor: looks at everything, says what is wrong and what would help, changes nothing unless told to."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
from msgspec import Struct

import projections
from domain import messages
from infra import jetstream
from infra.blobs import Contents
from infra.bus import Bus
from infra.db import Database, NotDurable, assert_durable
from infra.eventstore import seals
from infra.eventstore.store import Store
from projections.table import Connection, Projection, schema
from services import doctor_bytes, doctor_webhooks, erasing, projector
from services.relay import Relay

_PAGE = 1000
_LOOKS, _LOOK_S = 50, 0.2


class Finding(Struct, frozen=True):
    """`check` names what was looked at; `help` says what a person can do where it is not well."""

    check: str
    well: bool
    summary: str
    help: str | None = None


class Doctor:
    """Reads everything through one database, store and bus; `relay` is one that only compares. `contents` are the
    bytes of libraries, in `blobs` where that is a directory; `directory` is the data directory."""

    def __init__(
        self,
        database: Database,
        store: Store,
        bus: Bus,
        relay: Relay,
        contents: Contents | None = None,
        blobs: Path | None = None,
        directory: Path | None = None,
    ) -> None:
        self._database, self._store, self._bus, self._relay = database, store, bus, relay
        self._contents, self._blobs, self._directory = contents, blobs, directory

    async def examine(self, live: Sequence[Projection] = projections.ALL) -> list[Finding]:
        """All checks, in the order in which trouble spreads."""
        checks: list[Callable[[], Awaitable[list[Finding]]]] = [
            self._settings_of_postgres,
            self._positions,
            self._streams,
            self._hashes,
            lambda: self._lag(live),
            lambda: self._parked(live),
            lambda: self._folds(live),
            self._bytes,
            self._erasures,
            self._webhooks,
            self._jetstream,
        ]
        return [finding for check in checks for finding in await check()]

    async def _settings_of_postgres(self) -> list[Finding]:
        try:
            await assert_durable(self._database)
        except NotDurable as error:
            return [Finding("durability", False, str(error), "set it in postgresql.conf and restart Postgres")]
        return [Finding("durability", True, "commits survive a power cut")]

    async def _positions(self) -> list[Finding]:
        row = await self._database.fetchrow(
            "select count(*) as n, coalesce(max(pos), 0) as head, coalesce(min(pos), 1) as first from undrift.events"
        )
        assert row is not None
        well = row["n"] == row["head"] and row["first"] == 1
        text = f"{row['n']} events at positions {row['first']} to {row['head']}"
        return [
            Finding("positions", well, text, None if well else "restore the log from a backup: positions are missing")
        ]

    async def _streams(self) -> list[Finding]:
        broken = await self._database.fetch(
            "select stream_id from undrift.events group by stream_id"
            " having min(version) <> 1 or max(version) <> count(*) limit 5"
        )
        names = ", ".join(row["stream_id"] for row in broken)
        text = f"versions have gaps in {names}" if broken else "every stream counts from 1 without gaps"
        return [Finding("streams", not broken, text, "restore the log from a backup" if broken else None)]

    async def _hashes(self) -> list[Finding]:
        damage = await seals.verify(self._database)
        if not damage:
            return [Finding("hashes", True, "every event has its content hash, every seal its root")]
        where = ", ".join(str(one) for one in damage[:5])
        return [Finding("hashes", False, f"{len(damage)} damages: {where}", "restore these positions from a backup")]

    async def _lag(self, live: Sequence[Projection]) -> list[Finding]:
        head = await self._store.head()
        for _ in range(_LOOKS):  # under load a moment's lag is no trouble
            at = await projector.positions(self._database, live)
            behind = {name: head - position for name, position in at.items() if position < head}
            if not behind:
                break
            await asyncio.sleep(_LOOK_S)
        ahead = [name for name, position in at.items() if position > await self._store.head()]
        if ahead:
            return [Finding("projections", False, f"{', '.join(ahead)} are ahead of the log", "run `undrift rebuild`")]
        text = ", ".join(f"{name} is {lag} events behind" for name, lag in behind.items())
        help = "start the core process, or wait" if behind else None
        return [Finding("projections", not behind, text or f"all at position {head}", help)]

    async def _parked(self, live: Sequence[Projection]) -> list[Finding]:
        rows = await self._database.fetch(
            "select projection, count(*) as n, min(pos) as first, min(reason) as reason from undrift.parked"
            " where generation > 0 group by projection"
        )
        text = "; ".join(
            f"{row['projection']}: {row['n']} from position {row['first']} ({row['reason']})" for row in rows
        )
        help = "after an update that can read them: `undrift doctor --retry-parked`" if rows else None
        return [Finding("parked", not rows, text or "no event is parked", help)]

    async def _folds(self, live: Sequence[Projection]) -> list[Finding]:
        return [await self._fold(projection) for projection in live]

    async def _fold(self, projection: Projection) -> Finding:
        """Folds the log afresh beside the read model and compares them at one position."""
        name = f"read model {projection.NAME}"
        if (await projector.positions(self._database, [projection]))[projection.NAME] < 0:
            return Finding(name, False, "was never made", "start the core process")
        async with shadow(self._database, projection) as (connection, beside):
            position = await _position(connection, projection)
            await fold(self._store, connection, projection, beside, position)
            different = await differing(connection, projection, beside)
        if different is None:
            return Finding(name, True, f"equals a fresh fold of the log at position {position}")
        return Finding(name, False, f"differs from a fresh fold: {different}", "run `undrift rebuild`")

    async def _bytes(self) -> list[Finding]:
        if self._contents is None:
            return []
        gone = await doctor_bytes.missing(self._database, self._contents)
        unstored = await doctor_bytes.unstored(self._database)
        if gone:
            text = f"{len(gone)} blobs are missing: {doctor_bytes.named(gone)}"
            return [Finding("bytes", False, text, "restore the blobs from a backup; devices may still have them")]
        if unstored:
            text = f"{len(unstored)} files have bytes that are noted nowhere: {doctor_bytes.named(unstored)}"
            return [Finding("bytes", False, text, "restore the database from a backup")]
        text = "every file of a library has its bytes"
        if self._blobs is not None:
            count, size = await doctor_bytes.orphans(self._database, self._blobs)
            text += f"; {count} blobs with {size} bytes belong to none" if count else ""
        return [Finding("bytes", True, text)]

    async def _erasures(self) -> list[Finding]:
        if self._directory is None:
            return []
        left = await erasing.unfinished(self._store, self._directory)
        if left:
            help = "start the core process, or wait: it carries them out"
            return [Finding("erasures", False, "; ".join(left), help)]
        return [Finding("erasures", True, "whoever is to be erased is erased everywhere")]

    async def _webhooks(self) -> list[Finding]:
        found = await doctor_webhooks.problems(self._database, self._store)
        text = "; ".join(found) or "every event has its messages, of each stream in order"
        help = "replay the range to the webhook: POST /api/v1/webhooks/ID/replay" if found else None
        return [Finding("webhooks", not found, text, help)]

    async def _jetstream(self) -> list[Finding]:
        if not await self._bus.ready(2.0):
            return [Finding("jetstream", False, "NATS does not answer", "start it; nothing is lost meanwhile")]
        head = await self._store.head()
        for _ in range(_LOOKS):
            state = await jetstream.Stream(self._bus, "EVENTS").state()
            if state is not None and state.last >= head:
                break
            await asyncio.sleep(_LOOK_S)
        if state is None:
            return [Finding("jetstream", False, "there is no stream", "start the core process: it makes it anew")]
        heals = "start the core process, or wait: it heals by itself"
        text = f"sequences {state.first} to {state.last}, the log ends at {head}"
        if not head <= state.last <= await self._store.head():
            return [Finding("jetstream", False, text, heals)]
        if (difference := await self._relay.difference()) is not None:
            return [Finding("jetstream", False, f"the stream is not the log's copy: {difference}", heals)]
        return [Finding("jetstream", True, text)]


async def retry_parked(database: Database, store: Store, live: Sequence[Projection] = projections.ALL) -> int:
    """Applies parked events again, each read model in one transaction; answers how many were applied.

    A read model of several contexts is rebuilt: what its other streams did meanwhile rested on what was parked.
    """
    applied = 0
    for projection in live:
        if not (before := await _parked(database, projection)):
            continue
        if len(projection.CONTEXTS) > 1:
            await rebuild(database, store, projection)
        else:
            await _retry_parked(database, store, projection)
        applied += before - await _parked(database, projection)
    return applied


async def _retry_parked(database: Database, store: Store, projection: Projection) -> None:
    async with database.transaction() as connection:
        await _hold(connection, projection)
        rows = await connection.fetch(
            "delete from undrift.parked where projection = $1 and generation = $2 returning pos",
            projection.NAME,
            projection.GENERATION,
        )
        for position in sorted(row["pos"] for row in rows):
            events = await store.read(position - 1, 1)
            await projector.fold_page(connection, projection, schema(projection), events)


async def _parked(connection: Connection | Database, projection: Projection) -> int:
    count: int = await connection.fetchval(
        "select count(*) from undrift.parked where projection = $1 and generation = $2",
        projection.NAME,
        projection.GENERATION,
    )
    return count


async def _hold(connection: Connection, projection: Projection) -> None:
    """Makes the projector wait until the transaction ends."""
    await connection.execute(
        "select from undrift.tracking where projection = $1 and generation = $2 for update",
        projection.NAME,
        projection.GENERATION,
    )


async def rebuild(database: Database, store: Store, projection: Projection) -> int:
    """Builds a read model anew beside the live one and puts it in its place in one transaction; answers its position.

    The live one serves on meanwhile; at the end the projector waits for the last few events.
    """
    await projector.prepare(database, [projection])
    beside = await _make(database, projection)
    position = 0
    while events := await store.read(position, _PAGE):
        async with database.transaction() as connection:
            await projector.fold_page(connection, projection, beside, events)
        position = events[-1].position
    async with database.transaction() as connection:
        await _hold(connection, projection)
        last = await _position(connection, projection)
        while position < last:
            events = await store.read(position, _PAGE, until=last)
            await projector.fold_page(connection, projection, beside, events)
            position = events[-1].position
        await _switch(connection, projection, beside, position)
    return position


async def _switch(connection: Connection, projection: Projection, beside: str, position: int) -> None:
    await connection.execute(f"drop schema {schema(projection)} cascade")
    await connection.execute(f"alter schema {beside} rename to {schema(projection)}")
    await connection.execute(
        "delete from undrift.parked where projection = $1 and generation = $2",
        projection.NAME,
        projection.GENERATION,
    )
    await connection.execute(
        "update undrift.parked set generation = $2 where projection = $1 and generation = $3",
        projection.NAME,
        projection.GENERATION,
        -projection.GENERATION,
    )
    await connection.execute(
        "update undrift.tracking set pos = $3 where projection = $1 and generation = $2",
        projection.NAME,
        projection.GENERATION,
        position,
    )


async def _make(database: Database, projection: Projection) -> str:
    """Empty tables beside the live ones, under a name nobody else uses."""
    beside = f"{schema(projection)}_{uuid.uuid4().hex[:8]}"
    async with database.transaction() as connection:
        await projector.create(connection, projection, beside)
        await _forget_parked(connection, projection)
    return beside


async def _forget_parked(connection: Connection, projection: Projection) -> None:
    """Those of an earlier shadow; the live ones stay."""
    await connection.execute(
        "delete from undrift.parked where projection = $1 and generation = $2",
        projection.NAME,
        -projection.GENERATION,
    )


@asynccontextmanager
async def shadow(database: Database, projection: Projection) -> AsyncIterator[tuple[Connection, str]]:
    """Empty tables of a read model that vanish at the end, in a transaction that sees one moment of the log."""
    connection = await database.connect()
    beside = f"{schema(projection)}_{uuid.uuid4().hex[:8]}"
    transaction = connection.transaction(isolation="repeatable_read")
    await transaction.start()
    try:
        await projector.create(connection, projection, beside)
        await _forget_parked(connection, projection)
        yield connection, beside
    finally:
        if not connection.is_closed():
            await transaction.rollback()
            await connection.close()


async def fold(store: Store, connection: Connection, projection: Projection, name: str, until: int) -> None:
    """Folds the log up to a position into the tables of a schema."""
    position = 0
    while position < until:
        events: list[messages.Recorded] = await store.read(position, _PAGE, until=until)
        await projector.fold_page(connection, projection, name, events)
        position = events[-1].position


async def differing(connection: Connection, projection: Projection, beside: str) -> str | None:
    """What is not the same in both schemas: a table, and how many rows; None when nothing is."""
    live = schema(projection)
    tables: list[asyncpg.Record] = await connection.fetch(
        "select tablename from pg_tables where schemaname = $1 order by 1", beside
    )
    for (table,) in tables:
        a, b = f"{live}.{table}", f"{beside}.{table}"
        only = await connection.fetchrow(
            f"select (select count(*) from (select * from {a} except all select * from {b}) x) as live,"
            f" (select count(*) from (select * from {b} except all select * from {a}) x) as fresh"
        )
        assert only is not None
        if only["live"] or only["fresh"]:
            return f"{table}: {only['live']} rows are not as they should be, {only['fresh']} are missing"
    return None


async def checksum(connection: Connection, projection: Projection, name: str) -> dict[str, str]:
    """An order-free checksum of each table of a schema."""
    tables = await connection.fetch("select tablename from pg_tables where schemaname = $1", name)
    return {
        table: await connection.fetchval(
            f"select encode(sha256(coalesce(string_agg(md5(t::text), '' order by md5(t::text)), '')::bytea), 'hex')"
            f" from {name}.{table} t"
        )
        for (table,) in tables
    }


async def _position(connection: Connection, projection: Projection) -> int:
    return (await projector.positions(connection, [projection]))[projection.NAME]
