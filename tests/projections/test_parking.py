"""A poison event is parked with its stream, visibly; all else goes on, and after a repair all is as it should be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import asyncpg
import psycopg
import pytest
import structlog.testing
from msgspec import Raw

import projections
from domain import integrations, jobs, messages, tenants
from infra.eventstore.store import Store
from projections import integrations as integrations_read
from projections import jobs as jobs_read
from projections import tenants as tenants_read
from projections.table import Connection, Projection, schema
from services import doctor, projector
from tests.projections.histories import T0, Said, World, fill, open_store, tables


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        await projector.prepare(opened.database)
        yield opened


async def apply(store: Store, page: int = 100, live: Sequence[Projection] = projections.ALL) -> None:
    """Brings the live read models to the head."""
    at = await projector.positions(store.database, live)
    position = min(at.values())
    while events := await store.read(position, page):
        async with store.database.transaction() as connection:
            for projection in live:
                await projector.fold_page(connection, projection, schema(projection), events)
            position = events[-1].position
            await connection.execute("update undrift.tracking set pos = $1", position)


async def parked(store: Store, projection: Projection) -> list[tuple[int, str]]:
    rows = await store.database.fetch(
        "select pos, stream_id from undrift.parked where projection = $1 and generation = $2 order by pos",
        projection.NAME,
        projection.GENERATION,
    )
    return [tuple(row) for row in rows]


async def break_event(store: Store, position: int, topic: str = "jobs.unheard_of") -> str:
    """As if a newer program had written it; answers what it was."""
    owner = await asyncpg.connect(store.database.dsn)
    was = await owner.fetchval("select topic from undrift.events where pos = $1", position)
    await owner.execute("update undrift.events set topic = $2 where pos = $1", position, topic)
    await owner.close()
    return str(was)


async def assert_as_folded_afresh(store: Store) -> None:
    for projection in projections.ALL:
        async with doctor.shadow(store.database, projection) as (connection, beside):
            await doctor.fold(store, connection, projection, beside, await store.head())
            assert await doctor.differing(connection, projection, beside) is None, projection.NAME


def job(id: str, integration: str | None = None) -> list[Said]:
    """A job from its beginning to its end."""
    world = World(0)
    ticket = jobs.Ticket(job=id, kind="files", type="full_sync", lane="later", integration=integration)
    said = []
    for command in (
        jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"))),
        jobs.Start(fence=1, worker="w", at=T0),
        jobs.Complete(jobs.Counters(1), Raw(b"{}"), 5),
    ):
        said += world.say(jobs, "main", id, command)
    return said


@pytest.mark.parametrize("page", [1, 2, 100])
async def test_a_poison_event_freezes_its_stream_and_nothing_else(store: Store, page: int) -> None:
    one, other = job("one"), job("other")
    mixed = [event for pair in zip(one, other, strict=True) for event in pair]
    await fill(store.database, mixed)
    await break_event(store, 3)  # the start of the first job
    await apply(store, page)
    assert await parked(store, jobs_read) == [(3, "jobs/main/one"), (5, "jobs/main/one")]
    frozen, complete = [await jobs_read.get(store.database, "main", id) for id in ("one", "other")]
    assert frozen is not None
    assert complete is not None
    assert (frozen.status, frozen.position, complete.status) == ("queued", 1, "completed")
    assert (await projector.positions(store.database, projections.ALL))["jobs"] == 6


async def test_it_stays_frozen_on_later_pages_until_it_can_be_read(store: Store) -> None:
    events = job("one")
    versions: dict[str, int] = {}
    await fill(store.database, events[:2], versions)
    was = await break_event(store, 2)
    await apply(store)
    await fill(store.database, [*events[2:], *job("other")], versions)
    await apply(store)
    assert [position for position, _ in await parked(store, jobs_read)] == [2, 3]
    assert await doctor.retry_parked(store.database, store) == 0
    assert [position for position, _ in await parked(store, jobs_read)] == [2, 3]
    await break_event(store, 2, was)
    assert await doctor.retry_parked(store.database, store) > 0
    assert await parked(store, jobs_read) == []
    await assert_as_folded_afresh(store)


async def test_what_others_did_meanwhile_counts_after_the_repair(store: Store) -> None:
    """A read model that is folded from two contexts: the integration cannot be read while its jobs run."""
    create = World(0).say(integrations, "main", "i", integrations.Create("i", "name", "files", Raw(b"{}"), 60))
    await fill(store.database, [*create, *job("one", "i")])
    was = await break_event(store, 1, "integrations.unheard_of")
    await apply(store)
    assert await integrations_read.get(store.database, "main", "i") is None
    await break_event(store, 1, was)
    await doctor.retry_parked(store.database, store)
    row = await integrations_read.get(store.database, "main", "i")
    assert row is not None
    assert (row.total, row.completed) == (1, 1)
    await assert_as_folded_afresh(store)


async def test_random_poison(store: Store) -> None:
    said = World(3).history(400)
    await fill(store.database, said)
    broken = {position: await break_event(store, position) for position in range(5, len(said), 37)}
    await apply(store, 50)
    assert {position for position, _ in await parked(store, jobs_read)}
    for position, was in broken.items():
        await break_event(store, position, was)
    await doctor.retry_parked(store.database, store)
    assert await store.database.fetchval("select count(*) from undrift.parked") == 0
    await assert_as_folded_afresh(store)


async def test_a_rebuild_keeps_what_still_cannot_be_read_parked(store: Store) -> None:
    await fill(store.database, [*job("one"), *job("other")])
    was = await break_event(store, 2)
    await apply(store)
    before = await tables(store.database, schema(jobs_read))
    await doctor.rebuild(store.database, store, jobs_read)
    assert await tables(store.database, schema(jobs_read)) == before
    assert [position for position, _ in await parked(store, jobs_read)] == [2, 3]
    await break_event(store, 2, was)
    for projection in projections.ALL:
        await doctor.rebuild(store.database, store, projection)
        assert await parked(store, projection) == []
    await assert_as_folded_afresh(store)


class Faulty:
    """The tenants' read model with a mistake of ours in it."""

    NAME, GENERATION, CONTEXTS = "tenants", 1, ("tenants",)
    ddl = staticmethod(tenants_read.ddl)

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def apply(self, connection: Connection, name: str, events: Sequence[messages.Recorded]) -> None:
        await tenants_read.apply(connection, name, [event for event in events if event.id != "bad"])
        if any(event.id == "bad" for event in events):
            raise self._error


