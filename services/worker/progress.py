"""What is too fine for events: a job's present progress and its log lines are rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from domain import jobs
from infra.db import Database
from infra.leases import Lease


class Progress(Struct, frozen=True):
    """`progress` in percent."""

    stage: str
    progress: int
    counters: jobs.Counters


class Line(Struct, frozen=True):
    seq: int
    at: datetime
    level: str
    message: str


async def read(database: Database, job: str) -> Progress | None:
    text = await database.fetchval("select progress from undrift.job_progress where job = $1", job)
    return None if text is None else msgspec.json.decode(text, type=Progress)


async def write(database: Database, tenant: str, job: str, lease: Lease, progress: Progress) -> None:
    """Only under a lease that is still held."""
    await database.execute(
        "insert into undrift.job_progress as p (job, tenant, fence, progress)"
        " select $1, $2, $3, $4 where exists"
        " (select from undrift.leases where name = $5 and owner = $6 and fence = $3)"
        " on conflict (job) do update set fence = excluded.fence, progress = excluded.progress,"
        " updated_at = clock_timestamp() where p.fence <= excluded.fence",
        job,
        tenant,
        lease.fence,
        msgspec.json.encode(progress).decode(),
        lease.name,
        lease.owner,
    )


async def forget(database: Database, job: str) -> None:
    """Once a job has completed, its events say everything."""
    await database.execute("delete from undrift.job_progress where job = $1", job)


async def add_lines(
    database: Database, tenant: str, job: str, lease: Lease, lines: Sequence[tuple[datetime, str, str]]
) -> None:
    """Appends (time, level, message) in order; only under a lease that is still held, so one at a time does."""
    await database.execute(
        "insert into undrift.job_logs (job, seq, tenant, at, level, message)"
        " select $1, coalesce((select max(seq) from undrift.job_logs where job = $1), 0) + nth, $2, at, level, message"
        " from unnest($3::timestamptz[], $4::text[], $5::text[]) with ordinality as l(at, level, message, nth)"
        " where exists (select from undrift.leases where name = $6 and owner = $7 and fence = $8 for share)",
        job,
        tenant,
        [at for at, _, _ in lines],
        [level for _, level, _ in lines],
        [message.replace("\0", "\\0") for _, _, message in lines],
        lease.name,
        lease.owner,
        lease.fence,
    )


async def lines(database: Database, tenant: str, job: str, after: int, limit: int) -> list[Line]:
    """Log lines after a sequence number, in order."""
    rows = await database.fetch(
        "select seq, at, level, message from undrift.job_logs where job = $1 and tenant = $2 and seq > $3"
        " order by seq limit $4",
        job,
        tenant,
        after,
        limit,
    )
    return [Line(*row) for row in rows]


async def newest_lines(database: Database, tenant: str, job: str, limit: int) -> list[Line]:
    """The last lines, oldest first."""
    rows = await database.fetch(
        "select seq, at, level, message from undrift.job_logs where job = $1 and tenant = $2"
        " order by seq desc limit $3",
        job,
        tenant,
        limit,
    )
    return [Line(*row) for row in reversed(rows)]


async def erase(database: Database, tenant: str, job: str) -> None:
    await database.execute("delete from undrift.job_logs where job = $1 and tenant = $2", job, tenant)
