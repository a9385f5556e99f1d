"""The projector: each event once, whoever runs beside it and whenever it ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest

import projections
from domain import events, messages
from infra import config
from infra.db import Database
from infra.eventstore.store import Store
from projections.table import Connection, Projection, schema
from services import doctor, projector
from services.projector import Projector
from tests.projections.histories import World, ended, fill, open_store, open_tail, tables

SETTINGS = config.Projector(page=50, retry_s=0.01)


class Counted:
    """How often each event was applied."""

    NAME = "counted"
    CONTEXTS = tuple(dict.fromkeys(topic.partition(".")[0] for topic in events.REGISTRY))

    def __init__(self, generation: int = 1) -> None:
        self.GENERATION = generation

    def ddl(self, name: str) -> str:
        return f"create table {name}.counted (position bigint primary key, times int not null)"

    async def apply(self, connection: Connection, name: str, events: Sequence[messages.Recorded]) -> None:
        await connection.execute(
            f"insert into {name}.counted as c select p, 1 from unnest($1::bigint[]) as p"
            " on conflict (position) do update set times = c.times + 1",
            [event.position for event in events],
        )


LIVE: tuple[Projection, ...] = (*projections.ALL, Counted())


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        yield opened


async def reached(store: Store, head: int, live: Sequence[Projection] = LIVE) -> None:
    async with asyncio.timeout(20):
        while set((await projector.positions(store.database, live)).values()) != {head}:
            await asyncio.sleep(0.005)


async def assert_once(store: Store, head: int, generation: int = 1) -> None:
    rows = await store.database.fetch(f"select position, times from rm_counted_{generation}.counted order by 1")
    assert [tuple(row) for row in rows] == [(position, 1) for position in range(1, head + 1)]


async def assert_as_folded_afresh(store: Store) -> None:
    for projection in projections.ALL:
        async with doctor.shadow(store.database, projection) as (connection, beside):
            await doctor.fold(store, connection, projection, beside, await store.head())
            assert await doctor.differing(connection, projection, beside) is None, projection.NAME


async def test_two_at_once_that_are_ended_and_begun_again_apply_each_event_once(store: Store) -> None:
    """No order of arrival, no cancellation, no killed session makes an effect happen twice or not at all."""
    said = World(23).history(1200)
    versions: dict[str, int] = {}
    async with open_tail(store) as tail, victims(store) as theirs:

        def begin() -> asyncio.Task[None]:
            return asyncio.create_task(Projector(theirs, store, tail, SETTINGS, LIVE).run())

        running = [begin(), begin()]
        head = 0
        for start in range(0, len(said), 60):
            head = await fill(store.database, said[start : start + 60], versions)
            await asyncio.sleep(random.uniform(0, 0.03))
            victim = random.randrange(2)
            match random.randrange(3):
                case 0:
                    await ended(running[victim])
                    running[victim] = begin()
                case 1:
                    await kill_a_session(store)
                case _:
                    pass
        await reached(store, head)
        for task in running:
            assert not task.done()
            await ended(task)
    await assert_once(store, head)
    await assert_as_folded_afresh(store)
    assert await store.database.fetchval("select count(*) from undrift.parked") == 0


@asynccontextmanager
async def victims(store: Store) -> AsyncIterator[Database]:
    """Connections that only projectors use. A session that is told to end in the middle of something may finish that
    and end in the hands of whoever takes its connection next; a projector tries again, this test's own statements
    do not."""
    opened = Database(store.database.dsn, 8, name="victims")
    try:
        yield opened
    finally:
        await opened.close()


async def kill_a_session(store: Store) -> None:
    """One of a projector that is in the middle of something, if there is one."""
    owner = await asyncpg.connect(store.database.dsn)
    await owner.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        " and state <> 'idle' and application_name = 'victims' limit 1"
    )
    await owner.close()


async def test_effect_and_checkpoint_vanish_together(store: Store) -> None:
    """A page whose transaction never commits leaves neither."""
    await fill(store.database, World(29).history(60))

    class Stuck(Counted):
        begun = asyncio.Event()

        async def apply(self, connection: Connection, name: str, events: Sequence[messages.Recorded]) -> None:
            await super().apply(connection, name, events)
            self.begun.set()
            await asyncio.Event().wait()

    async with open_tail(store) as tail:
        task = asyncio.create_task(Projector(store.database, store, tail, SETTINGS, [Stuck()]).run())
        await Stuck.begun.wait()
        await ended(task)
        assert await store.database.fetchval("select count(*) from rm_counted_1.counted") == 0
        assert await projector.positions(store.database, [Counted()]) == {"counted": 0}
        task = asyncio.create_task(Projector(store.database, store, tail, SETTINGS, [Counted()]).run())
        head = await store.head()
        await reached(store, head, [Counted()])
        await ended(task)
    await assert_once(store, head)


async def test_what_a_dying_server_lost_is_applied_again_without_a_further_event(store: Store) -> None:
    """Effect and checkpoint need not be durable, so both may fall back under a projector that has nothing to do."""
    head = await fill(store.database, World(41).history(90))
    live = [Counted()]
    async with open_tail(store) as tail:
        settings = config.Projector(page=50, retry_s=0.01, check_s=0.05)
        task = asyncio.create_task(Projector(store.database, store, tail, settings, live).run())
        await reached(store, head, live)
        for lost in (1, 17):
            async with store.database.transaction() as connection:
                await connection.execute("update undrift.tracking set pos = $1", head - lost)
                await connection.execute("delete from rm_counted_1.counted where position > $1", head - lost)
            await reached(store, head, live)
            await assert_once(store, head)
        await ended(task)


async def test_a_new_generation_catches_up_beside_the_others(store: Store) -> None:
    versions: dict[str, int] = {}
    said = World(31).history(400)
    head = await fill(store.database, said[:200], versions)
    async with open_tail(store) as tail:
        old = asyncio.create_task(Projector(store.database, store, tail, SETTINGS, LIVE).run())
        await reached(store, head)
        await ended(old)
        newer = [*projections.ALL, Counted(2)]
        new = asyncio.create_task(Projector(store.database, store, tail, SETTINGS, newer).run())
        await reached(store, head, newer)
        head = await fill(store.database, said[200:], versions)
        await reached(store, head, newer)
        await ended(new)
    await assert_once(store, head, 2)
    assert await projector.positions(store.database, [Counted(1)]) == {"counted": 200}


async def test_a_rebuild_while_the_log_grows(store: Store) -> None:
    versions: dict[str, int] = {}
    said = World(37).history(1000)
    await fill(store.database, said[:300], versions)
    async with open_tail(store) as tail:
        task = asyncio.create_task(Projector(store.database, store, tail, SETTINGS, LIVE).run())
        head = 0
        for start in range(300, len(said), 100):
            head = await fill(store.database, said[start : start + 100], versions)
            for projection in LIVE:
                if start % 200:
                    await doctor.rebuild(store.database, store, projection)
        await reached(store, head)
        assert not task.done()
        await ended(task)
    await assert_once(store, head)
    await assert_as_folded_afresh(store)


async def test_two_starters_make_the_tables_once(store: Store) -> None:
    await asyncio.gather(*(projector.prepare(store.database, LIVE) for _ in range(6)))
    assert set((await projector.positions(store.database, LIVE)).values()) == {0}
    assert await projector.positions(store.database, [Counted(9)]) == {"counted": -1}
    for projection in LIVE:
        assert await tables(store.database, schema(projection))
