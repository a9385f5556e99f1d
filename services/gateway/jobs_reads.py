"""What can be read about jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from msgspec import UNSET

from domain import errors, jobs, messages
from projections import jobs as jobs_read
from services.gateway import bodies
from services.gateway.dialects import timestamp_ms
from services.gateway.jobs_shapes import Detail, Line, Listing, Logs, job, outcome
from services.gateway.routes import Call
from services.worker import progress

LIMIT = 20
LIMIT_MAX = 100


async def list_(call: Call) -> Any:
    query = call.query()
    status = query.get("status")
    status = "queued" if status == "pending" else status
    if status is not None and status not in jobs.STATUSES:
        raise errors.Invalid(f"Unknown status; there are {', '.join(jobs.STATUSES)}")
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    position = await call.caught_up()
    actor = None if call.principal.may("jobs:read") else call.principal.actor
    rows, total = await jobs_read.list_(
        call.api.process.db, call.tenant, status, query.get("integrationId"), limit, actor
    )
    return call.reply(Listing([job(row) for row in rows], total), position)


async def found(call: Call) -> tuple[jobs_read.Row, int]:
    """The job of the path. A key may always read the jobs that it queued."""
    position = await call.caught_up()
    row = await jobs_read.get(call.api.process.db, call.tenant, call.path("job_id"))
    if row is None:
        raise errors.NotFound("There is no such job", kind="job")
    if not call.principal.may("jobs:read") and row.actor != call.principal.actor:
        raise errors.Forbidden("This needs the scope jobs:read")
    return row, position


async def show(call: Call) -> Any:
    row, position = await found(call)
    detail: Detail = job(row, Detail)
    process = call.api.process
    fine = await progress.read(process.db, row.id) if row.status in jobs.OPEN else None
    counters, stage, at = row.counters, row.stage, row.progress
    if fine is not None and fine.progress >= at:
        counters, stage, at = fine.counters, fine.stage, fine.progress
    detail.progress, detail.stats = at, outcome(counters)
    detail.stage = UNSET if stage is None else stage
    if row.status == "running" and row.started_at is not None and 0 < at < 100:
        elapsed = datetime.now(UTC) - row.started_at
        detail.estimated_completion = timestamp_ms(row.started_at + max(elapsed, timedelta()) * (100 / at))
    lines = await progress.newest_lines(process.db, call.tenant, row.id, process.settings.jobs.log_lines)
    detail.logs = [Line(timestamp_ms(line.at), line.level, line.message) for line in lines]
    return call.reply(detail, position)


async def logs(call: Call) -> Any:
    after = bodies.integer(call.query(), "after", 0, 0, 2**62)
    limit = bodies.integer(call.query(), "limit", 1000, 1, 1000)
    lines = await progress.lines(call.api.process.db, call.tenant, call.path("job_id"), after, limit)
    if not lines and not await _ever(call):
        raise errors.NotFound("There is no such job", kind="job")
    shown = [Line(timestamp_ms(line.at), line.level, line.message) for line in lines]
    return call.reply(Logs(shown, lines[-1].seq if lines else after), await call.caught_up())


async def _ever(call: Call) -> bool:
    stream = messages.stream(jobs.STREAM, call.tenant, call.path("job_id"))
    return bool(await call.api.process.store.stream(stream))
