"""A worker, a projector and an outside world for the tests of connectors."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Raw

from domain import collections, integrations, jobs, kinds, messages
from domain.plans import files, reverts
from infra import configfile
from infra.blobs import Blobs
from infra.bus import Bus
from infra.leases import Leases
from infra.panel import Panel
from projections import collections as collections_read
from projections import servers as servers_read
from services import projector
from services.main import Process
from services.worker import children, progress
from services.worker.role import Worker
from tests.projections.histories import ended, open_store, open_tail
from tests.worker import outside

MASTER = b"m" * 32
PATIENCE_S = 60.0
Rows = list[tuple[str, str, dict[str, Any], str | None]]


async def until(true: Callable[[], Awaitable[Any]]) -> Any:
    """The first thing that is true."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await true()):
            await asyncio.sleep(0.02)
        return found


def rows(*ids: str, entity: str = "things", value: str = "1") -> Rows:
    return [(entity, id, {"name": id, "value": value}, None) for id in ids]


def many(count: int, value: str = "1") -> Rows:
    return rows(*(f"{number:05}" for number in range(count)), value=value)


def pages(found: Rows, size: int) -> list[Rows]:
    return [found[start : start + size] for start in range(0, len(found), size)]


@dataclass
class Workshop:
    """A worker, a projector, and an outside world of its own for each integration."""

    process: Process
    folder: Path
    numbers: Any = field(default_factory=lambda: itertools.count(1))

    async def integration(self) -> str:
        id = f"outside-{next(self.numbers)}"
        spec = Raw(msgspec.json.encode(outside.Spec(str(self.folder / id))))
        create = integrations.Create(id, id, outside.KIND, spec)
        await self.process.store.execute(integrations, id, create)
        return id

    def world(self, id: str, pages: list[Rows], **more: Any) -> None:
        """What there is outside from now on."""
        (self.folder / id).write_bytes(msgspec.json.encode(outside.World(pages, **more)))

    async def queue(self, id: str, type: jobs.Type = "full_sync", **options: Any) -> str:
        job = f"job-{next(self.numbers)}"
        spec = Raw(msgspec.json.encode(outside.Spec(str(self.folder / id))))
        ticket = jobs.Ticket(job=job, kind=outside.KIND, type=type, lane="later", integration=id)
        queued = jobs.Queued(ticket=ticket, spec=spec, options=Raw(msgspec.json.encode(kinds.Options(**options))))
        await self.process.store.execute(jobs, job, jobs.Queue(queued))
        return job

    async def job(self, job: str) -> jobs.Job:
        state: jobs.Job = (await self.process.store.load(jobs, f"jobs/main/{job}")).state
        return state

    async def end(self, job: str) -> jobs.Job:
        """The job once it has ended or is held."""

        async def over() -> jobs.Job | None:
            state = await self.job(job)
            return state if state.status in ("completed", "failed", "stopped", "paused") else None

        found: jobs.Job = await until(over)
        return found

    async def run(self, id: str, type: jobs.Type = "full_sync", **options: Any) -> jobs.Job:
        return await self.end(await self.queue(id, type, **options))

    async def bring(self, id: str, pages: list[Rows], **more: Any) -> jobs.Counters:
        """What a run of such a world came to."""
        self.world(id, pages, **more)
        ended = await self.run(id)
        assert ended.status == "completed", ended.ended
        return ended.counters

    async def holds(self, id: str) -> dict[tuple[str, str], Any]:
        """What the collection holds: the content of each item."""
        head = await self.process.store.head()

        async def there() -> bool:
            return await collections_read.position(self.process.db) >= head

        await until(there)
        found = await collections_read.page(self.process.db, "main", id, 1_000_000)
        return {(one.entity, one.item): msgspec.json.decode(one.content or "") for one in found}

    async def log_of(self, id: str) -> list[messages.Recorded]:
        """The events of the collection's items."""
        events = await self.process.store.read(0, 1_000_000)
        return [one for one in events if one.stream.startswith(f"items/main/{id}.")]

    async def events_of(self, job: str) -> list[Any]:
        return [one.event for one in await self.process.store.stream(f"jobs/main/{job}")]

    async def lines(self, job: str) -> list[str]:
        return [one.message for one in await progress.lines(self.process.db, "main", job, 0, 1000)]

    async def sync(self, source: Path, target: Path, **more: Any) -> jobs.Job:
        """A folder sync that also deletes."""
        spec = files.Spec(
            source_directory=str(source), target_directory=str(target), delete_missing_in_target=True, **more
        )
        return await self.end(await self.say("files", spec))

    async def revert(self, job: str, **spec: Any) -> jobs.Job:
        return await self.end(await self.say("revert", reverts.Spec(job, **spec)))

    async def say(self, kind: str, spec: Any) -> str:
        """Queues a job of no integration."""
        job = f"job-{next(self.numbers)}"
        ticket = jobs.Ticket(job=job, kind=kind, type="full_sync", lane="later")
        queued = jobs.Queued(ticket=ticket, spec=Raw(msgspec.json.encode(spec)))
        await self.process.store.execute(jobs, job, jobs.Queue(queued))
        return job

    async def mark(self, id: str) -> collections.Collection:
        state: collections.Collection = (await self.process.store.load(collections, f"collections/main/{id}")).state
        return state


@contextlib.asynccontextmanager
async def open_workshop(url: str, directory: Path, panel: Panel | None = None) -> AsyncIterator[Workshop]:
    settings = configfile.load(
        environ={},
        overrides=[
            ("data_dir", str(directory / "data")),
            ("jobs.beat_s", 0.1),
            ("jobs.poll_s", 0.05),
            ("jobs.lease_s", 1.0),
            ("collections.max_items", 5000),
            ("files.roots", [str(directory)]),
        ],
    )
    async with open_store(url) as store, open_tail(store) as tail:
        live = [collections_read, servers_read]
        await projector.prepare(store.database, live)
        bus = Bus("nats://127.0.0.1:9")
        process = Process(
            name="worker",
            settings=settings,
            master=MASTER,
            db=store.database,
            store=store,
            writer=store.writer,
            tail=tail,
            bus=bus,
            governor=bus,
            leases=Leases(store.database, "worker", settings.jobs.lease_s),
            blobs=Blobs(settings.directory / "blobs"),
            epoch=1,
        )
        kept = children.Children(2)
        tasks = [
            asyncio.create_task(store.writer.run()),
            asyncio.create_task(projector.Projector(process.db, store, tail, settings.projector, live).run()),
            asyncio.create_task(Worker(process, ("now", "later"), kept, panel).serve()),
        ]
        try:
            yield Workshop(process, directory)
        finally:
            for task in reversed(tasks):
                await ended(task)
            await kept.close()
