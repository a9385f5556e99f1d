"""What is read about integrations: schedule, baseline, estimates."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import Raw

from domain import integrations, jobs, messages
from infra.eventstore.store import Store
from projections import integrations as read
from projections.table import schema
from services import projector
from tests.projections.histories import T0, World, fill, open_store

CREATE = integrations.Create("i", "name", "files", Raw(b'{"a":1}'), 60)


class Told:
    """Says commands and shows the row that comes of them."""

    def __init__(self, store: Store) -> None:
        self._store, self._world = store, World(0)
        self._versions: dict[str, int] = {}
        self._position = 0

    async def integration(self, *commands: messages.Command) -> read.Row | None:
        return await self._say(integrations, "i", commands)

    async def job(self, id: str, *commands: messages.Command) -> read.Row | None:
        return await self._say(jobs, id, commands)

    async def queue(self, id: str, type: jobs.Type = "full_sync", due: datetime | None = None) -> read.Row | None:
        ticket = jobs.Ticket(job=id, kind="files", type=type, lane="later", integration="i")
        trigger = {"trigger": "schedule", "due": due} if due is not None else {}
        queued = jobs.Queued(ticket=ticket, spec=Raw(b"{}"), **trigger)
        return await self.job(id, jobs.Queue(queued), jobs.Start(fence=1, worker="w", at=T0))

    async def _say(self, context: Any, id: str, commands: tuple[messages.Command, ...]) -> read.Row | None:
        said = [event for command in commands for event in self._world.say(context, "main", id, command)]
        await fill(self._store.database, said, self._versions)
        events = await self._store.read(self._position, 1000)
        async with self._store.database.transaction() as connection:
            await projector.fold_page(connection, read, schema(read), events)
        self._position += len(events)
        return await read.get(self._store.database, "main", "i")


@pytest.fixture
async def told(database: str) -> AsyncIterator[Told]:
    async with open_store(database) as store:
        await projector.prepare(store.database)
        yield Told(store)


def complete(duration_ms: int = 5) -> jobs.Complete:
    return jobs.Complete(jobs.Counters(), Raw(b"{}"), duration_ms)


FAIL = jobs.Fail("sync_failed", "no", jobs.Counters())
HOLD = jobs.Hold("much", "plan", jobs.Counters())


async def test_a_completed_full_sync_is_a_baseline(told: Told) -> None:
    await told.integration(CREATE)
    await told.queue("a", "incremental_sync")
    row = await told.job("a", complete())
    assert row is not None
    assert row.baseline_at is None
    await told.queue("b")
    row = await told.job("b", complete())
    assert row is not None
    assert row.baseline_at == row.last_sync is not None


@pytest.mark.parametrize("rest", [FAIL, HOLD, jobs.Pause("shutdown")], ids=lambda command: type(command).__name__)
async def test_a_resumed_full_sync_is_a_baseline_too(told: Told, rest: messages.Command) -> None:
    await told.integration(CREATE)
    await told.queue("a")
    row = await told.job("a", rest)
    assert row is not None
    assert row.baseline_at is None
    row = await told.job("a", jobs.Resume(), jobs.Start(fence=2, worker="w", at=T0), complete())
    assert row is not None
    assert row.baseline_at is not None


async def test_a_full_sync_of_an_older_configuration_is_no_baseline(told: Told) -> None:
    await told.integration(CREATE)
    await told.queue("before")
    await told.integration(integrations.Change(config=Raw(b'{"a":2}')))
    row = await told.job("before", complete())
    assert row is not None
    assert (row.baseline_at, row.completed) == (None, 1)
    await told.queue("after")
    row = await told.job("after", complete())
    assert row is not None
    assert row.baseline_at is not None
    row = await told.integration(integrations.Change(name="other"))
    assert row is not None
    assert row.baseline_at is not None
    row = await told.integration(integrations.Change(config=Raw(b'{"a":3}')))
    assert row is not None
    assert row.baseline_at is None


async def test_full_syncs_that_never_complete_do_not_pile_up(told: Told) -> None:
    await told.integration(CREATE)
    for number in range(120):
        await told.queue(f"a{number}")
        row = await told.job(f"a{number}", FAIL)
    assert row is not None
    assert (len(row.full_open), row.failed, row.last_failed) == (100, 120, True)


async def test_estimates_are_the_median_of_the_last_ten(told: Told) -> None:
    await told.integration(CREATE)
    for number in range(12):
        await told.queue(f"a{number}")
        row = await told.job(f"a{number}", complete(duration_ms=number * 100))
    assert row is not None
    assert row.recent_full == tuple(range(200, 1200, 100))
    assert (row.estimate("full_sync"), row.estimate("incremental_sync")) == (650, 0)


async def test_a_schedule_fires_and_waits_for_its_job(told: Told) -> None:
    row = await told.integration(CREATE)
    assert row is not None
    assert row.next_due == row.created_at + timedelta(seconds=60)
    database = told._store.database
    later = row.next_due + timedelta(seconds=1)
    assert [one.id for one in await read.due(database, later)] == ["i"]
    assert await read.due(database, row.next_due - timedelta(microseconds=1)) == []
    row = await told.queue("a", due=row.next_due)
    assert row is not None
    assert row.scheduled_open == "a"
    assert row.next_due == row.created_at + timedelta(seconds=120)
    assert await read.due(database, later + timedelta(days=1)) == []
    await told.job("a", complete())
    assert [one.id for one in await read.due(database, later + timedelta(days=1))] == ["i"]


async def test_missed_times_are_not_made_up_for(told: Told) -> None:
    row = await told.integration(CREATE)
    assert row is not None
    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    row = await told.queue("a", due=long_ago)
    assert row is not None
    assert row.next_due is not None
    assert row.created_at < row.next_due <= row.created_at + timedelta(seconds=61)
    assert (row.next_due - long_ago) % timedelta(seconds=60) == timedelta()


async def test_a_stopped_schedule_is_never_due(told: Told) -> None:
    await told.integration(CREATE)
    row = await told.integration(integrations.Stop(), integrations.Change(interval=30))
    assert row is not None
    assert (row.active, row.interval, row.next_due) == (False, 30, None)
    row = await told.queue("a", due=T0)
    assert row is not None
    assert row.next_due is None
    row = await told.integration(integrations.Start())
    assert row is not None
    assert row.next_due is not None
    row = await told.integration(integrations.Change(interval=None))
    assert row is not None
    assert row.next_due is None


async def test_a_deleted_integration_is_gone_and_its_jobs_do_not_bring_it_back(told: Told) -> None:
    await told.integration(CREATE)
    await told.queue("a")
    assert await told.integration(integrations.Delete()) is None
    assert await told.job("a", complete()) is None
    row = await told.integration(CREATE)
    assert row is not None
    assert (row.total, row.baseline_at) == (0, None)
    assert await read.list_(told._store.database, "second") == []
    assert await read.list_(told._store.database, "main") == [row]
