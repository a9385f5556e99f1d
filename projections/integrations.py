"""What clients and the scheduler read about integrations."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from domain import integrations, jobs, messages
from projections.table import Connection, Database, Key, Table

NAME = "integrations"
GENERATION = 1
CONTEXTS = ("integrations", "jobs")
SCHEMA = f"rm_{NAME}_{GENERATION}"
_KEPT = 10
#: How many full syncs that have not completed are known: those that failed may never be resumed.
_REMEMBERED = 100


class Row(Struct, frozen=True):
    """`recent_*` are the durations in ms of the last ten completed jobs of a type; `baseline_at` is the end of the
    last completed full sync of the present configuration; `next_due` is when the schedule fires."""

    tenant: str
    id: str
    position: int
    name: str
    kind: str
    config: str
    created_at: datetime
    interval: int | None = None
    active: bool = True
    declared: bool = False
    last_sync: datetime | None = None
    next_due: datetime | None = None
    baseline_at: datetime | None = None
    reconfigured: int = 0
    total: int = 0
    completed: int = 0
    failed: int = 0
    duration_ms: int = 0
    recent_full: tuple[int, ...] = ()
    recent_incremental: tuple[int, ...] = ()
    recent_selective: tuple[int, ...] = ()
    scheduled_open: str | None = None
    last_failed: bool = False
    full_open: tuple[str, ...] = ()

    def estimate(self, type: str) -> int:
        """The median duration in ms of the last ten completed jobs of that type, 0 without history."""
        recent = _recent(self, type)
        return int(median(recent)) if recent else 0


TABLE = Table("integrations", Row, ("tenant", "id"), ("(next_due) where active and next_due is not null",))


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, _fold)


def _key(recorded: messages.Recorded) -> Key | None:
    match recorded.event:
        case jobs.Queued() | jobs.Held() | jobs.Paused() | jobs.Stopped() | jobs.Completed() | jobs.Failed():
            integration = recorded.event.ticket.integration
            return None if integration is None else (recorded.tenant, integration)
        case _ if recorded.stream.startswith("integrations/"):
            return recorded.tenant, recorded.id
        case _:
            return None


def _fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    event, at = recorded.event, recorded.recorded_at
    if isinstance(event, integrations.Created):
        return Row(
            tenant=recorded.tenant,
            id=recorded.id,
            position=recorded.position,
            name=event.name,
            kind=event.kind,
            config=bytes(event.config).decode(),
            created_at=at,
            interval=event.interval,
            declared=event.declared,
            next_due=after(at, event.interval),
        )
    if row is None:
        return None  # a job that outlived its integration
    row = replace(row, position=recorded.position)
    match event:
        case integrations.Changed():
            return _changed(row, event, at)
        case integrations.Started():
            return replace(row, active=True, next_due=after(at, row.interval))
        case integrations.Stopped():
            return replace(row, active=False, next_due=None)
        case integrations.Deleted():
            return None
        case _:
            return _job(row, recorded)


def _changed(row: Row, event: integrations.Changed, at: datetime) -> Row:
    if event.interval != row.interval:
        row = replace(row, interval=event.interval, next_due=after(at, event.interval) if row.active else None)
    if event.reconfigured:
        row = replace(row, config=bytes(event.config).decode(), baseline_at=None, full_open=())
    return replace(row, name=event.name)


def _job(row: Row, recorded: messages.Recorded) -> Row:
    event, at = recorded.event, recorded.recorded_at
    match event:
        case jobs.Queued():
            return _queued(row, event, recorded.id, at)
        case jobs.Completed():
            baseline = at if recorded.id in row.full_open else row.baseline_at
            row = replace(_ended(row, recorded.id), completed=row.completed + 1, last_failed=False, last_sync=at)
            return replace(_timed(row, event), baseline_at=baseline)
        case jobs.Failed():
            return replace(_rests(row, recorded.id), failed=row.failed + 1, last_failed=True)
        case jobs.Stopped():
            return _ended(row, recorded.id)
        case _:
            return _rests(row, recorded.id)


def _queued(row: Row, event: jobs.Queued, id: str, at: datetime) -> Row:
    row = replace(row, total=row.total + 1)
    if event.ticket.type == "full_sync":
        row = replace(row, full_open=(*row.full_open, id)[-_REMEMBERED:])
    if event.trigger != "schedule" or event.due is None or row.interval is None:
        return row
    missed = max((at - event.due) // timedelta(seconds=row.interval), 0)
    due = event.due + timedelta(seconds=row.interval) * (missed + 1)
    return replace(row, scheduled_open=id, next_due=due if row.active else None)


def _rests(row: Row, id: str) -> Row:
    """A job that may be resumed: a full sync that then completes is a baseline all the same."""
    return replace(row, scheduled_open=None if row.scheduled_open == id else row.scheduled_open)


def _ended(row: Row, id: str) -> Row:
    return replace(_rests(row, id), full_open=tuple(one for one in row.full_open if one != id))


def _timed(row: Row, event: jobs.Completed) -> Row:
    row = replace(row, duration_ms=row.duration_ms + event.duration_ms)
    name = f"recent_{event.ticket.type.removesuffix('_sync')}"
    return replace(row, **{name: (*getattr(row, name), event.duration_ms)[-_KEPT:]})


def _recent(row: Row, type: str) -> tuple[int, ...]:
    recent: tuple[int, ...] = getattr(row, f"recent_{type.removesuffix('_sync')}")
    return recent


def after(at: datetime, interval: int | None) -> datetime | None:
    """When a schedule that begins now first fires."""
    return None if interval is None else at + timedelta(seconds=interval)


async def get(database: Database, tenant: str, id: str) -> Row | None:
    row = await database.fetchrow(f"select * from {SCHEMA}.integrations where tenant = $1 and id = $2", tenant, id)
    return None if row is None else TABLE.parse(row)


async def by_id(database: Database, id: str) -> list[Row]:
    """Those of all tenants that have this id."""
    rows = await database.fetch(f"select * from {SCHEMA}.integrations where id = $1 order by tenant", id)
    return [INTEGRATIONS.parse(row) for row in rows]


async def list_(database: Database, tenant: str) -> list[Row]:
    """All integrations of a tenant, by id."""
    rows = await database.fetch(f"select * from {SCHEMA}.integrations where tenant = $1 order by id", tenant)
    return [TABLE.parse(row) for row in rows]


async def due(database: Database, now: datetime, limit: int = 100) -> list[Row]:
    """Whose schedule has come and whose last scheduled job has ended, of all tenants, the longest overdue first."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.integrations where active and next_due <= $1 and scheduled_open is null"
        " order by next_due limit $2",
        now,
        limit,
    )
    return [TABLE.parse(row) for row in rows]
