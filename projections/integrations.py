"""What clients and the scheduler read about integrations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import get_args

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain import integrations, jobs, messages, schedules
from projections.integrations_rows import INTEGRATIONS as INTEGRATIONS
from projections.integrations_rows import OPEN, recent
from projections.integrations_rows import Open as Open
from projections.integrations_rows import Row as Row
from projections.table import Connection, Database, Key

NAME = "integrations"
GENERATION = 2
CONTEXTS = ("integrations", "jobs")
SCHEMA = f"rm_{NAME}_{GENERATION}"
_KEPT = 10
#: How many full syncs that have not completed are known: those that failed may never be resumed.
_REMEMBERED = 100
_OF_JOBS = (
    jobs.Queued | jobs.Started | jobs.Held | jobs.Paused | jobs.Resumed | jobs.Stopped | jobs.Completed | jobs.Failed
)
#: What of a job's events counts for its integration.
TOPICS = tuple(messages.topic(kind) for kind in get_args(_OF_JOBS))


def ddl(schema: str) -> str:
    return f"{INTEGRATIONS.ddl(schema)};\n{OPEN.ddl(schema)}"


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    """Rows of both tables in one pass: what a job's end means depends on when it began."""
    keyed = [(key, one) for one in events if (key := _key(one)) is not None]
    if not keyed:
        return
    rows: dict[Key, Row | None] = {}
    rows.update(before := await INTEGRATIONS.load(connection, schema, {key for key, _ in keyed}))
    opened: dict[Key, Open | None] = {}
    opened.update(was := await OPEN.load(connection, schema, {_job_key(one) for _, one in keyed}))
    follow(rows, opened, (one for _, one in keyed))
    await INTEGRATIONS.save(connection, schema, {key: row for key, row in rows.items() if row != before.get(key)})
    await OPEN.save(connection, schema, {key: row for key, row in opened.items() if row != was.get(key)})


def follow(rows: dict[Key, Row | None], opened: dict[Key, Open | None], events: Iterable[messages.Recorded]) -> None:
    """Brings the rows of both tables on by events, in their order."""
    for one in events:
        if (key := _key(one)) is not None:
            name = _job_key(one)
            rows[key] = _fold(rows.get(key), one, opened.get(name))
            opened[name] = _fold_open(opened.get(name), one, rows[key])


def _key(recorded: messages.Recorded) -> Key | None:
    if isinstance(recorded.event, _OF_JOBS):
        integration = recorded.event.ticket.integration
        return None if integration is None else (recorded.tenant, integration)
    return (recorded.tenant, recorded.id) if recorded.stream.startswith("integrations/") else None


def _job_key(recorded: messages.Recorded) -> Key:
    """The job that an event is about; of other events one that does not exist."""
    if isinstance(recorded.event, integrations.Overdue):
        return recorded.tenant, recorded.event.job or ""
    return recorded.tenant, recorded.id if isinstance(recorded.event, _OF_JOBS) else ""


def _fold_open(row: Open | None, recorded: messages.Recorded, integration: Row | None) -> Open | None:
    event = recorded.event
    match event:
        case jobs.Queued():
            return _opened(event, recorded, integration)
        case jobs.Resumed() if row is None:
            full = event.ticket.type == "full_sync"
            return Open(recorded.tenant, recorded.id, event.ticket.integration or "", recorded.recorded_at, full, False)
        case jobs.Paused() if event.until is not None:
            return None if row is None else replace(row, retry_at=event.until)
        case jobs.Held() | jobs.Paused() | jobs.Stopped() | jobs.Completed() | jobs.Failed():
            return None
    if row is None:
        return None
    match event:
        case jobs.Resumed():
            return replace(row, retry_at=None)
        case jobs.Started():
            return replace(row, started=True)
        case integrations.Overdue():
            return replace(row, overdue_at=None)
        case _:
            return row


def _opened(event: jobs.Queued, recorded: messages.Recorded, integration: Row | None) -> Open:
    full, scheduled = event.ticket.type == "full_sync", event.trigger == "schedule"
    row = Open(recorded.tenant, recorded.id, event.ticket.integration or "", recorded.recorded_at, full, scheduled)
    entry = entry_of(event)
    timing = None if integration is None else integration.timing(entry)
    plan = None if integration is None else integration.plan
    if event.due is None or integration is None or timing is None or plan is None:
        return row
    said = integration.overdue if entry == "main" else integration.full_overdue
    if said is not None and event.due <= said:
        return replace(row, entry=entry, due=event.due)
    overdue_at = schedules.fires(timing, event.due) + timedelta(seconds=plan.tolerance)
    return replace(row, entry=entry, due=event.due, overdue_at=overdue_at)


