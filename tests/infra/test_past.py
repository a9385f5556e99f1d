"""Looking back: the log by time, and by parts of a stream."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from domain import messages
from infra.eventstore import past
from infra.eventstore.store import Store
from tests.projections.histories import World, fill, open_store

T0 = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        yield opened


async def _retime(url: str, times: list[datetime]) -> None:
    """Says of each position when it was recorded, which only the database's owner can."""
    owner = await asyncpg.connect(url)
    try:
        update = "update undrift.events set recorded_at = $2 where pos = $1"
        await owner.executemany(update, list(enumerate(times, start=1)))
    finally:
        await owner.close()


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 8, 64, 100])
async def test_a_time_is_the_last_position_before_it(store: Store, database: str, size: int) -> None:
    if size:
        await fill(store.database, World(size).history(size))
    size = await store.head()
    pick = random.Random(size)
    times, at = [], T0
    for _ in range(size):
        at += timedelta(microseconds=pick.choice((0, 0, 1, 700)))
        times.append(at)
    await _retime(database, times)
    asked = {time + timedelta(microseconds=more) for time in times for more in (-1, 0, 1)} | {T0 - timedelta(days=9)}
    for time in sorted(asked | {datetime.now(UTC)}):
        assert sum(one < time for one in times) == await past.position_before(store.database, time)


async def test_every_page_of_a_stream_from_both_ends(store: Store) -> None:
    await fill(store.database, World(3).history(300))
    everything = await store.read(0, 10_000)
    names = [one.stream for one in everything]
    stream = max(names, key=names.count)
    mine = [one for one in everything if one.stream == stream]
    assert len(mine) > 5
    for after in (0, mine[2].position, mine[-1].position):
        for before in (2**62, mine[-1].position, mine[3].position, 1):
            between = [one for one in mine if after < one.position < before]
            for limit in (1, 2, 1000):
                for newest_first in (False, True):
                    found = await past.page(store, stream, after, before, limit, newest_first=newest_first)
                    wanted = between[::-1] if newest_first else between
                    assert wanted[:limit] == list(found.events)
                    assert (len(mine), len(wanted) > limit) == (found.total, found.more)


async def test_chosen_positions_come_in_order(store: Store) -> None:
    await fill(store.database, World(4).history(20))
    found = await past.chosen(store, [9, 3, 4000])
    assert [one.position for one in found] == [3, 9]
    assert all(isinstance(one, messages.Recorded) for one in found)
    assert await past.time_of(store.database, 3) == found[0].recorded_at
    assert await past.time_of(store.database, 4000) is None
