"""What clients read about sync sessions, and what became of the jobs and uploads that are part of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import replace

from domain import jobs, messages, sessions, uploads
from projections.table import Connection, Database, Key, Table

NAME = "sessions"
GENERATION = 1
CONTEXTS = ("sessions", "jobs", "uploads")
SCHEMA = f"rm_{NAME}_{GENERATION}"

#: Messages kept of one job, and how long each may be.
_MESSAGES, _LONGEST = 20, 500


class Row(Struct, frozen=True):
    """`position` is its last event; `progress` in percent, and `totals` (JSON) are there once it has ended, `message`
    where it failed."""

    tenant: str
    id: str
    position: int
    status: str
    source: str
    target: str
    sync_type: str
    created_at: datetime
    actor: str
    closing: bool = False
    attached: int = 0
    completed_at: datetime | None = None
    progress: int = 0
    reason: str | None = None
    message: str | None = None
    totals: str | None = None

    @property
    def sums(self) -> sessions.Totals | None:
        return None if self.totals is None else msgspec.json.decode(self.totals, type=sessions.Totals)


class Work(Struct, frozen=True):
    """A job or an upload of a session. `rests` when a paused job waits for somebody, not for a time; `size` in bytes
    is what an upload will have."""

    tenant: str
    kind: str
    id: str
    session: str
    position: int
    status: str
    stage: str | None = None
    progress: int = 0
    rests: bool = False
    processed: int = 0
    changes: int = 0
    errors: int = 0
    bytes: int = 0
    size: int = 0
    conflicts: int = 0
    duration_ms: int = 0
    messages: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether more is to come of it; of a job that rests only if somebody has it go on."""
        return self.status in ("queued", "running", "stopping", "paused", "pending")

    @property
    def is_job(self) -> bool:
        return self.kind == "job"


SESSIONS = Table(
    "sessions",
    Row,
    ("tenant", "id"),
    ("(tenant, created_at desc, id)", "(created_at) where status = 'in-progress'"),
)
WORK = Table("work", Work, ("tenant", "kind", "id"), ("(tenant, session)",))


def ddl(schema: str) -> str:
    return f"{SESSIONS.ddl(schema)};\n{WORK.ddl(schema)}"


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await SESSIONS.apply(connection, schema, events, _key, fold)
    await WORK.apply(connection, schema, events, _work_key, fold_work)


def _key(recorded: messages.Recorded) -> Key | None:
    return (recorded.tenant, recorded.id) if isinstance(recorded.event, sessions.Event) else None


def fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    """A session as it is after an event. Raises LookupError for an event that cannot come then."""
    event, at = recorded.event, recorded.recorded_at
    if isinstance(event, sessions.Started):
        return _started(event, recorded)
    if row is None:
        raise LookupError(f"{recorded.stream} does not begin with sessions.started")
    row = replace(row, position=recorded.position)
    match event:
        case sessions.Attached():
            return replace(row, attached=row.attached + 1)
        case sessions.CompletionRequested():
            return replace(row, closing=True)
        case sessions.Completed():
            return replace(row, status="completed", completed_at=at, progress=100, totals=_json(event.totals))
        case sessions.Failed():
            row = replace(row, status="failed", completed_at=at, progress=event.progress, totals=_json(event.totals))
            return replace(row, reason=event.reason, message=event.message)
        case sessions.Cancelled():
            totals = _json(event.totals)
            return replace(row, status="cancelled", completed_at=at, progress=event.progress, totals=totals)
        case _:
            raise LookupError(f"{recorded.topic} is not an event of a session")