def added(*names: str) -> list[Said]:
    return [Said(tenants, "main", name, tenants.Added(name)) for name in names]


async def test_a_mistake_of_ours_parks_the_event_and_undoes_its_page(store: Store) -> None:
    await fill(store.database, added("a", "bad", "b"))
    await apply(store, live=[Faulty(ZeroDivisionError("division"))])
    assert await parked(store, tenants_read) == [(2, "tenants/main/bad")]
    assert [row.name for row in await tenants_read.list_(store.database)] == ["a", "b"]
    reason = await store.database.fetchval("select reason from undrift.parked")
    assert reason == "ZeroDivisionError: division"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        asyncpg.DeadlockDetectedError(),
        asyncpg.DiskFullError(),
        asyncpg.QueryCanceledError(),
        asyncpg.UndefinedTableError(),
        TimeoutError(),
    ],
    ids=repr,
)
async def test_trouble_of_the_moment_parks_nothing(store: Store, error: Any) -> None:
    await fill(store.database, added("a", "bad", "b"))
    with pytest.raises(type(error)):
        await apply(store, live=[Faulty(error)])
    assert await parked(store, tenants_read) == []
    assert await tenants_read.list_(store.database) == []


async def test_a_connection_that_dies_parks_nothing(store: Store) -> None:
    class Dying(Faulty):
        async def apply(self, connection: Connection, name: str, events: Sequence[messages.Recorded]) -> None:
            connection.terminate()
            await tenants_read.apply(connection, name, events)

    await fill(store.database, added("a", "b"))
    with pytest.raises(ConnectionResetError):
        await apply(store, live=[Dying(ValueError())])
    assert await parked(store, tenants_read) == []


async def test_a_session_that_dies_in_the_middle_of_a_page_parks_nothing_and_says_so_of_nothing(store: Store) -> None:
    """However far asyncpg has understood that its server is gone."""
    await fill(store.database, job("a"))
    events = await store.read(0, 100)
    with psycopg.connect(store.database.dsn, autocommit=True) as owner:
        for ticks in range(8):
            with structlog.testing.capture_logs() as logs, pytest.raises(projector.TRANSIENT):
                async with store.database.transaction() as connection:
                    await projector.fold_page(connection, Dying(owner, ticks), "rm_jobs_1", events)
            assert logs == [], ticks
    assert await store.database.fetchval("select count(*) from undrift.parked") == 0


class Dying:
    """Its session is told to end between two statements, some turns of the event loop before the second."""

    NAME, GENERATION, CONTEXTS = "dying", 1, ("jobs",)

    def __init__(self, owner: psycopg.Connection[Any], ticks: int) -> None:
        self._owner, self._ticks = owner, ticks

    def ddl(self, name: str) -> str:
        return ""

    async def apply(self, connection: Connection, name: str, events: Sequence[messages.Recorded]) -> None:
        pid = await connection.fetchval("select pg_backend_pid()")
        self._owner.execute("select pg_terminate_backend(%s, 5000)", (pid,))
        for _ in range(self._ticks):
            await asyncio.sleep(0)
        await connection.execute("select")
