"""What ends sync sessions: all of their jobs have ended, or nobody names them any more; and what they came to."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta

import asyncpg
import structlog
from msgspec.structs import replace

from domain import errors, messages, sessions
from infra.db import CONNECTION_LOST, Database
from infra.eventstore.store import Done
from projections import sessions as sessions_read
from projections.sessions import Row, Work
from services.main import Process
from services.worker import progress as job_progress

log = structlog.get_logger("sessions")

#: Also before the projector has made the read models.
_TRANSIENT = (*CONNECTION_LOST, asyncpg.UndefinedTableError, errors.Unavailable, errors.Conflict)
_METADATA = messages.Metadata(actor="system:sessions")
_MESSAGES = 20

# The lease is a row that whoever names the session renews; before there is one it began with the session.
_NAMED = (
    "insert into undrift.session_leases as l (tenant, id, progress) values ($1, $2, $3) on conflict (tenant, id)"
    " do update set named_at = clock_timestamp(), progress = greatest(l.progress, excluded.progress)"
    " returning named_at, progress"
)
_ABANDONED = f"""
select s.* from {sessions_read.SCHEMA}.sessions s left join undrift.session_leases l using (tenant, id)
where s.status = 'in-progress' and coalesce(l.named_at, s.created_at) < clock_timestamp() - $1::interval
    and not exists (select from {sessions_read.SCHEMA}.work w where w.tenant = s.tenant and w.session = s.id
        and w.kind = 'job' and (w.status in ('queued', 'running', 'stopping') or w.status = 'paused' and not w.rests))
order by s.created_at
"""
# Of what is whole, 99: that it is complete has yet to be said.
_SENT = """
select u.id, least(99, 100 * (u.partial_bytes % u.chunk_size + u.chunk_size::bigint * count(c.index))
    / greatest(u.size, 1))::int as percent
from undrift.uploads u left join undrift.upload_chunks c on c.upload = u.id and c.received_at is not null
where u.id = any ($1::text[]) group by u.id
"""
# A request may have named one at the moment when it ended.
_FORGET = f"""
delete from undrift.session_leases l using {sessions_read.SCHEMA}.sessions s
where s.tenant = l.tenant and s.id = l.id and s.status <> 'in-progress'
"""


async def name(database: Database, tenant: str, id: str, progress: int = 0) -> tuple[datetime, int]:
    """Renews the lease of an open session; answers when, and the furthest progress that was ever told of it."""
    row = await database.fetchrow(_NAMED, tenant, id, progress)
    assert row is not None
    return row["named_at"], row["progress"]


async def told(database: Database, tenant: str, id: str) -> int:
    """The furthest progress that was ever told of a session."""
    found = await database.fetchval(
        "select progress from undrift.session_leases where tenant = $1 and id = $2", tenant, id
    )
    return found or 0


def totals(work: Sequence[Work], *, over: bool = False) -> sessions.Totals:
    """What jobs and uploads came to. One that did not complete is an error beside those that it counted, and where all
    is `over` also what is still open."""
    lines = [line for one in work for line in one.messages]
    if over:
        lines += [f"{one.kind} {one.id} is not complete" for one in work if one.is_open and not one.messages]
    return sessions.Totals(
        jobs=sum(one.is_job for one in work),
        uploads=sum(not one.is_job for one in work),
        processed=sum(one.processed for one in work),
        changes=sum(one.changes for one in work),
        conflicts=sum(one.conflicts for one in work),
        errors=sum(max(one.errors, _went_wrong(one) and (over or not one.is_open)) for one in work),
        bytes=sum(one.bytes for one in work),
        duration_ms=sum(one.duration_ms for one in work),
        messages=tuple(lines[:_MESSAGES]),
    )


def _went_wrong(one: Work) -> bool:
    """An upload that was cancelled is none that failed: whoever sent it wanted so."""
    return one.status not in ("completed", "cancelled")


def failure(work: Sequence[Work]) -> str | None:
    """What of the work was not done, in a sentence; None where all was."""
    said = []
    for kind in ("job", "upload"):
        mine = [one for one in work if one.kind == kind]
        wrong = sum(map(_went_wrong, mine))
        if wrong:
            said.append(f"{wrong} of {len(mine)} {kind}{'s' if len(mine) > 1 else ''} did not complete")
    return "; ".join(said) or None


async def refined(database: Database, work: Sequence[Work]) -> list[Work]:
    """With what events do not say: how far open jobs and uploads are at this moment."""
    fine = await job_progress.read(database, [one.id for one in work if one.is_job and one.is_open])
    sent = {row["id"]: row["percent"] for row in await _sent(database, work)}
    found = []
    for one in work:
        far = fine[one.id].progress.progress if one.id in fine else sent.get(one.id, 0)
        found.append(replace(one, progress=max(one.progress, far)))
    return found


async def _sent(database: Database, work: Sequence[Work]) -> list[asyncpg.Record]:
    ids = [one.id for one in work if not one.is_job and one.is_open]
    return await database.fetch(_SENT, ids) if ids else []


def progress(work: Sequence[Work]) -> int:
    """The mean, in percent; 100 is for a session that has completed."""
    return min(99, sum(one.progress for one in work) // len(work)) if work else 0


async def finish(process: Process, row: Row) -> Done | None:
    """Completes a session whose completion was asked for, once none of its jobs is open; None before."""
    work = await sessions_read.work(process.db, row.tenant, row.id)
    if any(one.is_job and one.is_open for one in work):
        return None
    far = max(progress(work), await told(process.db, row.tenant, row.id))
    command = sessions.Finish(totals(work, over=True), far, failure(work))
    done = await process.store.execute(sessions, row.id, command, tenant=row.tenant, metadata=_METADATA)
    await _forget(process.db, row)
    return done


async def abandon(process: Process, row: Row) -> Done:
    """Ends a session that nobody named within its lease, with a report of what was done until then."""
    work = await sessions_read.work(process.db, row.tenant, row.id)
    far = max(progress(work), await told(process.db, row.tenant, row.id))
    command = sessions.Abandon(totals(work, over=True), far, row.attached)
    done = await process.store.execute(sessions, row.id, command, tenant=row.tenant, metadata=_METADATA)
    if done.events:
        log.info("a session was abandoned", session=row.id, jobs=command.totals.jobs, uploads=command.totals.uploads)
        await _forget(process.db, row)
    return done


async def _forget(database: Database, row: Row) -> None:
    await database.execute("delete from undrift.session_leases where tenant = $1 and id = $2", row.tenant, row.id)


async def tick(process: Process) -> int:
    """Ends what is to end; answers how many sessions did. Any number of processes may: each session ends once."""
    ended = 0
    for row in await sessions_read.closing(process.db):
        ended += await _safely(row, finish(process, row))
    lease = timedelta(seconds=process.settings.sessions.lease_s)
    for record in await process.db.fetch(_ABANDONED, lease):
        row = sessions_read.SESSIONS.parse(record)
        ended += await _safely(row, abandon(process, row))
    await process.db.execute(_FORGET)
    return ended


async def _safely(row: Row, doing: Awaitable[Done | None]) -> bool:
    """What goes wrong with one session does not hold the others."""
    try:
        done = await doing
    except errors.Unavailable:
        raise
    except errors.Error as error:
        log.error("a session could not end", session=row.id, reason=error.message)
        return False
    return done is not None and bool(done.events)


async def run(process: Process) -> None:
    """The role."""
    while True:
        try:
            await tick(process)
        except _TRANSIENT as error:
            log.warning("sessions wait", reason=type(error).__name__)
        await asyncio.sleep(process.settings.sessions.tick_s)
