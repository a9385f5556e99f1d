"""What jobs took of the machine: sums over every run that ended, however it ended."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec import Raw

from domain import jobs, messages
from infra.eventstore.store import Store
from projections import usage as read
from projections.table import schema
from services import projector
from tests.projections.histories import T0, Said, World, fill, open_store

NONE = jobs.Counters()


@pytest.fixture
async def store(database: str) -> AsyncIterator[Store]:
    async with open_store(database) as opened:
        await projector.prepare(opened.database)
        yield opened


async def told(store: Store, said: list[Said], page: int = 10_000) -> None:
    await fill(store.database, said)
    position = 0
    while events := await store.read(position, page):
        async with store.database.transaction() as connection:
            await projector.fold_page(connection, read, schema(read), events)
        position = events[-1].position


class Work:
    """Jobs that are begun and come to an end, with what they should add up to."""

    def __init__(self, seed: int) -> None:
        self.world, self.pick = World(seed), random.Random(seed)
        self.said: list[Said] = []
        self.sums: dict[tuple[str, str, str], dict[str, int]] = defaultdict(lambda: defaultdict(int))

    def job(self, number: int) -> None:
        tenant, kind = self.pick.choice(("main", "second")), self.pick.choice(("files", "plane"))
        integration = self.pick.choice((None, "one", "two"))
        id = f"job-{number}"
        ticket = jobs.Ticket(job=id, kind=kind, type="full_sync", lane="later", integration=integration)
        self.say(tenant, id, jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"))))
        sums = self.sums[(tenant, kind, integration or "")]
        fence, going = 0, True
        while going:
            fence += 1
            self.say(tenant, id, jobs.Start(fence=fence, worker="w", at=T0))
            going = self.end(tenant, id, sums)

    def end(self, tenant: str, id: str, sums: dict[str, int]) -> bool:
        """Ends a run; whether another one follows."""
        used = self.usage(sums) if self.pick.random() < 0.9 else None
        match self.pick.choice(("complete", "fail", "stop", "hold", "pause", "fail and go on")):
            case "complete":
                self.say(tenant, id, jobs.Complete(NONE, Raw(b"{}"), 250, usage=used))
                sums["completed"] += 1
                sums["duration_ms"] += 250
            case "fail":
                self.say(tenant, id, jobs.Fail("sync_failed", "no", NONE, usage=used))
                sums["failed"] += 1
            case "stop":
                self.say(tenant, id, jobs.Stop())
                self.say(tenant, id, jobs.EndStop(NONE, usage=used))
                sums["stopped"] += 1
            case "hold":
                self.say(tenant, id, jobs.Hold("much", "hash", NONE, usage=used))
                self.say(tenant, id, jobs.Resume("hash"))
                return True
            case "pause":
                self.say(tenant, id, jobs.Pause("patience", usage=used))
                self.say(tenant, id, jobs.Resume())
                return True
            case _:
                self.say(tenant, id, jobs.Fail("sync_failed", "no", NONE, usage=used))
                self.say(tenant, id, jobs.Resume())
                sums["failed"] += 1
                return True
        return False

    def usage(self, sums: dict[str, int]) -> jobs.Usage:
        cpu, peak, moved, items = (self.pick.randrange(1, 10_000) for _ in range(4))
        sums["runs"] += 1
        sums["cpu_ms"] += cpu
        sums["peak_bytes"] = max(sums["peak_bytes"], peak)
        sums["bytes"] += moved
        sums["items"] += items
        return jobs.Usage(cpu_ms=cpu, peak_bytes=peak, bytes=moved, items=items)

    def say(self, tenant: str, id: str, command: messages.Command) -> None:
        said = self.world.say(jobs, tenant, id, command)
        assert said, command
        self.said += said


FIGURES = ("runs", "completed", "failed", "stopped", "cpu_ms", "peak_bytes", "bytes", "items", "duration_ms")


def figures(row: Any) -> dict[str, int]:
    return {name: getattr(row, name) for name in FIGURES}


def added(*sums: dict[str, int]) -> dict[str, int]:
    found = {name: sum(one[name] for one in sums) for name in FIGURES}
    return {**found, "peak_bytes": max(one["peak_bytes"] for one in sums)}


@pytest.mark.parametrize("page", [1, 13, 10_000])
async def test_every_run_counts_once(store: Store, page: int) -> None:
    work = Work(page)
    for number in range(60):
        work.job(number)
    await told(store, work.said, page)
    kinds = {row.kind: figures(row) for row in await read.by_kind(store.database)}
    assert kinds == {
        kind: added(*(sums for key, sums in work.sums.items() if key[1] == kind)) for kind in ("files", "plane")
    }
    for tenant in ("main", "second"):
        found = {name: figures(row) for name, row in (await read.by_integration(store.database, tenant)).items()}
        assert found == {
            name: added(*(sums for key, sums in work.sums.items() if key[0] == tenant and key[2] == name))
            for name in ("one", "two")
        }


async def test_without_jobs_there_is_nothing(store: Store) -> None:
    assert await read.by_kind(store.database) == []
    assert await read.by_integration(store.database, "main") == {}


async def test_ends_of_before_that_say_nothing_of_it_count_as_ends(store: Store) -> None:
    world = World(0)
    ticket = jobs.Ticket(job="old", kind="files", type="full_sync", lane="later")
    said = world.say(jobs, "main", "old", jobs.Queue(jobs.Queued(ticket=ticket, spec=Raw(b"{}"))))
    said += world.say(jobs, "main", "old", jobs.Start(fence=1, worker="w", at=T0))
    said += world.say(jobs, "main", "old", jobs.Complete(NONE, Raw(b"{}"), 7))
    await told(store, said)
    [row] = await read.by_kind(store.database)
    assert (row.runs, row.completed, row.cpu_ms, row.duration_ms) == (0, 1, 0, 7)
