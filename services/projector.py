"""Builds the read models: one pass over the log, one transaction for effect and checkpoint, one position for all."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg
import structlog

import projections
from domain import messages
from infra import traces
from infra.config import Projector as Settings
from infra.db import CONNECTION_LOST, Database, naming_loss
from infra.eventstore.store import Store
from infra.pace import Pace
from infra.subscription import Subscription
from infra.tail import Tail
from projections.table import Connection, Projection, schema
from services.main import Process

log = structlog.get_logger()

#: The shadow generation of a rebuild; never queried.
_LOCK = 7305011222

#: Trouble of the moment: the page is tried again, nothing is parked.
TRANSIENT = (
    *CONNECTION_LOST,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientResourcesError,
    asyncpg.InvalidSchemaNameError,
    asyncpg.UndefinedTableError,  # between a rebuild's drop and rename, or before the first start
    asyncio.TimeoutError,
)


#: Effect and checkpoint need not be durable: they vanish together or not at all. Rows are found by index whatever the
#: statistics say: a plan made while a table was small must not outlive it.
_BEGIN = (
    "begin; set local synchronous_commit = off;"
    " set local enable_seqscan = off; set local enable_hashjoin = off; set local enable_mergejoin = off"
)


_NOTIFY = "select pg_notify('undrift_applied', $1)"


class Unclear(Exception):
    """Something is parked, or is to be."""


class Overtaken(Exception):
    """The checkpoint is not where this projector left it: another has moved it, or the server has lost that."""


async def prepare(database: Database, live: Sequence[Projection] = projections.ALL) -> None:
    """Makes the tables of generations that do not exist yet, at position 0."""
    async with database.transaction() as connection:
        await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)
        for projection in live:
            if await connection.fetchval("select to_regnamespace($1) is null", schema(projection)):
                await create(connection, projection, schema(projection))
                await connection.execute(
                    "insert into undrift.tracking values ($1, $2, 0) on conflict (projection, generation)"
                    " do update set pos = 0",
                    projection.NAME,
                    projection.GENERATION,
                )


async def create(connection: Connection, projection: Projection, name: str) -> None:
    await connection.execute(f"create schema {name}")
    await connection.execute(projection.ddl(name))


async def positions(connection: Connection | Database, live: Sequence[Projection]) -> dict[str, int]:
    """How far each read model has come; -1 for one that was never made."""
    rows = await connection.fetch("select projection, generation, pos from undrift.tracking")
    found = {(row["projection"], row["generation"]): row["pos"] for row in rows}
    return {one.NAME: found.get((one.NAME, one.GENERATION), -1) for one in live}


async def fold_page(
    connection: Connection, projection: Projection, name: str, events: Sequence[messages.Recorded]
) -> None:
    """Applies a page to one read model: at once, or event by event under savepoints when it holds a bad one.

    Only errors of decoding and of our own code park an event, with the later events of its stream; trouble of the
    moment is raised.
    """
    mine = _of(projection, events)
    if not mine:
        return
    frozen = await _frozen(connection, projection, name)
    if not frozen and not any(isinstance(event.event, messages.Unreadable) for event in mine):
        try:
            await _apply(connection, projection, name, mine)
            return
        except TRANSIENT:
            raise
        except Exception as error:
            log.error("a page failed and is applied event by event", projection=projection.NAME, reason=repr(error))
    for event in mine:
        reason = await _apply_one(connection, projection, name, event, frozen)
        if reason is not None:
            frozen.add(event.stream)
            await _park(connection, projection, name, event, reason)


async def _apply(
    connection: Connection, projection: Projection, name: str, events: Sequence[messages.Recorded]
) -> None:
    """Under a savepoint. A connection that dies meanwhile is told apart from an error of ours: it parks nothing."""
    with naming_loss(connection):
        async with connection.transaction():
            await projection.apply(connection, name, events)


def _of(projection: Projection, events: Sequence[messages.Recorded]) -> list[messages.Recorded]:
    contexts = projection.CONTEXTS
    return [event for event in events if event.stream.partition("/")[0] in contexts]


async def _apply_one(
    connection: Connection, projection: Projection, name: str, event: messages.Recorded, frozen: set[str]
) -> str | None:
    """Why the event must be parked, or None when it was applied."""
    if event.stream in frozen:
        return "an earlier event of its stream is parked"
    if isinstance(event.event, messages.Unreadable):
        return event.event.reason
    try:
        await _apply(connection, projection, name, [event])
    except TRANSIENT:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _generation(projection: Projection, name: str) -> int:
    """Parked events of a shadow (a rebuild, a check) are kept apart from the live ones."""
    return projection.GENERATION if name == schema(projection) else -projection.GENERATION


async def _frozen(connection: Connection, projection: Projection, name: str) -> set[str]:
    rows = await connection.fetch(
        "select distinct stream_id from undrift.parked where projection = $1 and generation = $2",
        projection.NAME,
        _generation(projection, name),
    )
    return {row["stream_id"] for row in rows}


async def _park(
    connection: Connection, projection: Projection, name: str, event: messages.Recorded, reason: str
) -> None:
    log.error(
        "an event is parked", projection=projection.NAME, position=event.position, stream=event.stream, reason=reason
    )
    await connection.execute(
        "insert into undrift.parked (projection, generation, pos, stream_id, reason) values ($1, $2, $3, $4, $5)"
        " on conflict do nothing",
        projection.NAME,
        _generation(projection, name),
        event.position,
        event.stream,
        reason[:1000],
    )


class Projector:
    """Applies what arrived while the last transaction committed. Two may run: the checkpoint moves by
    compare-and-set, and the slower one starts again from where the other came to."""

    def __init__(
        self,
        database: Database,
        store: Store,
        tail: Tail,
        settings: Settings,
        live: Sequence[Projection] = projections.ALL,
    ) -> None:
        self._database, self._store, self._tail = database, store, tail
        self._settings, self._live = settings, live
        self.position = 0
        self.events = 0

    async def run(self) -> None:
        """Serves until cancelled; trouble of the moment is waited out."""
        while True:
            try:
                await prepare(self._database, self._live)
                await self._catch_up()
                await self._follow()
            except Overtaken:
                log.info("the checkpoint is elsewhere", position=self.position)
            except TRANSIENT as error:
                log.warning("the projector waits", reason=f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._settings.retry_s)

    async def _catch_up(self) -> None:
        """Brings new generations up to the others, page by page from the log."""
        at = await positions(self._database, self._live)
        front = max(at.values())
        for projection in self._live:
            position = at[projection.NAME]
            while position < front:
                events = await self._store.read(position, self._settings.page, until=front)
                await self._apply([projection], position, events)
                position = events[-1].position
        self.position = front

    async def _follow(self) -> None:
        subscription = self._tail.subscribe(self.position)
        watching = asyncio.create_task(self._watch(subscription))
        pace = Pace(self._settings.pace_s, self._settings.gather_s)
        size = self._settings.page
        try:
            async for events in subscription:
                await pace.begin()
                events += subscription.more(size - len(events))
                for start in range(0, len(events), size):
                    page = events[start : start + size]
                    await self._apply(self._live, self.position, page)
                    self.position = page[-1].position
                    self.events += len(page)
                pace.end(behind=len(events) >= size)
            raise Overtaken
        finally:
            watching.cancel()
            subscription.close()

    async def _watch(self, subscription: Subscription) -> None:
        """Ends the subscription when the checkpoint has fallen back: a server that died took the last transactions with
        it, and nobody who only waits for events would notice."""
        while True:
            await asyncio.sleep(self._settings.check_s)
            reached = self.position
            try:
                kept = min((await positions(self._database, self._live)).values())
            except TRANSIENT:
                continue
            if kept < reached:
                log.warning("the last transactions were lost", position=kept, reached=reached)
                subscription.close()
                return

    async def _apply(self, live: Sequence[Projection], position: int, events: Sequence[messages.Recorded]) -> None:
        """Effect and checkpoint in one transaction: all at once, or with care where that fails."""
        assert events[0].position == position + 1, "the tail is contiguous"
        links = [one.metadata.traceparent for one in events if one.metadata.traceparent] if traces.active() else []
        if not links:
            await self._apply_page(live, position, events)
            return
        about = {"undrift.events": len(events), "undrift.position": events[-1].position}
        with traces.span("read models", attributes=about, links=links):
            await self._apply_page(live, position, events)

    async def _apply_page(self, live: Sequence[Projection], position: int, events: Sequence[messages.Recorded]) -> None:
        try:
            await self._at_once(live, position, events)
        except (Overtaken, *TRANSIENT):
            raise
        except Exception as error:
            if not isinstance(error, Unclear):
                log.error("a page failed and is applied with care", position=position, reason=repr(error))
            await self._with_care(live, position, events)

    async def _at_once(self, live: Sequence[Projection], position: int, events: Sequence[messages.Recorded]) -> None:
        """Raises Unclear, and whatever `apply` raises, with nothing done."""
        last = events[-1].position
        async with self._database.connection() as connection:
            await connection.execute(_BEGIN)
            try:
                await self._move(connection, live, position, last)
                if await connection.fetchval(_NOTIFY + ", exists (select from undrift.parked)", str(last), column=1):
                    raise Unclear
                for projection in live:
                    mine = _of(projection, events)
                    if any(isinstance(event.event, messages.Unreadable) for event in mine):
                        raise Unclear
                    if mine:
                        await projection.apply(connection, schema(projection), mine)
            except Exception:
                if not connection.is_closed():
                    await connection.execute("rollback")
                raise
            await connection.execute("commit")

    async def _with_care(self, live: Sequence[Projection], position: int, events: Sequence[messages.Recorded]) -> None:
        """What cannot be applied is parked."""
        last = events[-1].position
        async with self._database.transaction() as connection:
            await connection.execute("set local synchronous_commit = off")
            await self._move(connection, live, position, last)
            for projection in live:
                await fold_page(connection, projection, schema(projection), events)
            await connection.execute(_NOTIFY, str(last))

    async def _move(self, connection: Connection, live: Sequence[Projection], position: int, last: int) -> None:
        names = [projection.NAME for projection in live]
        generations: list[Any] = [projection.GENERATION for projection in live]
        moved = await connection.execute(
            "update undrift.tracking t set pos = $4 from unnest($1::text[], $2::int[]) as p(name, generation)"
            " where t.projection = p.name and t.generation = p.generation and t.pos = $3",
            names,
            generations,
            position,
            last,
        )
        if moved != f"UPDATE {len(live)}":
            raise Overtaken


async def run(process: Process) -> None:
    """The role."""
    await Projector(process.db, process.store, process.tail, process.settings.projector).run()
