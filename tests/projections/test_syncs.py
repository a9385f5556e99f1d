"""How jobs ended and how long they took: the sums equal those that are told from each job by itself."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from msgspec import Raw

from domain import jobs, messages
from infra.eventstore.store import Store
from projections import syncs as read
from projections.table import schema
from services import projector
from tests.projections.histories import T0, Said, World, fill, open_store

NONE = jobs.Counters()
ENDS = (jobs.Started, jobs.Resumed, jobs.Completed, jobs.Failed)


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        await projector.prepare(opened.database)
        yield opened


async def told(store: Store, said: list[Said], page: int = 10_000) -> list[messages.Recorded]:
    """Applies it by pages; answers the whole log."""
    await fill(store.database, said)
    position = 0
    while events := await store.read(position, page):
        async with store.database.transaction() as connection:
            await projector.fold_page(connection, read, schema(read), events)
        position = events[-1].position
    return await store.read(0, 100_000)


def counted(log: Iterable[messages.Recorded]) -> dict[tuple[str, str], dict[str, Any]]:
    """Told otherwise than the read model does: by job, from all of its events."""
    by_job: dict[tuple[str, str], list[messages.Recorded]] = defaultdict(list)
    for recorded in log:
        if recorded.stream.startswith("jobs/"):
            by_job[recorded.tenant, recorded.id].append(recorded)
    sums: dict[tuple[str, str], dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    for (tenant, _), events in by_job.items():
        ends = [one for one in events if isinstance(one.event, ENDS)]
        moved = [usage.bytes for one in events if (usage := getattr(one.event, "usage", None)) is not None]
        first = events[0].event
        assert isinstance(first, jobs.Queued)
        found = sums[tenant, first.ticket.kind]
        found["bytes"] += sum(moved)
        last = ends[-1] if ends else events[0]
        begun = next((one for one in ends if isinstance(one.event, jobs.Started)), last)
        took_ms = int((last.recorded_at - begun.recorded_at).total_seconds() * 1_000_000 + 0.5) // 1000
        for kind, name in ((jobs.Completed, "completed"), (jobs.Failed, "failed")):
            if isinstance(last.event, kind):
                found[name] += 1
                found[f"{name}_ms"] += took_ms
    return sums


SUMS = ("completed", "failed", "completed_ms", "failed_ms", "bytes")


@pytest.mark.parametrize("page", [1, 7, 10_000])
async def test_the_sums_are_those_of_each_job(store: Store, page: int) -> None:
    log = await told(store, World(page).history(900), page)
    expected = counted(log)
    assert {kind for _, kind in expected} == {"files", "network"}
    for tenant in ("main", "second"):
        for kinds in (["files"], ["network"], ["files", "network"]):
            row = await read.totals(store.database, tenant, kinds)
            for name in SUMS:
                assert sum(expected[tenant, kind][name] for kind in kinds) == getattr(row, name), (tenant, kinds, name)
    for row in await read.by_kind(store.database):
        assert sum(expected[tenant, row.kind]["completed"] for tenant in ("main", "second")) == row.completed
    assert await store.database.fetchval("select count(*) from undrift.parked") == 0


class Job:
    def __init__(self) -> None:
        self.world = World(0)
        ticket = jobs.Ticket(job="j", kind="files", type="full_sync", lane="later")
        self.said = self.world.say(jobs, "main", "j", jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"))))
        self.fence = 0

    def say(self, *commands: messages.Command) -> None:
        for command in commands:
            said = self.world.say(jobs, "main", "j", command)
            assert said, command
            self.said += said

    def start(self) -> None:
        self.fence += 1
        self.say(jobs.Start(fence=self.fence, worker="w", at=T0))


async def ends(store: Store) -> tuple[int, int]:
    row = await read.totals(store.database, "main", ["files"])
    return row.completed, row.failed


FAIL = jobs.Fail("sync_failed", "no", NONE)


async def test_a_failure_counts_until_the_job_is_resumed(store: Store) -> None:
    job = Job()
    job.start()
    job.say(FAIL)
    await told(store, job.said)
    assert await ends(store) == (0, 1)


async def test_what_was_resumed_counts_as_what_it_comes_to(store: Store) -> None:
    job = Job()
    job.start()
    job.say(FAIL, jobs.Resume())
    job.start()
    job.say(FAIL, jobs.Resume())
    job.start()
    job.say(jobs.Complete(NONE, Raw(b"{}"), 5))
    await told(store, job.said)
    assert await ends(store) == (1, 0)
    assert await store.database.fetchval(f"select count(*) from {schema(read)}.going") == 0


async def test_what_was_stopped_counts_not_and_what_was_deleted_still_does(store: Store) -> None:
    stopped = Job()
    stopped.start()
    stopped.say(jobs.Stop(), jobs.EndStop(NONE, usage=jobs.Usage(bytes=7)), jobs.Delete())
    await told(store, stopped.said)
    assert await ends(store) == (0, 0)
    assert (await read.totals(store.database, "main", ["files"])).bytes == 7


async def test_a_failed_job_that_is_deleted_has_failed(store: Store) -> None:
    job = Job()
    job.start()
    job.say(FAIL, jobs.Delete())
    await told(store, job.said)
    assert await ends(store) == (0, 1)
    assert await store.database.fetchval(f"select count(*) from {schema(read)}.going") == 0


async def test_without_jobs_all_sums_are_zero(store: Store) -> None:
    row = await read.totals(store.database, "main", ["files"])
    assert [getattr(row, name) for name in SUMS] == [0] * 5
    assert await read.by_kind(store.database) == []
