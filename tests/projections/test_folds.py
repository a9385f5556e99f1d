"""Read models are a function of the log: whatever the pages, live or rebuilt, and true to the domain."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

import projections
from domain import integrations, jobs, keys, messages
from infra.eventstore.store import Store
from projections import integrations as integrations_read
from projections import jobs as jobs_read
from projections import keys as keys_read
from projections import tenants as tenants_read
from projections.table import Projection, schema
from services import doctor, projector
from tests.projections.histories import World, fill, open_store, tables

#: The contexts of which the random histories tell.
SAID = {"jobs", "integrations", "keys", "tenants", "items", "collections", "library", "devices", "accounts"}


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        yield opened


async def folded(store: Store, projection: Projection, name: str, page: int, until: int) -> dict[str, Any]:
    """The read model in a schema of its own, page by page."""
    async with store.database.transaction() as connection:
        await projector.create(connection, projection, name)
    position = 0
    while position < until:
        async with store.database.transaction() as connection:
            events = await store.read(position, page)
            await projector.fold_page(connection, projection, name, events)
            position = events[-1].position
    return await tables(store.database, name)


@pytest.mark.parametrize("seed", range(3))
async def test_the_size_of_the_pages_does_not_matter(store: Store, seed: int) -> None:
    head = await fill(store.database, World(seed).history(500))
    for projection in projections.ALL:
        [first, *others] = [
            await folded(store, projection, f"{schema(projection)}_by_{page}", page, head) for page in (1, 7, 500)
        ]
        if SAID.issuperset(projection.CONTEXTS):
            assert all(first.values())
        for other in others:
            assert other == first
    assert await store.database.fetchval("select count(*) from undrift.parked") == 0


async def live(store: Store, head: int) -> None:
    """Builds the live read models up to the head, as the projector would."""
    await projector.prepare(store.database)
    events = await store.read(0, 10_000)
    async with store.database.transaction() as connection:
        for projection in projections.ALL:
            await projector.fold_page(connection, projection, schema(projection), events)
        await connection.execute("update undrift.tracking set pos = $1", head)


async def test_a_rebuild_equals_what_was_live(store: Store) -> None:
    head = await fill(store.database, World(7).history(400))
    await live(store, head)
    for projection in projections.ALL:
        before = await tables(store.database, schema(projection))
        for _ in range(2):
            assert await doctor.rebuild(store.database, store, projection) == head
            assert await tables(store.database, schema(projection)) == before
    schemas = await store.database.fetch("select nspname from pg_namespace where nspname like 'rm_%'")
    assert {row["nspname"] for row in schemas} == {schema(projection) for projection in projections.ALL}


async def test_what_was_never_made_can_be_rebuilt(store: Store) -> None:
    head = await fill(store.database, World(8).history(50))
    assert await doctor.rebuild(store.database, store, jobs_read) == head
    assert await projector.positions(store.database, [jobs_read]) == {"jobs": head}
    assert (await tables(store.database, schema(jobs_read)))["jobs"]


async def test_jobs_say_what_the_domain_says(store: Store) -> None:
    head = await fill(store.database, World(3).history(900))
    await live(store, head)
    rows = await store.database.fetch("select * from rm_jobs_1.jobs")
    assert len(rows) > 20
    assert {row["status"] for row in rows} == set(jobs.STATUSES)
    for one in rows:
        row = jobs_read.TABLE.parse(one)
        stream = await store.stream(messages.stream("jobs", row.tenant, row.id))
        job = (await store.load(jobs, stream[0].stream)).state
        assert (row.status, row.counters, row.stage) == (job.status, job.counters, job.stage)
        assert row.progress == job.progress
        assert (row.deleted_at is not None) == job.deleted
        assert (row.position, row.created_at) == (stream[-1].position, stream[0].recorded_at)
        starts = [event.recorded_at for event in stream if isinstance(event.event, jobs.Started)]
        assert row.started_at == (starts[0] if starts else None)
        assert (row.completed_at is not None) == (job.status in ("stopped", "completed", "failed"))
        if row.completed_at is not None:
            assert row.created_at <= (row.started_at or row.created_at) <= row.completed_at
            assert row.duration_ms is not None
        assert (row.result is not None) == (job.status == "completed")
        assert (row.error is not None) == (job.status in ("failed", "paused"))


async def test_integrations_count_what_happened(store: Store) -> None:
    head = await fill(store.database, World(13).history(900))
    await live(store, head)
    log = await store.read(0, 10_000)
    rows = [
        integrations_read.INTEGRATIONS.parse(row)
        for row in await store.database.fetch(f"select * from {integrations_read.SCHEMA}.integrations")
    ]
    assert len(rows) > 3
    for row in rows:
        name = messages.stream("integrations", row.tenant, row.id)
        state = (await store.load(integrations, name)).state
        assert (row.name, row.kind, row.interval) == (state.name, state.kind, state.interval)
        assert (row.active, row.declared, row.config.encode()) == (state.active, state.declared, bytes(state.config))
        assert (row.plan, row.rules) == (state.schedule, state.policy)
        assert (row.next_due is not None) == (row.active and row.timing("main") is not None)
        assert (row.full_due is not None) == (row.active and row.timing("full") is not None)
        made = max(one.position for one in log if one.stream == name and isinstance(one.event, integrations.Created))
        mine = [
            one.event
            for one in log
            if one.position > made
            and one.tenant == row.tenant
            and isinstance(one.event, jobs.Queued | jobs.Completed | jobs.Failed)
            and one.event.ticket.integration == row.id
        ]
        counts = [sum(isinstance(event, kind) for event in mine) for kind in (jobs.Queued, jobs.Completed, jobs.Failed)]
        assert [row.total, row.completed, row.failed] == counts
        completed = [event for event in mine if isinstance(event, jobs.Completed)]
        assert row.duration_ms == sum(event.duration_ms for event in completed)
        for type in ("full", "incremental", "selective"):
            last = [event.duration_ms for event in completed if event.ticket.type == f"{type}_sync"][-10:]
            assert list(getattr(row, f"recent_{type}")) == last
    names = [(row.tenant, row.id) for row in rows]
    deleted = {
        (one.tenant, one.id): isinstance(one.event, integrations.Deleted)
        for one in log
        if one.stream.startswith("integrations/")
    }
    assert sorted(names) == sorted(name for name, gone in deleted.items() if not gone)


async def test_what_is_open_is_what_the_domain_says(store: Store) -> None:
    head = await fill(store.database, World(0).history(400))
    await live(store, head)
    found = {}
    for tenant in ("main", "second"):
        for row in await integrations_read.open_jobs(store.database, tenant):
            found[messages.stream("jobs", tenant, row.job)] = row
    streams = await store.database.fetch("select distinct stream_id from undrift.events where stream_id like 'jobs/%'")
    states = {row["stream_id"]: (await store.load(jobs, row["stream_id"])).state for row in streams}
    mine = {name: state for name, state in states.items() if state.queued and state.queued.ticket.integration}
    expected = {name for name, state in mine.items() if state.status in jobs.OPEN or state.until is not None}
    assert expected == found.keys()
    assert len(expected) > 5
    for name, row in found.items():
        assert row.retry_at == mine[name].until
        assert row.started or row.retry_at is None


async def test_keys_and_tenants(store: Store) -> None:
    head = await fill(store.database, World(17).history(600))
    await live(store, head)
    for tenant in ("main", "second"):
        for row in await keys_read.list_(store.database, tenant):
            key = (await store.load(keys, messages.stream("keys", tenant, row.id))).state
            assert key.added is not None
            assert (row.name, row.scopes, row.roots) == (key.added.name, key.added.scopes, key.added.roots)
            assert (row.revoked_at is not None) == key.revoked
            found = await keys_read.by_token(store.database, row.token_sha256)
            assert found == (None if key.revoked else row)
    assert await keys_read.by_token(store.database, "0" * 64) is None
    listed = [row.name for row in await tenants_read.list_(store.database)]
    log = await store.read(0, 10_000)
    assert sorted(listed) == sorted({one.id for one in log if one.stream.startswith("tenants/")})
