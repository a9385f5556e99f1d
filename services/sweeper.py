"""Erases what is to be kept no longer: idempotency keys after their time, and the lines of jobs deleted with them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog

from domain import jobs, messages
from infra.config import EventStore
from infra.db import CONNECTION_LOST, Database
from infra.subscription import Page, Subscription
from infra.tail import Tail
from services.main import Process

log = structlog.get_logger("sweeper")

#: Its place in `undrift.tracking`.
_NAME = "sweeper"
#: Keys that are forgotten in one transaction.
_MOST = 10_000
#: Positions after which it notes where it is although there was nothing to do.
_NOTED = 10_000


class Sweeper:
    """Any number may run: what is erased twice is erased."""

    def __init__(self, database: Database, tail: Tail, settings: EventStore) -> None:
        self._database, self._tail, self._settings = database, tail, settings

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._forget())

    async def _follow(self) -> None:
        """Whoever deletes a job with its lines erases them at once; when that was interrupted it is done here."""
        while True:
            try:
                subscription = self._tail.subscribe(await self._noted(), contexts=frozenset({jobs.STREAM}))
                try:
                    await self._erase_behind(subscription)
                finally:
                    subscription.close()
            except CONNECTION_LOST as error:
                log.warning("the sweeper waits for Postgres", reason=type(error).__name__)
            await asyncio.sleep(self._settings.reconnect_s)

    async def _erase_behind(self, subscription: Subscription) -> None:
        noted = subscription.position
        async for page in subscription:
            if (deleted := _deleted(page)) or subscription.position - noted >= _NOTED:
                await self._erase(deleted, page[-1].position)
                noted = page[-1].position

    async def _erase(self, deleted: Sequence[messages.Recorded], position: int) -> None:
        """The lines, and in the same transaction that they are gone."""
        async with self._database.transaction() as connection:
            lines = await connection.fetch(
                "delete from undrift.job_logs using unnest($1::text[], $2::text[]) as d(tenant, job)"
                " where job_logs.tenant = d.tenant and job_logs.job = d.job returning 1",
                [one.tenant for one in deleted],
                [one.id for one in deleted],
            )
            await connection.execute(
                "insert into undrift.tracking as t values ($1, 1, $2) on conflict (projection, generation)"
                " do update set pos = greatest(t.pos, excluded.pos)",
                _NAME,
                position,
            )
        if lines:
            log.info("lines of deleted jobs were erased", lines=len(lines))

    async def _noted(self) -> int:
        return int(
            await self._database.fetchval(
                "select coalesce(max(pos), 0) from undrift.tracking where projection = $1 and generation = 1", _NAME
            )
        )

    async def _forget(self) -> None:
        while True:
            try:
                if forgotten := await self.forget_keys():
                    log.info("idempotency keys were forgotten", keys=forgotten)
            except CONNECTION_LOST as error:
                log.warning("the sweeper waits for Postgres", reason=type(error).__name__)
            await asyncio.sleep(self._settings.sweep_s)

    async def forget_keys(self) -> int:
        """Forgets the idempotency keys that are older than `keep_keys_days`; answers how many there were."""
        keep, forgotten = timedelta(days=self._settings.keep_keys_days), 0
        while some := await self._database.fetchval("select undrift.forget_keys($1, $2)", keep, _MOST):
            forgotten += some
        return forgotten


def _deleted(page: Page) -> list[messages.Recorded]:
    return [one for one in page if isinstance(one.event, jobs.Deleted) and one.event.logs]


async def run(process: Process) -> None:
    """The role."""
    await Sweeper(process.db, process.tail, process.settings.eventstore).run()
