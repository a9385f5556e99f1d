"""Bytes of old versions are dropped when nobody needs them any more; that the versions were there stays known.

In two steps, because commands that are under way may name bytes that a sweep has just judged: first they are taken
out of what a library holds, so that nothing new can name them; later, if still nothing does, they are deleted.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from domain import devices, errors, messages
from infra.db import CONNECTION_LOST, Database
from projections import devices as devices_read
from projections import library as library_read
from services.gateway.consistency import Reads
from services.main import Process

log = structlog.get_logger("gateway")

_TRANSIENT = (*CONNECTION_LOST, errors.Unavailable, errors.Conflict)
_PATIENCE_S = 30.0
#: How long a conflict's sides are kept for who takes its resolution back, where versions are kept for ever.
_UNDO = timedelta(days=30)
#: How long bytes are kept that no version ever named.
_UNNAMED = timedelta(days=1)

_STALE = f"""
select d.tenant, d.owner, d.id, coalesce(s.acked_pos, 0) as acked
from {devices_read.SCHEMA}.devices d left join undrift.device_state s on s.device = d.id
where d.enabled and d.stale_at is null
    and coalesce(s.last_seen_at, d.created_at) < clock_timestamp() - $1::interval
"""

# Whether a hash is needed: by a version that is kept ($3 contents of each file, $4 after it was replaced), by a device
# that has not seen what came after it ($5 is when one is not waited for), by a conflict, by an upload.
_NEEDED = f"""
with content as (
    select file, number, hash, to_pos,
        hash is distinct from lag(hash) over (partition by file order by number) as fresh
    from {library_read.SCHEMA}.versions where tenant = $1 and owner = $2 and hash is not null
), ranked as (
    select *, count(*) filter (where fresh) over (
        partition by file order by number desc rows between unbounded preceding and 1 preceding) as newer
    from content
), slowest as (
    select min(coalesce(s.acked_pos, 0)) as acked
    from {devices_read.SCHEMA}.devices d left join undrift.device_state s on s.device = d.id
    where d.tenant = $1 and d.owner = $2 and d.enabled
        and (d.stale_at is null or coalesce(s.last_seen_at, d.created_at) > clock_timestamp() - $5::interval)
), needed as (
    select r.hash from ranked r
    left join {library_read.SCHEMA}.versions n on n.tenant = $1 and n.file = r.file and n.number = r.number + 1
    where r.to_pos is null or r.to_pos > (select acked from slowest)
        or not (($3 > 0 and r.newer >= $3) or ($4::interval > '0' and n.at < clock_timestamp() - $4::interval))
    union all
    select unnest(array[local_hash, base_hash, server_hash]) from {library_read.SCHEMA}.conflicts
    where tenant = $1 and owner = $2 and (resolved_at is null or resolved_at > clock_timestamp()
        - case when $4::interval > '0' then $4::interval else $6::interval end)
    union all
    select blake3 from undrift.uploads where tenant = $1 and owner = $2
)
"""
_DROP = f"""{_NEEDED}, gone as (
    delete from undrift.stored s where s.tenant = $1 and s.owner = $2
        and not exists (select from needed where needed.hash = s.blake3)
        and (s.stored_at < clock_timestamp() - greatest($4::interval, $7::interval)
            or exists (select from content where content.hash = s.blake3))
    returning *
)
insert into undrift.dropped as d (tenant, owner, blake3, sha256, size)
select tenant, owner, blake3, sha256, size from gone
on conflict (owner, blake3, tenant) do update set dropped_at = excluded.dropped_at
returning d.size
"""
_RIPE = f"""{_NEEDED}
select d.*, exists (select from needed where needed.hash = d.blake3 or needed.hash = d.sha256) as needed
from undrift.dropped d
where d.tenant = $1 and d.owner = $2 and d.dropped_at < clock_timestamp() - $7::interval
"""

#: What was dropped is held again, unless it is being deleted at this moment.
_TAKE_BACK = (
    "with back as (delete from undrift.dropped where tenant = $1 and owner = $2 and blake3 = $3 returning *)"
    " insert into undrift.stored (tenant, owner, blake3, sha256, size)"
    " select tenant, owner, blake3, sha256, size from back on conflict do nothing"
)


async def take_back(database: Database, tenant: str, owner: str, digest: str) -> bool:
    """Whether an owner holds these bytes now; where they were dropped, they are not deleted any more."""
    await database.execute(_TAKE_BACK, tenant, owner, digest)
    held: bool = await database.fetchval(
        "select exists (select from undrift.stored where tenant = $1 and owner = $2 and blake3 = $3)",
        tenant,
        owner,
        digest,
    )
    return held


async def run(process: Process, reads: Reads) -> None:
    """Serves until cancelled. Any number of gateways may."""
    settings = process.settings.library
    while True:
        await asyncio.sleep(settings.retain_s)
        try:
            await say_stale(process)
            await sweep(process, reads)
        except _TRANSIENT as error:
            log.warning("old versions are swept later", reason=type(error).__name__)


async def say_stale(process: Process) -> None:
    """Devices that nothing was heard of for long: what they have not seen may be dropped from now on."""
    rows = await process.db.fetch(_STALE, timedelta(days=process.settings.library.stale_days))
    head = await process.store.head()
    for row in rows:
        metadata = messages.Metadata(actor="system:gateway", owner=row["owner"], subject=row["owner"])
        command = devices.SayStale(row["acked"], head)
        try:
            await process.store.execute(devices, row["id"], command, tenant=row["tenant"], metadata=metadata)
        except errors.NotFound:
            log.info("a device was deleted before it was stale", device=row["id"])


async def sweep(process: Process, reads: Reads) -> None:
    """Drops what the settings no longer keep, and deletes what was dropped long enough ago."""
    settings = process.settings.library
    owners = await process.db.fetch(
        "select tenant, owner from undrift.dropped union select tenant, owner from undrift.stored where $1",
        bool(settings.keep_versions or settings.keep_days),
    )
    for tenant, owner in owners:
        # What is judged is at least as new as everything that had been said when it began.
        if not await reads.reached(await process.store.head(), _PATIENCE_S):
            return
        await _delete(process, tenant, owner)
        if settings.keep_versions or settings.keep_days:
            rows = await process.db.fetch(_DROP, tenant, owner, *_kept(process), _UNNAMED)
            if rows:
                log.info("bytes of old versions are dropped", blobs=len(rows), bytes=sum(row["size"] for row in rows))


def _kept(process: Process) -> tuple[int, timedelta, timedelta, timedelta]:
    settings = process.settings.library
    days = timedelta(days=settings.keep_days)
    return settings.keep_versions, days, timedelta(days=settings.stale_days), _UNDO


async def _delete(process: Process, tenant: str, owner: str) -> None:
    after = timedelta(seconds=process.settings.library.drop_s)
    for row in await process.db.fetch(_RIPE, tenant, owner, *_kept(process), after):
        if row["needed"]:  # a command that was under way has named them
            await take_back(process.db, tenant, owner, row["blake3"])
        else:
            await _delete_one(process, tenant, owner, row["blake3"])


async def _delete_one(process: Process, tenant: str, owner: str, digest: str) -> None:
    """Others may hold the same bytes, or be about to."""
    async with process.db.transaction() as connection:
        await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", digest)
        await connection.execute(
            "delete from undrift.dropped where tenant = $1 and owner = $2 and blake3 = $3", tenant, owner, digest
        )
        needed = await connection.fetchval(
            "select exists (select from undrift.stored where blake3 = $1)"
            " or exists (select from undrift.dropped where blake3 = $1)"
            " or exists (select from undrift.uploads where blake3 = $1)",
            digest,
        )
        if not needed:
            await asyncio.to_thread(process.contents.delete, digest)
