"""Epochs: the same history keeps its number, a copy or a restored one gets the next."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from infra.db import Database
from infra.eventstore import epochs
from tests.infra.appends import append, open_writers


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    opened = Database(database, 8)
    yield opened
    await opened.close()


async def rows(db: Database) -> list[tuple[int, int]]:
    return [tuple(row) for row in await db.fetch("select epoch, from_pos from undrift.epochs order by epoch")]


async def test_the_first_epoch_begins_at_the_beginning(db: Database) -> None:
    assert await epochs.current(db) == 0
    assert await epochs.open_epoch(db) == 1
    assert await epochs.current(db) == 1
    assert await rows(db) == [(1, 0)]


async def test_the_same_database_stays_in_its_epoch(db: Database) -> None:
    assert await asyncio.gather(*(epochs.open_epoch(db) for _ in range(8))) == [1] * 8
    async with open_writers(db.dsn) as [writer]:
        await writer.append(append())
    assert await epochs.open_epoch(db) == 1
    assert await rows(db) == [(1, 0)]


@pytest.mark.parametrize(
    "change",
    ["system_identifier = '1'", "timeline = timeline + 1", "timeline = timeline - 1", "database = database::int - 1"],
)
async def test_another_server_timeline_or_database_is_another_history(db: Database, change: str) -> None:
    await epochs.open_epoch(db)
    async with open_writers(db.dsn) as [writer]:
        await writer.append(append(count=3))
    owner = await asyncpg.connect(db.dsn)
    await owner.execute(f"update undrift.epochs set {change}")
    await owner.close()
    assert await asyncio.gather(*(epochs.open_epoch(db) for _ in range(4))) == [2] * 4
    assert await rows(db) == [(1, 0), (2, 3)]
    assert await epochs.open_epoch(db) == 2


async def test_a_copy_opens_an_epoch_and_the_original_does_not(db: Database) -> None:
    await epochs.open_epoch(db)
    await db.close()
    name = urlsplit(db.dsn).path[1:]
    server = await asyncpg.connect(urlunsplit(urlsplit(db.dsn)._replace(path="/postgres")))
    await server.execute(f"create database {name}_copy template {name}")
    try:
        copy = Database(f"{db.dsn}_copy", 2)
        assert await epochs.open_epoch(copy) == 2
        assert await epochs.open_epoch(copy) == 2
        await copy.close()
        original = Database(db.dsn, 2)
        assert await epochs.open_epoch(original) == 1
        await original.close()
    finally:
        await server.execute(f"drop database {name}_copy with (force)")
        await server.close()


async def test_the_timeline_is_the_one_being_written(db: Database) -> None:
    await epochs.open_epoch(db)
    assert await db.fetchval("select timeline from undrift.epochs") == await db.fetchval(
        "select timeline_id from pg_control_checkpoint()"
    )


async def test_by_hand_and_everybody_is_told(db: Database) -> None:
    assert await epochs.open_epoch(db) == 1
    heard = asyncio.Queue[str]()
    listening = await db.connect()
    await listening.add_listener(epochs.CHANNEL, lambda *said: heard.put_nowait(str(said[2])))
    async with open_writers(db.dsn) as [writer]:
        await writer.append(append(count=2))
    made = await epochs.advance(db)
    assert (made.epoch, made.from_position) == (2, 2)
    assert await asyncio.wait_for(heard.get(), 5) == epochs.CHANNEL
    await listening.close()
    assert await epochs.present(db) == await epochs.open_epoch(db) == 2
    assert [one.epoch for one in await epochs.all_(db)] == [1, 2]
    assert sorted(one.epoch for one in await asyncio.gather(*(epochs.advance(db) for _ in range(4)))) == [3, 4, 5, 6]


async def test_no_number_is_given_to_two_histories(db: Database, tmp_path: Path) -> None:
    """A log that was restored knows nothing of the epochs that were opened since."""
    assert epochs.remembered(tmp_path) == 0
    epochs.remember(tmp_path, 7)
    epochs.remember(tmp_path, 5)
    assert epochs.remembered(tmp_path) == 7
    assert await epochs.open_epoch(db) == 1
    assert await epochs.open_epoch(db, 1) == 1
    assert await epochs.open_epoch(db, epochs.remembered(tmp_path)) == 8
    assert await epochs.open_epoch(db, 8) == 8
    assert (await epochs.advance(db, 20)).epoch == 21


async def test_another_server_behind_the_same_address_is_not_the_present(db: Database) -> None:
    assert await epochs.present(db) is None
    await epochs.open_epoch(db)
    assert await epochs.present(db) == 1
    owner = await asyncpg.connect(db.dsn)
    await owner.execute("update undrift.epochs set system_identifier = '1'")
    await owner.close()
    assert await epochs.present(db) is None
