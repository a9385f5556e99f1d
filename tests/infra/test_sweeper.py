"""What is kept for a while: idempotency keys, and lines of jobs whose deletion was interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from msgspec import Raw

from domain import jobs
from infra import config
from infra.eventstore.recorder import Key
from infra.eventstore.store import Store, Wish
from services.sweeper import Sweeper
from tests.projections.histories import T0, Said, World, ended, fill, open_store, open_tail

SETTINGS = config.EventStore()


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        writing = asyncio.create_task(opened.writer.run())
        yield opened
        await ended(writing)


@pytest.fixture
async def owner(database: str) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


def queued(id: str) -> Wish:
    ticket = jobs.Ticket(job=id, kind="files", type="full_sync", lane="later")
    return Wish(jobs, id, jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"))), fresh=True)


async def keys(store: Store) -> set[str]:
    return {row["key"] for row in await store.database.fetch("select key from undrift.commands")}


async def test_keys_are_forgotten_after_their_time(store: Store, owner: asyncpg.Connection[asyncpg.Record]) -> None:
    ages = {"hour": "1 hour", "days": "6 days 23 hours", "week": "7 days 1 hour", "year": "1 year", "own": "1 year"}
    for name, age in ages.items():
        key = Key("system:reactor" if name == "own" else "key:admin", name, b"hash")
        await store.execute_all([queued(name)], key=key)
        await owner.execute("update undrift.commands set at = at - $2::text::interval where key = $1", name, age)
    async with open_tail(store) as tail:
        assert await Sweeper(store.database, tail, SETTINGS).forget_keys() == 2
        assert await keys(store) == {"hour", "days", "own"}
        assert await Sweeper(store.database, tail, config.EventStore(keep_keys_days=1)).forget_keys() == 1
        assert await keys(store) == {"hour", "own"}
    assert (await store.execute_all([queued("hour-2")], key=Key("key:admin", "hour", b"hash"))).replayed
    assert not (await store.execute_all([queued("week-2")], key=Key("key:admin", "week", b"hash"))).replayed


async def test_no_key_is_forgotten_within_a_day(store: Store, owner: asyncpg.Connection[asyncpg.Record]) -> None:
    await store.execute_all([queued("a")], key=Key("key:admin", "a", b"hash"))
    await owner.execute("update undrift.commands set at = at - interval '23 hours'")
    assert await store.database.fetchval("select undrift.forget_keys(interval '1 second', 10)") == 0
    assert await store.database.fetchval("select undrift.forget_keys(interval '-9 days', 10)") == 0
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await store.database.execute("delete from undrift.commands")


async def test_many_keys_are_forgotten_a_part_at_a_time(
    store: Store, owner: asyncpg.Connection[asyncpg.Record]
) -> None:
    await owner.execute(
        "insert into undrift.commands select 'main', 'key:admin', n::text, 'hash', 1, 0, now() - interval '9 days'"
        " from generate_series(1, 25000) n"
    )
    assert await store.database.fetchval("select undrift.forget_keys(interval '7 days', 10)") == 10
    async with open_tail(store) as tail:
        assert await Sweeper(store.database, tail, SETTINGS).forget_keys() == 24_990
    assert await keys(store) == set()


def ended_job(id: str, *, deleted: bool = True, logs: bool = True) -> list[Said]:
    ticket = jobs.Ticket(job=id, kind="files", type="full_sync", lane="later")
    commands = [
        jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"))),
        jobs.Start(fence=1, worker="w", at=T0),
        jobs.Complete(jobs.Counters(1), Raw(b"{}"), 5),
    ]
    world = World(0)
    said = [one for command in commands for one in world.say(jobs, "main", id, command)]
    return said + (world.say(jobs, "main", id, jobs.Delete(logs)) if deleted else [])


async def write_lines(store: Store, *names: str) -> None:
    for name in names:
        await store.database.execute(
            "insert into undrift.job_logs (job, seq, tenant, at, level, message)"
            " select $1, n, 'main', now(), 'info', 'a line' from generate_series(1, 3) n",
            name,
        )


async def lines(store: Store) -> set[str]:
    return {row["job"] for row in await store.database.fetch("select distinct job from undrift.job_logs")}


async def until_lines(store: Store, expected: set[str]) -> None:
    async with asyncio.timeout(20):
        while await lines(store) != expected:
            await asyncio.sleep(0.01)


async def test_lines_that_an_interrupted_deletion_left_are_erased(store: Store) -> None:
    await write_lines(store, "kept", "open", "a", "b")
    await fill(store.database, ended_job("a") + ended_job("kept", logs=False) + ended_job("open", deleted=False))
    async with open_tail(store) as tail:
        first = asyncio.create_task(Sweeper(store.database, tail, SETTINGS).run())
        await until_lines(store, {"kept", "open", "b"})
        await fill(store.database, ended_job("b"))
        await until_lines(store, {"kept", "open"})
        await ended(first)


async def test_it_goes_on_where_it_was(store: Store) -> None:
    await write_lines(store, "a")
    await fill(store.database, ended_job("a"))
    async with open_tail(store) as tail:
        first = asyncio.create_task(Sweeper(store.database, tail, SETTINGS).run())
        await until_lines(store, set())
        await ended(first)
        await write_lines(store, "a", "b")  # as if they were another's: what is behind it, it does not look at again
        await fill(store.database, ended_job("b"))
        second = asyncio.create_task(Sweeper(store.database, tail, SETTINGS).run())
        await until_lines(store, {"a"})
        await ended(second)