def entry_of(event: jobs.Queued) -> schedules.Entry:
    """Which entry of the schedule a scheduled job is of: a full one that was not meant to be is of the main one."""
    return "full" if event.ticket.type == "full_sync" and event.requested_type is None else "main"


def _fold(row: Row | None, recorded: messages.Recorded, opened: Open | None) -> Row | None:
    event, at = recorded.event, recorded.recorded_at
    if isinstance(event, integrations.Created):
        return _created(event, recorded)
    if row is None:
        return None  # a job that outlived its integration
    row = replace(row, position=recorded.position)
    match event:
        case integrations.Changed():
            return _changed(row, event, at)
        case integrations.Started():
            return _begun(replace(row, active=True), at)
        case integrations.Stopped():
            return _begun(replace(row, active=False), at)
        case integrations.Deleted():
            return None
        case integrations.Overdue():
            return _overdue(row, event)
        case _:
            return _left_out(_job(row, recorded), recorded, opened)


def _created(event: integrations.Created, recorded: messages.Recorded) -> Row:
    row = Row(
        tenant=recorded.tenant,
        id=recorded.id,
        position=recorded.position,
        name=event.name,
        kind=event.kind,
        config=bytes(event.config).decode(),
        created_at=recorded.recorded_at,
        interval=event.interval,
        declared=event.declared,
        schedule=_json(integrations.schedule(event)),
        policy=_json(event.policy),
    )
    return _begun(row, recorded.recorded_at)


def _changed(row: Row, event: integrations.Changed, at: datetime) -> Row:
    schedule = _json(integrations.schedule(event))
    row = replace(row, name=event.name, interval=event.interval, policy=_json(event.policy))
    if schedule != row.schedule:
        row = _begun(replace(row, schedule=schedule), at)
    if event.reconfigured:
        row = replace(row, config=bytes(event.config).decode(), baseline_at=None, full_open=(), failures=0)
    return row


def _json(value: Struct | None) -> str | None:
    return None if value is None else msgspec.json.encode(value).decode()


def _begun(row: Row, at: datetime) -> Row:
    """Its schedule counts from now, or is off."""
    row = replace(row, overdue=None, full_overdue=None)
    for entry in schedules.ENTRIES:
        timing = row.timing(entry)
        row = _waits_for(row, entry, schedules.after(timing, at) if row.active and timing is not None else None)
    return row


def _waits_for(row: Row, entry: schedules.Entry, due: datetime | None) -> Row:
    timing = row.timing(entry)
    fires = None if due is None or timing is None else schedules.fires(timing, due)
    if entry == "main":
        return replace(row, next_due=due, next_fires=fires)
    return replace(row, full_due=due, full_fires=fires)


def _overdue(row: Row, event: integrations.Overdue) -> Row:
    if event.job is None:
        row = replace(row, overdue=event.due) if event.entry == "main" else replace(row, full_overdue=event.due)
    waits = row.due(event.entry)
    goes_on = event.resumes is not None and waits is not None and event.resumes > waits
    return _waits_for(row, event.entry, event.resumes) if goes_on else row


def _job(row: Row, recorded: messages.Recorded) -> Row:
    event, at = recorded.event, recorded.recorded_at
    match event:
        case jobs.Queued():
            return _queued(row, event, recorded.id)
        case jobs.Completed():
            baseline = at if recorded.id in row.full_open else row.baseline_at
            row = replace(_ended(row, recorded.id), completed=row.completed + 1, last_failed=False, last_sync=at)
            return replace(_timed(row, event), baseline_at=baseline, failures=0)
        case jobs.Failed():
            row = replace(row, failed=row.failed + 1, last_failed=True)
            return row if event.code == "held" else replace(row, failures=row.failures + 1, failed_at=at)
        case jobs.Paused() if event.code is not None:
            return replace(row, failures=row.failures + 1, failed_at=at)
        case jobs.Stopped():
            return _ended(row, recorded.id)
        case _:
            return row


def _queued(row: Row, event: jobs.Queued, id: str) -> Row:
    row = replace(row, total=row.total + 1)
    if event.ticket.type == "full_sync":
        row = replace(row, full_open=(*row.full_open, id)[-_REMEMBERED:])
    if event.trigger != "schedule" or event.due is None:
        return row
    entry = entry_of(event)
    row = _settled(row, entry, event.due)
    return _passed(row, "main", event.due) if entry == "full" else row  # a full run does what others would