def _started(event: sessions.Started, recorded: messages.Recorded) -> Row:
    return Row(
        tenant=recorded.tenant,
        id=recorded.id,
        position=recorded.position,
        status="in-progress",
        source=event.source.text,
        target=event.target.text,
        sync_type=event.sync_type,
        created_at=recorded.recorded_at,
        actor=recorded.metadata.actor,
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _work_key(recorded: messages.Recorded) -> Key | None:
    match recorded.event:
        case jobs.Queued(session=None) | uploads.Opened(session=None) | jobs.Deleted():
            return None
        case event if isinstance(event, jobs.Event):
            return recorded.tenant, "job", recorded.id
        case event if isinstance(event, uploads.Event):
            return recorded.tenant, "upload", recorded.id
        case _:
            return None


def fold_work(row: Work | None, recorded: messages.Recorded) -> Work | None:
    """None for what belongs to no session."""
    event = recorded.event
    match event:
        case jobs.Queued(session=str(session)):
            return Work(recorded.tenant, "job", recorded.id, session, recorded.position, "queued")
        case uploads.Opened(session=str(session)):
            start = Work(recorded.tenant, "upload", recorded.id, session, recorded.position, "pending")
            return replace(start, size=event.size)
    if row is None:
        return None
    row = replace(row, position=recorded.position)
    return _upload(row, event) if isinstance(event, uploads.Event) else _job(row, event)


def _upload(row: Work, event: uploads.Event) -> Work:
    match event:
        case uploads.Completed():
            aside = event.conflict is not None
            row = replace(row, status="completed", progress=100, processed=1, bytes=row.size)
            return replace(row, changes=0 if aside else 1, conflicts=1 if aside else 0)
        case uploads.Failed():
            return replace(row, status="failed", errors=1, messages=_cut((f"upload {row.id}: {event.reason}",)))
        case uploads.Cancelled():
            return replace(row, status="cancelled")
        case uploads.Expired():
            return replace(row, status="failed", errors=1, messages=(f"upload {row.id} expired",))
        case _:
            return row


def _job(row: Work, event: messages.Event) -> Work:
    match event:
        case jobs.Started():
            return replace(row, status="running", rests=False)
        case jobs.Progressed():
            row = replace(row, stage=event.stage, progress=max(row.progress, event.progress))
            return _counted(row, event.counters)
        case jobs.Checkpointed():
            return _counted(row, event.counters)
        case jobs.StopRequested():
            return replace(row, status="stopping")
        case jobs.Held():
            row = _counted(replace(row, status="paused", rests=True), event.counters)
            return replace(row, messages=_cut((f"{row.id}: {event.reason}",)))
        case jobs.Paused():
            row = row if event.counters is None else _counted(row, event.counters)
            return replace(row, status="paused", rests=event.until is None)
        case jobs.Resumed():
            return replace(row, status="running" if event.running else "queued", rests=False, messages=())
        case jobs.Stopped():
            row = _counted(replace(row, status="stopped", rests=False), event.counters)
            return replace(row, messages=_cut((f"{row.id} was stopped: {event.reason}",)))
        case jobs.Completed():
            row = replace(row, status="completed", progress=100, duration_ms=event.duration_ms)
            return _resulted(_counted(row, event.counters), event.result)
        case jobs.Failed():
            row = _counted(replace(row, status="failed", rests=False), event.counters)
            return replace(row, messages=_cut((f"{row.id}: {event.message}",)))
        case _:
            return row


def _counted(row: Work, counters: jobs.Counters) -> Work:
    changes = counters.created + counters.updated + counters.deleted
    return replace(row, processed=counters.processed, changes=changes, errors=counters.errors, bytes=counters.bytes)


def _resulted(row: Work, result: Raw) -> Work:
    """What a kind's own result says of conflicts and errors, where it does."""
    said = msgspec.json.decode(result)
    if not isinstance(said, dict):
        return row
    found = (said.get(name) for name in ("conflicts", "conflict_count"))
    conflicts = next((number for number in found if isinstance(number, int)), 0)
    told = said.get("errors")
    lines = tuple(line for line in told if isinstance(line, str)) if isinstance(told, list) else ()
    return replace(row, conflicts=conflicts, messages=_cut(lines))


def _cut(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(line[:_LONGEST] for line in lines[:_MESSAGES])


# Queries.


async def get(database: Database, tenant: str, id: str) -> Row | None:
    row = await database.fetchrow(f"select * from {SCHEMA}.sessions where tenant = $1 and id = $2", tenant, id)
    return None if row is None else SESSIONS.parse(row)


async def work(database: Database, tenant: str, session: str) -> list[Work]:
    """The jobs and uploads of a session, in the order in which they came."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.work where tenant = $1 and session = $2 order by kind, position, id", tenant, session
    )
    return [WORK.parse(row) for row in rows]


async def list_(
    database: Database, tenant: str, status: str | None, limit: int, offset: int = 0
) -> tuple[list[Row], int]:
    """The newest sessions that match, and how many match in all."""
    where = "tenant = $1 and ($2::text is null or status = $2)"
    rows = await database.fetch(
        f"select * from {SCHEMA}.sessions where {where} order by created_at desc, id limit $3 offset $4",
        tenant,
        status,
        limit,
        offset,
    )
    total = await database.fetchval(f"select count(*) from {SCHEMA}.sessions where {where}", tenant, status)
    return [SESSIONS.parse(row) for row in rows], int(total)


async def closing(database: Database) -> list[Row]:
    """Sessions that are to be completed and of which no job runs or waits for its turn."""
    rows = await database.fetch(
        f"select s.* from {SCHEMA}.sessions s where s.status = 'in-progress' and s.closing and not exists"
        f" (select from {SCHEMA}.work w where w.tenant = s.tenant and w.session = s.id and w.kind = 'job'"
        " and w.status in ('queued', 'running', 'stopping', 'paused')) order by s.created_at"
    )
    return [SESSIONS.parse(row) for row in rows]
