"""Fires schedules, tries again what may be tried again, and says what has not happened.

All that is decided here follows from the read model as it is at some moment, and is appended under a key of the due
time that it settles: of two schedulers, or of one that was killed at any moment, one decision counts.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import structlog

from domain import errors, jobs, kinds, messages, schedules
from domain import integrations as domain
from infra.eventstore.recorder import Guard, Key
from infra.eventstore.store import Wish
from infra.leases import Lease
from infra.vault import Vault
from projections import integrations as integrations_read
from projections.integrations import Open, Row
from services import integrations, projector
from services.main import Process
from services.projector import TRANSIENT

log = structlog.get_logger("scheduler")

LEASE = "scheduler"
_METADATA = messages.Metadata(actor="system:scheduler")
_PAGE = 500
_LOOKS, _LOOK_S = 50, 0.02
#: At the same time the full run first: it does what the other would.
_ENTRIES: tuple[schedules.Entry, ...] = ("full", "main")
_TYPES: dict[schedules.Entry, jobs.Type] = {"main": "incremental_sync", "full": "full_sync"}


def _now() -> datetime:
    return datetime.now(UTC)


class Scheduler:
    """One at a time holds the lease; the keys make a second one harmless all the same."""

    def __init__(self, process: Process, clock: Callable[[], datetime] = _now) -> None:
        self._process, self._clock = process, clock
        self._lease: Lease | None = None
        #: A moment, and where the log ended then: what is decided is right for that moment.
        self._moment: tuple[datetime, int] | None = None
        #: Where the last decision about an integration is in the log: its row must have come that far for the next.
        self._decided: dict[tuple[str, str], int] = {}

    async def run(self) -> None:
        """Serves until cancelled."""
        settings = self._process.settings
        declared = False
        try:
            while True:
                try:
                    if not declared:
                        await integrations.declare(
                            self._process.store, Vault(self._process.db, self._process.master), settings.integrations
                        )
                        declared = True
                    if await self._leads():
                        await self.tick()
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

    async def tick(self) -> int:
        """Does what is due, once the read model has seen what had happened by now; answers how many jobs it queued."""
        if self._moment is None:
            self._moment = (self._clock(), await self._process.store.head())
        now, head = self._moment
        if not await self._seen(head):
            return 0
        self._moment = None
        for late in await integrations_read.late(self._process.db, now):
            await self._safely(late.integration, self._say_late(late))
        for job in await integrations_read.retries(self._process.db, now):
            await self._safely(job.integration, self._try_again(job, now))
        fired, after = 0, ("", "")
        while page := await integrations_read.due(self._process.db, now, after, _PAGE):
            for tenant, id in page:
                fired += await self._safely(id, self._integration(tenant, id, now))
            after = page[-1]
        return fired

    async def _seen(self, head: int) -> bool:
        """Whether the read model has come that far, or does in a moment."""
        for _ in range(_LOOKS):
            at = await projector.positions(self._process.db, [integrations_read])
            if at[integrations_read.NAME] >= head:
                return True
            await asyncio.sleep(_LOOK_S)
        log.info("the scheduler waits for the read models", position=head)
        return False

    async def _safely(self, integration: str, doing: Awaitable[int]) -> int:
        """What goes wrong for one integration does not hold the others."""
        try:
            return await doing
        except errors.Error as error:
            log.error("a schedule could not fire", integration=integration, reason=error.message)
            return 0

    async def _say_late(self, job: Open) -> int:
        """It was queued, and no worker has begun with it."""
        assert job.due is not None
        miss = domain.Miss(job.due, "full" if job.entry == "full" else "main", job.job)
        await self._append(job.tenant, job.integration, f"late/{job.job}", [Wish(domain, job.integration, miss)])
        return 0

    async def _try_again(self, job: Open, now: datetime) -> int:
        assert job.retry_at is not None
        row, opened = await self._read(job.tenant, job.integration)
        if row is not None and not (self._is_current(row) and self._may_run(row, opened, now)):
            return 0
        wish = Wish(jobs, job.job, jobs.Resume(running=False, retry=job.retry_at))
        await self._append(job.tenant, job.integration, f"retry/{job.job}/{job.retry_at.isoformat()}", [wish])
        return 0

    async def _read(self, tenant: str, id: str) -> tuple[Row | None, Sequence[Open]]:
        """Its open jobs first: what the end of one settles is then in the row."""
        opened = await integrations_read.open_jobs(self._process.db, tenant, id)
        return await integrations_read.get(self._process.db, tenant, id), opened

    def _is_current(self, row: Row) -> bool:
        """Whether the row has seen what was last decided about it."""
        return row.position >= self._decided.get((row.tenant, row.id), 0)

    def _may_run(self, row: Row, opened: Sequence[Open], now: datetime) -> bool:
        """What an open breaker leaves: nothing, and half-open one run to see whether it can be closed."""
        state = integrations.breaker(self._process.settings, row, now).state
        runs = any(one.retry_at is None for one in opened)
        return state == "closed" or (state == "half_open" and not runs)

    async def _integration(self, tenant: str, id: str, now: datetime) -> int:
        row, opened = await self._read(tenant, id)
        if row is None:
            return 0
        for entry in _ENTRIES:
            due = row.due(entry)
            if due is not None and self._is_current(row) and await self._entry(row, entry, due, opened, now):
                return 1
        return 0

    async def _entry(
        self, row: Row, entry: schedules.Entry, due: datetime, opened: Sequence[Open], now: datetime
    ) -> bool:
        """Whether one entry's run was queued."""
        timing, plan = row.timing(entry), row.plan
        assert timing is not None
        assert plan is not None
        if schedules.fires(timing, due) > now or any(
            schedules.skips(plan.overlap, entry, one.is_full) for one in opened
        ):
            return False  # what is skipped is settled when the open job ends
        if schedules.is_late(timing, plan, due, now) and await self._say_missed(row, entry, due, now):
            return False
        run = schedules.chosen(timing, plan, due, now)
        waits = plan.overlap != "cancel_other" and any(one.waits for one in opened)
        if run is None or waits or not self._may_run(row, opened, now):
            return False
        return await self._fire(row, entry, due, run, opened, now)

    async def _say_missed(self, row: Row, entry: schedules.Entry, due: datetime, now: datetime) -> bool:
        """Whether the schedule goes on elsewhere now."""
        timing, plan = row.timing(entry), row.plan
        assert timing is not None
        assert plan is not None
        if due == (row.overdue if entry == "main" else row.full_overdue):
            return False
        makes_up = plan.catch_up != "none"
        resumes = None if makes_up else schedules.dropped(timing, plan, due, now)
        miss = Wish(domain, row.id, domain.Miss(due, entry, None, resumes))
        await self._append(row.tenant, row.id, f"overdue/{entry}/{due.isoformat()}", [miss])
        return not makes_up

    async def _fire(
        self, row: Row, entry: schedules.Entry, due: datetime, run: datetime, opened: Sequence[Open], now: datetime
    ) -> bool:
        """Queues the run of `run`, which settles whatever was due from `due` on until then."""
        queued = integrations.queued(row, _TYPES[entry], kinds.Options(), 0.0, now, run)
        wishes = [Wish(domain, row.id, domain.Run()), Wish(jobs, queued.ticket.job, jobs.Queue(queued), fresh=True)]
        if row.plan is not None and row.plan.overlap == "cancel_other":
            wishes += [Wish(jobs, one.job, jobs.Stop(open_only=True)) for one in opened]
        name = f"{row.id}/{due.isoformat()}" if entry == "main" else f"{row.id}/full/{due.isoformat()}"
        if not await self._append(row.tenant, row.id, name, wishes):
            return False
        log.info("a schedule fired", integration=row.id, job=queued.ticket.job, due=run.isoformat(), entry=entry)
        return True

    async def _append(self, tenant: str, integration: str, name: str, wishes: Sequence[Wish]) -> bool:
        """Whether it was decided here and now."""
        key = Key(f"schedule:{integration}", name, hashlib.sha256(name.encode()).digest())
        guards: list[Guard] = [] if self._lease is None else [self._lease.guard]
        done = await self._process.store.execute_all(wishes, tenant=tenant, metadata=_METADATA, key=key, guards=guards)
        self._decided[tenant, integration] = done.position
        return not done.replayed


async def run(process: Process) -> None:
    """The role."""
    await Scheduler(process).run()
