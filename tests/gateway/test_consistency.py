"""Read-your-writes knows where the read models are, also after a server that died has taken the last of it back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from infra import config
from infra.db import Database
from infra.eventstore.migrate import migrate
from services import projector
from services.gateway.consistency import Reads


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    await migrate(database)  # a copy of a database has not the rights to it
    opened = Database(database, 4)
    await projector.prepare(opened)
    yield opened
    await opened.close()


async def _at(db: Database, position: int) -> None:
    await db.execute("update undrift.tracking set pos = $1", position)


async def _becomes(reads: Reads, position: int) -> None:
    async with asyncio.timeout(20):
        while reads.position != position:
            await asyncio.sleep(0.005)


async def test_a_position_that_was_lost_is_not_believed(db: Database, database: str) -> None:
    reads = Reads(db, config.Gateway(), 0.02)
    running = asyncio.create_task(reads.run())
    await _at(db, 7)
    await _becomes(reads, 7)
    owner = await asyncpg.connect(database)
    await _at(db, 5)
    assert reads.position == 7
    await owner.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where query like 'select min(t.pos)%'"
        " and datname = current_database() and pid <> pg_backend_pid()"
    )
    await owner.close()
    await _becomes(reads, 5)
    assert not await reads.reached(6, 0.05)
    await _at(db, 6)
    assert await reads.reached(6, 20)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
