"""What is too fine for events: a job's present progress and its log lines are rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

import msgspec
from asyncpg import Record
from msgspec import Struct

from domain import jobs
from infra.db import Database
from infra.leases import Lease


class Progress(Struct, frozen=True, omit_defaults=True):
    """`progress` in percent; `remaining_s` is how long the rest takes at the present rate, where that is known."""

    stage: str
    progress: int
    counters: jobs.Counters
    remaining_s: float | None = None


class Seen(Struct, frozen=True):
    """A job's row of progress, and when it was written."""

    progress: Progress
    at: datetime

    def completion(self, now: datetime) -> datetime | None:
        """When the job should be done; None where nobody can tell, or no longer."""
        if self.progress.remaining_s is None:
            return None
        expected = self.at + timedelta(seconds=self.progress.remaining_s)
        return expected if expected > now else None


class Line(Struct, frozen=True):
    seq: int
    at: datetime
    level: str
    message: str


class Look(Struct):
    """What is new about a job that somebody follows."""

    seen: Seen | None
    lines: list[Line]


_LOOK = (
    "select w.job, p.progress, p.updated_at, l.seq, l.at, l.level, l.message"
    " from unnest($1::text[], $2::bigint[]) as w(job, after)"
    " left join undrift.job_progress p on p.job = w.job"
    " left join lateral (select g.seq, g.at, g.level, g.message from undrift.job_logs g"
    " where g.job = w.job and g.seq > w.after order by g.seq limit $3) l on true"
    " order by w.job, l.seq"
)


async def read(database: Database, ids: Sequence[str]) -> dict[str, Seen]:
    """The rows of those jobs that have one."""
    if not ids:
        return {}
    rows = await database.fetch(
        "select job, progress, updated_at from undrift.job_progress where job = any ($1::text[])", ids
    )
    return {row["job"]: _seen(row) for row in rows}


def _seen(row: Record) -> Seen:
    return Seen(msgspec.json.decode(row["progress"], type=Progress), row["updated_at"])


async def look(database: Database, after: Mapping[str, int], limit: int) -> dict[str, Look]:
    """Progress of jobs and at most `limit` lines of each, behind a sequence number: one query for all of them."""
    found: dict[str, Look] = {}
    for row in await database.fetch(_LOOK, list(after), list(after.values()), limit):
        if row["job"] not in found:
            found[row["job"]] = Look(None if row["progress"] is None else _seen(row), [])
        if row["seq"] is not None:
            found[row["job"]].lines.append(Line(row["seq"], row["at"], row["level"], row["message"]))
    return found


async def last_line(database: Database, job: str) -> int:
    """The sequence number of a job's last line, 0 where there is none."""
    return int(await database.fetchval("select coalesce(max(seq), 0) from undrift.job_logs where job = $1", job))


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


async def newest_lines(
    database: Database, tenant: str, job: str, limit: int, until: datetime | None = None
) -> list[Line]:
    """The last lines, or those that were written before a time, oldest first."""
    rows = await database.fetch(
        "select seq, at, level, message from undrift.job_logs where job = $1 and tenant = $2"
        " and ($4::timestamptz is null or at < $4) order by seq desc limit $3",
        job,
        tenant,
        limit,
        until,
    )
    return [Line(*row) for row in reversed(rows)]


async def erase(database: Database, tenant: str, job: str) -> None:
    await database.execute("delete from undrift.job_logs where job = $1 and tenant = $2", job, tenant)
