"""What is read about jobs: pages, totals, what is open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from domain import jobs, messages
from infra.eventstore.store import Store
from projections import jobs as read
from projections.table import schema
from services import projector
from tests.projections.histories import T0, Said, World, fill, open_store

END = jobs.Complete(jobs.Counters(), Raw(b'{"x":1}'), 7)


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        await projector.prepare(opened.database)
        yield opened


def job(id: str, *commands: messages.Command, integration: str | None = None, tenant: str = "main") -> list[Said]:
    world, said = World(0), []
    ticket = jobs.Ticket(job=id, kind="files", type="full_sync", lane="later", integration=integration)
    for command in (jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"))), *commands):
        said += world.say(jobs, tenant, id, command)
    return said


async def told(store: Store, *said: list[Said]) -> None:
    await fill(store.database, [event for one in said for event in one])
    events = await store.read(0, 10_000)
    async with store.database.transaction() as connection:
        await projector.fold_page(connection, read, schema(read), events)


def ids(rows: list[read.Row]) -> list[str]:
    return [row.id for row in rows]


START = jobs.Start(fence=1, worker="w", at=T0)


async def test_the_newest_come_first_with_the_number_of_all(store: Store) -> None:
    await told(store, *(job(f"j{n:02}") for n in range(30)))
    rows, total = await read.list_(store.database, "main")
    assert total == 30
    assert len(rows) == 20
    every, _ = await read.list_(store.database, "main", limit=100)
    assert sorted(ids(every)) == [f"j{n:02}" for n in range(30)]
    assert [row.created_at for row in every] == sorted((row.created_at for row in every), reverse=True)
    assert rows == every[:20]
    assert await read.list_(store.database, "second") == ([], 0)


async def test_filters(store: Store) -> None:
    await told(
        store,
        job("queued", integration="i"),
        job("running", START, integration="i"),
        job("completed", START, END),
        job("deleted", START, END, jobs.Delete()),
        job("theirs", START, tenant="second"),
    )
    everything, total = await read.list_(store.database, "main")
    assert (sorted(ids(everything)), total) == (["completed", "queued", "running"], 3)
    for status in ("queued", "running", "completed"):
        rows, total = await read.list_(store.database, "main", status=status)
        assert (ids(rows), total) == ([status], 1)
    rows, total = await read.list_(store.database, "main", integration="i", limit=1)
    assert (len(rows), total) == (1, 2)
    assert (await read.list_(store.database, "main", status="running", integration="none"))[1] == 0
    assert (await read.list_(store.database, "main", actor="key:queued"))[1] == 1


async def test_one_job(store: Store) -> None:
    await told(store, job("a", START, END), job("gone", START, END, jobs.Delete()))
    row = await read.get(store.database, "main", "a")
    assert row is not None
    assert (row.status, row.progress, row.duration_ms, row.result) == ("completed", 100, 7, '{"x":1}')
    for tenant, id in (("main", "gone"), ("main", "none"), ("second", "a")):
        assert await read.get(store.database, tenant, id) is None


async def test_what_is_open_oldest_first(store: Store) -> None:
    stop = jobs.Stop()
    await told(
        store,
        job("a", integration="i"),
        job("b", START, stop),
        job("c", START, integration="i"),
        job("d", START, END),
        job("e", START, jobs.Pause("x")),
    )
    assert sorted(ids(await read.open_jobs(store.database, "main"))) == ["a", "b", "c"]
    assert sorted(ids(await read.open_jobs(store.database, "main", "i"))) == ["a", "c"]
    times = [row.created_at for row in await read.open_jobs(store.database, "main")]
    assert times == sorted(times)


@pytest.mark.parametrize(
    ("commands", "expected"),
    [
        ((jobs.Fail("sync_failed", "no", jobs.Counters(), {"path": "p"}),), ("sync_failed", "no", "p")),
        ((jobs.Hold("much", "hash", jobs.Counters(), {"path": "p"}),), ("held", "much", "p")),
        ((jobs.Pause("later"),), ("paused", "later", None)),
    ],
    ids=["failed", "held", "paused"],
)
async def test_why_it_does_not_go_on(store: Store, commands: Any, expected: Any) -> None:
    await told(store, job("a", START, *commands), job("b", START, *commands, jobs.Resume()))
    row, resumed = [await read.get(store.database, "main", id) for id in ("a", "b")]
    assert row is not None
    assert resumed is not None
    assert row.error is not None
    error = msgspec.json.decode(row.error)
    assert (error["code"], error["message"], error.get("path")) == expected
    assert (resumed.error, resumed.completed_at, resumed.status) == (None, None, "running")
