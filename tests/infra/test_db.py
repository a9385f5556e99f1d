"""The free list of connections: nobody finds in a connection what another left there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from infra import embedded
from infra.db import CONNECTION_LOST, Database, NotDurable, assert_durable
from tests.infra.appends import append, open_writers


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    owner = await asyncpg.connect(database)
    await owner.execute("create table public.kept (n int primary key); grant all on public.kept to undrift_app")
    await owner.close()
    opened = Database(database, 2)
    yield opened
    await opened.close()


async def _write(db: Database, n: int) -> None:
    async with db.transaction() as connection:
        await connection.execute("insert into kept values ($1)", n)


async def test_what_is_committed_stays_whoever_was_cancelled_before(db: Database) -> None:
    """A user that is cancelled while its transaction begins must not leave it to the next one."""
    for n in range(150):
        task = asyncio.create_task(_write(db, -1 - n))
        for _ in range(random.randrange(6)):
            await asyncio.sleep(0)
        if random.random() < 0.5:
            await asyncio.sleep(random.uniform(0, 0.0005))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await _write(db, n)
    rows = await db.fetch("select n from kept where n >= 0 order by n")
    assert [row["n"] for row in rows] == list(range(150))


async def test_a_late_cancellation_does_not_hit_the_next_statement(db: Database) -> None:
    for _ in range(30):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.003):
                await db.fetchval("select pg_sleep(1)")
        assert await db.fetchval("select 1 from pg_sleep(0.002)") == 1


async def test_a_statement_that_times_out_leaves_nothing_behind(db: Database) -> None:
    async def slow() -> None:
        async with db.transaction() as connection:
            await connection.execute("insert into kept values (1)")
            await connection.execute("select pg_sleep(1)", timeout=0.01)

    with pytest.raises(TimeoutError):
        await slow()
    await _write(db, 1)
    assert await db.fetchval("select count(*) from kept") == 1


async def test_an_open_transaction_is_not_given_back(db: Database) -> None:
    async with db.connection() as connection:
        await connection.execute("begin")
        await connection.execute("insert into kept values (1)")
    for _ in range(2):
        assert await db.fetchval("select count(*) from kept") == 0


async def test_who_stands_still_in_a_transaction_is_put_out(db: Database) -> None:
    """The log goes on although somebody who holds its lock is not heard of any more."""
    assert await db.fetchval("show idle_in_transaction_session_timeout") == "30s"
    still = await db.connect()
    await still.execute("set idle_in_transaction_session_timeout = '50ms'")
    await still.execute("begin")
    await still.execute("select pg_advisory_xact_lock(7305011221)")
    async with open_writers(db.dsn) as [writer]:
        assert (await asyncio.wait_for(writer.append(append()), 20)).first == 1
    still.terminate()


async def test_a_failed_statement_does_not_cost_the_connection(db: Database) -> None:
    pid = await db.fetchval("select pg_backend_pid()")
    with pytest.raises(asyncpg.UndefinedTableError):
        await db.execute("select * from nothing")
    with pytest.raises(asyncpg.DivisionByZeroError):
        async with db.transaction() as connection:
            await connection.execute("select 1 / 0")
    assert await db.fetchval("select pg_backend_pid()") == pid


async def test_no_more_connections_than_allowed(db: Database) -> None:
    pids = await asyncio.gather(*(db.fetchval("select pg_backend_pid() from pg_sleep(0.002)") for _ in range(20)))
    assert len(set(pids)) <= 2


async def test_a_dead_connection_is_replaced(db: Database) -> None:
    owner = await asyncpg.connect(db.dsn)
    for _ in range(10):
        pid = await db.fetchval("select pg_backend_pid()")
        await owner.execute("select pg_terminate_backend($1, 1000)", pid)
        try:
            assert await db.fetchval("select pg_backend_pid()") != pid
        except CONNECTION_LOST:
            assert await db.fetchval("select pg_backend_pid()") != pid
    await owner.close()


async def test_a_server_that_can_lose_commits_is_refused(database: str, tmp_path: Path) -> None:
    testing = Database(database, 1)
    with pytest.raises(NotDurable, match="fsync"):
        await assert_durable(testing)
    await testing.close()
    server = embedded.Postgres(tmp_path)
    url = await asyncio.to_thread(server.start)
    try:
        durable = Database(url, 1, role=None)
        await assert_durable(durable)
        for setting in ("remote_write", "local", "on"):
            await durable.execute(f"set synchronous_commit = {setting}")
            await assert_durable(durable)
        await durable.execute("set synchronous_commit = off")
        with pytest.raises(NotDurable, match="synchronous_commit = off"):
            await assert_durable(durable)
        await durable.close()
    finally:
        await asyncio.to_thread(server.stop)
