"""Leases: one owner at a time, judged by its beat on the observer's own clock, and fences that grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from infra import leases
from infra.db import Database
from infra.eventstore.recorder import append_group, prepare
from infra.leases import Lease, Leases
from tests.infra.appends import append, blocked, whole

TTL = 5.0


class Clock:
    """Seconds that pass when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def db(database: str) -> AsyncIterator[Database]:
    opened = Database(database, 20)
    yield opened
    await opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def mine(db: Database, clock: Clock) -> Leases:
    return Leases(db, "mine", TTL, clock)


@pytest.fixture
def theirs(db: Database, clock: Clock) -> Leases:
    return Leases(db, "theirs", TTL, clock)


async def test_a_lease_that_beats_is_not_taken(mine: Leases, theirs: Leases, clock: Clock) -> None:
    lease = await mine.take("x")
    assert lease == Lease("x", "mine", 1)
    for _ in range(5):
        assert await theirs.take("x") is None
        clock.now += TTL - 0.1
        assert await mine.beat([lease]) == set()


async def test_a_lease_that_is_silent_is_taken_with_the_next_fence(mine: Leases, theirs: Leases, clock: Clock) -> None:
    lease = await mine.take("x")
    assert lease is not None
    assert await theirs.take("x") is None
    clock.now += TTL
    assert await theirs.take("x") == Lease("x", "theirs", 2)
    assert await mine.beat([lease]) == {"x"}
    await mine.release(lease)
    assert await mine.take("x") is None


async def test_watching_begins_with_the_first_look(mine: Leases, theirs: Leases, clock: Clock) -> None:
    await mine.take("x")
    clock.now += 100 * TTL
    assert await theirs.take("x") is None
    clock.now += TTL
    assert await theirs.take("x") is not None


async def test_a_released_lease_is_free_at_once(mine: Leases, theirs: Leases) -> None:
    lease = await mine.take("x")
    assert lease is not None
    await mine.release(lease)
    assert not await theirs.alive("x")
    assert await theirs.take("x") == Lease("x", "theirs", 2)
    await mine.release(lease)  # no longer ours to give back
    assert await mine.take("x") is None


async def test_the_same_owner_has_to_wait_as_well(mine: Leases, clock: Clock) -> None:
    await mine.take("x")
    assert await mine.take("x") is None
    clock.now += TTL
    assert await mine.take("x") == Lease("x", "mine", 2)


async def test_beats_say_which_are_lost(mine: Leases, theirs: Leases, clock: Clock) -> None:
    held = [lease for name in "abc" if (lease := await mine.take(name)) is not None]
    assert await theirs.take("b") is None
    clock.now += TTL
    await theirs.take("b")
    assert await mine.beat(held) == {"b"}
    assert await mine.beat([]) == set()
    assert not await mine.alive("none")


async def test_alive_is_what_beats_now(db: Database) -> None:
    mine, theirs = Leases(db, "mine", 0.3), Leases(db, "theirs", 0.3)
    lease = await mine.take("x")
    assert lease is not None
    assert not await theirs.alive("x")
    looking = asyncio.create_task(theirs.alive("x"))
    while not looking.done():
        await mine.beat([lease])
        await asyncio.sleep(0.01)
    assert looking.result()
    assert not await theirs.alive("x")  # its beat was seen a moment ago, and is no more


async def test_of_many_takers_one_wins(db: Database, clock: Clock) -> None:
    owners = [Leases(db, str(number), TTL, clock) for number in range(16)]
    for fence in (1, 2, 3):
        taken = [lease for lease in await asyncio.gather(*(one.take("x") for one in owners)) if lease is not None]
        assert [lease.fence for lease in taken] == [fence]
        assert [await one.take("x") for one in owners] == [None] * len(owners)  # all watch it now
        clock.now += TTL


async def test_nothing_under_an_older_fence_commits_after_a_takeover(
    db: Database, mine: Leases, theirs: Leases, clock: Clock
) -> None:
    """An append that is past its guard, but not committed, holds up who takes the lease."""
    lease = await mine.take("x")
    assert lease is not None
    assert await theirs.take("x") is None
    clock.now += TTL
    connection = await db.connect()
    transaction = connection.transaction()
    await transaction.start()
    await append_group(connection, [prepare(append(guards=[lease.guard]))])
    taking = asyncio.create_task(theirs.take("x"))
    await blocked(db)
    assert not taking.done()
    await transaction.commit()
    assert await taking == Lease("x", "theirs", 2)
    assert len(await whole(db)) == 1
    await connection.close()


async def test_watching_many_leases_takes_bounded_memory(mine: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_WATCHED", 10)
    for number in range(100):
        assert mine.living(str(number), "other", 1, 1)
    assert len(mine._seen) == 10
