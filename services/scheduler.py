"""Fires schedules: asks what is due and queues it under a key of its own, so two schedulers fire once."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import UTC, datetime

import structlog

from domain import errors, jobs, kinds, messages
from infra.eventstore.recorder import Key
from infra.eventstore.store import Wish
from infra.leases import Lease
from projections import integrations as integrations_read
from services import integrations
from services.main import Process
from services.projector import TRANSIENT

log = structlog.get_logger("scheduler")

LEASE = "scheduler"
_METADATA = messages.Metadata(actor="system:scheduler")


class Scheduler:
    """One at a time holds the lease; the keys make a second one harmless all the same."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._lease: Lease | None = None

    async def run(self) -> None:
        """Serves until cancelled."""
        settings = self._process.settings
        declared = False
        try:
            while True:
                try:
                    if not declared:
                        await integrations.declare(self._process.store, settings.integrations)
                        declared = True
                    if await self._leads():
                        await self.tick(datetime.now(UTC))
                except (*TRANSIENT, errors.Unavailable) as error:
                    log.warning("the scheduler waits", reason=type(error).__name__)
                await asyncio.sleep(settings.scheduler.tick_s)
        finally:
            if self._lease is not None:
                await self._process.leases.release(self._lease)

    async def _leads(self) -> bool:
        leases = self._process.leases
        if self._lease is not None and await leases.beat([self._lease]):
            self._lease = None
        if self._lease is None:
            self._lease = await leases.take(LEASE)
        return self._lease is not None

    async def tick(self, now: datetime) -> int:
        """Queues what is due by `now`; answers how much. What is still waiting from last time is not queued again."""
        fired = 0
        for row in await integrations_read.due(self._process.db, now):
            try:
                fired += await self._fire(row, now)
            except errors.Error as error:
                log.error("a schedule could not fire", integration=row.id, reason=error.message)
        return fired

    async def _fire(self, row: integrations_read.Row, now: datetime) -> bool:
        assert row.next_due is not None
        due = row.next_due
        queued = integrations.queued(row, "incremental_sync", kinds.Options(), 0.0, now, due)
        name = f"{row.id}/{due.isoformat()}"
        key = Key(f"schedule:{row.id}", name, hashlib.sha256(name.encode()).digest())
        wish = Wish(jobs, queued.ticket.job, jobs.Queue(queued), fresh=True)
        done = await self._process.store.execute_all([wish], tenant=row.tenant, metadata=_METADATA, key=key)
        if not done.replayed:
            log.info("a schedule fired", integration=row.id, job=queued.ticket.job, due=due.isoformat())
        return not done.replayed


async def run(process: Process) -> None:
    """The role."""
    await Scheduler(process).run()
