"""What clients read about jobs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain import jobs, messages
from projections.table import Connection, Database, Key, Table

NAME = "jobs"
GENERATION = 1
CONTEXTS = ("jobs",)
SCHEMA = f"rm_{NAME}_{GENERATION}"


class Row(Struct, frozen=True):
    """`result` and `error` are JSON; `position` is the job's last event."""

    tenant: str
    id: str
    position: int
    kind: str
    type: str
    lane: str
    status: str
    created_at: datetime
    actor: str
    waited: bool
    trigger: str
    estimated_ms: int
    integration: str | None = None
    requested_type: str | None = None
    progress: int = 0
    stage: str | None = None
    started_at: datetime | None = None
    completed_at: datetime | None = None
    duration_ms: int | None = None
    processed: int = 0
    created: int = 0
    updated: int = 0
    deleted: int = 0
    errors: int = 0
    bytes: int = 0
    result: str | None = None
    error: str | None = None
    deleted_at: datetime | None = None
    session: str | None = None

    @property
    def counters(self) -> jobs.Counters:
        return jobs.Counters(self.processed, self.created, self.updated, self.deleted, self.errors, self.bytes)


TABLE = Table(
    "jobs",
    Row,
    ("tenant", "id"),
    (
        "(tenant, created_at desc, id) where deleted_at is null",
        "(tenant, integration, created_at desc) where deleted_at is null",
        "(tenant, status, created_at desc) where deleted_at is null",
    ),
)


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, fold)


def _key(recorded: messages.Recorded) -> Key:
    return recorded.tenant, recorded.id


def fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    """A job as it is after an event. Raises LookupError for an event that cannot come then."""
    event, at = recorded.event, recorded.recorded_at
    if isinstance(event, jobs.Queued):
        return _queued(event, recorded)
    if row is None:
        raise LookupError(f"{recorded.stream} does not begin with jobs.queued")
    row = replace(row, position=recorded.position)
    match event:
        case jobs.Started():
            return replace(row, status="running", started_at=row.started_at or at)
        case jobs.Progressed():
            return _counted(replace(row, stage=event.stage, progress=event.progress), event.counters)
        case jobs.Checkpointed():
            return _counted(row, event.counters)
        case jobs.StopRequested():
            return replace(row, status="stopping")
        case jobs.Held():
            error = {"code": "held", "message": event.reason, "plan": event.plan, **event.details}
            return _counted(replace(row, status="paused", error=_json(error)), event.counters)
        case jobs.Paused():
            counters = row.counters if event.counters is None else event.counters
            return _counted(replace(row, status="paused", error=_json(_paused(event))), counters)
        case jobs.Resumed():
            status = "running" if event.running else "queued"
            return replace(row, status=status, error=None, completed_at=None, duration_ms=None)
        case jobs.Stopped():
            return replace(_ended(row, "stopped", at, event.counters), error=None)
        case jobs.Completed():
            row = replace(_ended(row, "completed", at, event.counters), progress=100, duration_ms=event.duration_ms)
            return replace(row, result=bytes(event.result).decode())
        case jobs.Failed():
            error = {"code": event.code, "message": event.message, **event.details}
            return replace(_ended(row, "failed", at, event.counters), error=_json(error))
        case jobs.Deleted():
            return replace(row, deleted_at=at)
        case _:
            raise LookupError(f"{recorded.topic} is not an event of a job")


def _queued(event: jobs.Queued, recorded: messages.Recorded) -> Row:
    return Row(
        tenant=recorded.tenant,
        id=recorded.id,
        position=recorded.position,
        kind=event.ticket.kind,
        type=event.ticket.type,
        lane=event.ticket.lane,
        status="queued",
        created_at=recorded.recorded_at,
        actor=recorded.metadata.actor,
        waited=event.waited,
        trigger=event.trigger,
        estimated_ms=event.estimated_ms,
        integration=event.ticket.integration,
        requested_type=event.requested_type,
        session=event.session,
    )


def _paused(event: jobs.Paused) -> dict[str, Any]:
    """Why it rests and, where it is tried again by itself, when; a time in UTC with milliseconds."""
    error: dict[str, Any] = {"code": event.code or "paused", "message": event.reason}
    if event.until is not None:
        until = event.until.astimezone(UTC).isoformat(timespec="milliseconds")
        error |= {"nextTry": until.replace("+00:00", "Z"), "tried": event.tried}
    return error


def _counted(row: Row, counters: jobs.Counters) -> Row:
    return replace(row, **msgspec.structs.asdict(counters))


def _ended(row: Row, status: jobs.Status, at: datetime, counters: jobs.Counters) -> Row:
    elapsed = at - (row.started_at or at)
    row = replace(row, status=status, completed_at=at, duration_ms=elapsed // timedelta(milliseconds=1))
    return _counted(row, counters)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


async def get(database: Database, tenant: str, id: str) -> Row | None:
    """One job, unless it was deleted."""
    row = await database.fetchrow(
        f"select * from {SCHEMA}.jobs where tenant = $1 and id = $2 and deleted_at is null", tenant, id
    )
    return None if row is None else TABLE.parse(row)


async def list_(
    database: Database,
    tenant: str,
    status: str | None = None,
    integration: str | None = None,
    limit: int = 20,
    actor: str | None = None,
) -> tuple[list[Row], int]:
    """The newest jobs that match, and how many match in all."""
    where, args = "tenant = $1 and deleted_at is null", [tenant]
    for column, value in (("status", status), ("integration", integration), ("actor", actor)):
        if value is not None:
            args.append(value)
            where += f" and {column} = ${len(args)}"
    rows = await database.fetch(
        f"select * from {SCHEMA}.jobs where {where} order by created_at desc, id limit {int(limit)}", *args
    )
    total = await database.fetchval(f"select count(*) from {SCHEMA}.jobs where {where}", *args)
    return [TABLE.parse(row) for row in rows], int(total)


async def open_jobs(database: Database, tenant: str, integration: str | None = None) -> list[Row]:
    """Jobs that are queued, running or stopping, oldest first."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.jobs where tenant = $1 and deleted_at is null"
        " and status in ('queued', 'running', 'stopping') and ($2::text is null or integration = $2)"
        " order by created_at, id",
        tenant,
        integration,
    )
    return [TABLE.parse(row) for row in rows]