def _settled(row: Row, entry: schedules.Entry, due: datetime) -> Row:
    """That due time and what was before it; unless the schedule has begun anew since."""
    timing, waits = row.timing(entry), row.due(entry)
    if timing is None or waits is None or due < waits:
        return row
    return _waits_for(row, entry, schedules.after(timing, due))


def _passed(row: Row, entry: schedules.Entry, at: datetime) -> Row:
    timing, waits = row.timing(entry), row.due(entry)
    return row if timing is None or waits is None else _waits_for(row, entry, schedules.passed(timing, waits, at))


def _left_out(row: Row, recorded: messages.Recorded, opened: Open | None) -> Row:
    """A job comes to its end: the runs whose time came meanwhile, where they are to be skipped. One whose time is the
    very end is none of them."""
    event, plan, before = recorded.event, row.plan, recorded.recorded_at - timedelta(microseconds=1)
    rests = isinstance(event, jobs.Paused) and event.until is None
    ends = rests or isinstance(event, jobs.Held | jobs.Stopped | jobs.Completed | jobs.Failed)
    if not ends or plan is None or opened is None:
        return row
    for entry in schedules.ENTRIES:
        fires = row.next_fires if entry == "main" else row.full_fires
        if fires is not None and fires > opened.since and schedules.skips(plan.overlap, entry, opened.is_full):
            row = _passed(row, entry, before)
    return row


def _ended(row: Row, id: str) -> Row:
    """A job that rests or failed may be resumed: a full sync that then completes is a baseline all the same."""
    return replace(row, full_open=tuple(one for one in row.full_open if one != id))


def _timed(row: Row, event: jobs.Completed) -> Row:
    row = replace(row, duration_ms=row.duration_ms + event.duration_ms)
    last = (*recent(row, event.ticket.type), event.duration_ms)[-_KEPT:]
    return replace(row, **{f"recent_{event.ticket.type.removesuffix('_sync')}": last})


async def get(database: Database, tenant: str, id: str) -> Row | None:
    row = await database.fetchrow(f"select * from {SCHEMA}.integrations where tenant = $1 and id = $2", tenant, id)
    return None if row is None else INTEGRATIONS.parse(row)


async def by_id(database: Database, id: str) -> list[Row]:
    """Those of all tenants that have this id."""
    rows = await database.fetch(f"select * from {SCHEMA}.integrations where id = $1 order by tenant", id)
    return [INTEGRATIONS.parse(row) for row in rows]


async def list_(database: Database, tenant: str) -> list[Row]:
    """All integrations of a tenant, by id."""
    rows = await database.fetch(f"select * from {SCHEMA}.integrations where tenant = $1 order by id", tenant)
    return [INTEGRATIONS.parse(row) for row in rows]


async def due(
    database: Database, now: datetime, after: tuple[str, str] = ("", ""), limit: int = 500
) -> list[tuple[str, str]]:
    """Tenant and id of those whose time has come, behind the one named by `after`."""
    rows = await database.fetch(
        f"select tenant, id from {SCHEMA}.integrations where active and (next_due is not null or full_due is not null)"
        " and least(next_fires, full_fires) <= $1 and (tenant, id) > ($2, $3) order by tenant, id limit $4",
        now,
        *after,
        limit,
    )
    return [(row["tenant"], row["id"]) for row in rows]


async def open_jobs(database: Database, tenant: str, integration: str | None = None) -> list[Open]:
    """The open jobs of an integration, or of all, the oldest first."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.open where tenant = $1 and ($2::text is null or integration = $2) order by since, job",
        tenant,
        integration,
    )
    return [OPEN.parse(row) for row in rows]


async def retries(database: Database, now: datetime, limit: int = 1000) -> list[Open]:
    """Jobs whose next attempt is due, of all tenants, the longest due first."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.open where retry_at <= $1 order by retry_at limit $2", now, limit
    )
    return [OPEN.parse(row) for row in rows]


async def late(database: Database, now: datetime, limit: int = 1000) -> list[Open]:
    """Scheduled jobs that were queued and have not begun in time, of all tenants."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.open o where overdue_at < $1 and not started and exists (select from"
        f" {SCHEMA}.integrations i where i.tenant = o.tenant and i.id = o.integration) order by overdue_at limit $2",
        now,
        limit,
    )
    return [OPEN.parse(row) for row in rows]
