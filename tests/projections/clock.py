"""Time in the log as a test wants it, and a scheduler whose clock says the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from domain import messages, tenants
from infra import configfile
from infra.blobs import Blobs
from infra.bus import Bus
from infra.db import Database
from infra.eventstore.store import Done, Store
from infra.leases import Leases
from projections import integrations as integrations_read
from projections import jobs as jobs_read
from projections.table import schema
from services import projector
from services.main import Process
from services.scheduler import Scheduler
from tests.projections.histories import Said, ended, fill, open_store, open_tail

LIVE = (integrations_read, jobs_read)
_numbers = count()


async def set_log(store: Store, at: datetime) -> None:
    """What is appended from now on is of that time, which must be in the future: the log's time never goes back."""
    position = await fill(store.database, [Said(tenants, "main", f"clock-{next(_numbers)}", tenants.Added("clock"))])
    owner = Database(store.database.dsn, 1, role=None)
    try:
        await owner.execute("update undrift.events set recorded_at = $1 where pos = $2", at, position)
    finally:
        await owner.close()


class Scene:
    """A log, read models that are folded when asked to, and schedulers that share a clock."""

    def __init__(self, process: Process, now: datetime) -> None:
        self.process, self.store, self.now = process, process.store, now
        self._position, self._fences = 0, count(100)
        self.schedulers = [self.scheduler()]

    def scheduler(self) -> Scheduler:
        return Scheduler(self.process, lambda: self.now)

    def fence(self) -> int:
        return next(self._fences)

    async def to(self, now: datetime) -> None:
        self.now = now
        await set_log(self.store, now)

    async def say(self, context: Any, id: str, *commands: messages.Command) -> Done:
        for command in commands:
            done = await self.store.execute(context, id, command)
        await self.fold()
        return done

    async def tick(self) -> int:
        """Of all schedulers at once; how many jobs that queued."""
        await self.fold()
        fired = await asyncio.gather(*(one.tick() for one in self.schedulers))
        await self.fold()
        return sum(fired)

    async def fold(self) -> None:
        while events := await self.store.read(self._position, 1000):
            async with self.store.database.transaction() as connection:
                for one in LIVE:
                    await projector.fold_page(connection, one, schema(one), events)
                await connection.execute("update undrift.tracking set pos = $1", events[-1].position)
            self._position = events[-1].position
        assert await self.store.database.fetchval("select count(*) from undrift.parked") == 0

    async def row(self, id: str = "i") -> integrations_read.Row:
        row = await integrations_read.get(self.store.database, "main", id)
        assert row is not None
        return row

    async def log(self) -> list[messages.Recorded]:
        return await self.store.read(0, 100_000)


@asynccontextmanager
async def open_scene(url: str, directory: Path, now: datetime, **settings: Any) -> AsyncIterator[Scene]:
    """`settings` are dotted with `__`."""
    overrides = [(name.replace("__", "."), value) for name, value in settings.items()]
    loaded = configfile.load(environ={}, overrides=[("data_dir", str(directory)), *overrides])
    async with open_store(url) as store, open_tail(store) as tail:
        await projector.prepare(store.database, LIVE)
        process = Process(
            name="core",
            settings=loaded,
            master=b"m" * 32,
            db=store.database,
            store=store,
            writer=store.writer,
            tail=tail,
            bus=Bus("nats://127.0.0.1:9"),
            governor=Bus("nats://127.0.0.1:9"),
            leases=Leases(store.database, "core", loaded.jobs.lease_s),
            blobs=Blobs(directory / "blobs"),
            epoch=1,
        )
        writing = asyncio.create_task(store.writer.run())
        try:
            scene = Scene(process, now)
            await scene.to(now)
            yield scene
        finally:
            await ended(writing)
