"""Forgets what was delivered or given up long ago: of each endpoint its oldest numbers first, so they stay dense."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from infra.db import CONNECTION_LOST, Database
from services.main import Process

log = structlog.get_logger("notifier")

_MOST = 2000
_ENDPOINTS = "select distinct tenant, endpoint from undrift.deliveries"
# Of its oldest rows those before the first that waits or is young.
_FORGET = """
with oldest as (
    select seq, state <> 'pending' and last_at < clock_timestamp() - $3::interval as old from undrift.deliveries
    where tenant = $1 and endpoint = $2 order by seq limit $4
)
delete from undrift.deliveries d where d.tenant = $1 and d.endpoint = $2
    and d.seq < coalesce((select min(seq) from oldest where old is not true), (select max(seq) + 1 from oldest))
"""


async def forget(database: Database, keep: timedelta) -> int:
    """How many rows were forgotten."""
    forgotten = 0
    for tenant, endpoint in await database.fetch(_ENDPOINTS):
        while some := int((await database.execute(_FORGET, tenant, endpoint, keep, _MOST)).rpartition(" ")[2]):
            forgotten += some
    return forgotten


async def run(process: Process) -> None:
    """Serves until cancelled."""
    keep = timedelta(days=process.settings.webhooks.keep_days)
    while True:
        try:
            if forgotten := await forget(process.db, keep):
                log.info("old deliveries were forgotten", rows=forgotten)
        except CONNECTION_LOST as error:
            log.warning("the notifier waits for Postgres", reason=type(error).__name__)
        await asyncio.sleep(process.settings.eventstore.sweep_s)
