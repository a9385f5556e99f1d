"""What can be read about jobs."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from msgspec import UNSET

from domain import errors, jobs, messages
from projections import jobs as jobs_read
from services.gateway import as_of, bodies, headers
from services.gateway.as_of import Moment
from services.gateway.dialects import Reply, timestamp_ms
from services.gateway.jobs_live import JobStream
from services.gateway.jobs_shapes import ENDED, Detail, Line, Listing, Logs, job, outcome
from services.gateway.jobs_watched import Cursor
from services.gateway.routes import Call
from services.gateway.streams import Live
from services.gateway.things import JOB, check_job
from services.worker import progress

LIMIT = 20
LIMIT_MAX = 100
_ID = re.compile(r"([0-9]{1,9})\.([0-9]{1,18})\.([0-9]{1,18})")


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
    shown = [job(row) for row in rows]
    seen = await progress.read(call.api.process.db, [row.id for row in rows if row.status != "completed"])
    for one in shown:
        if one.id in seen:
            one.progress = max(one.progress, seen[one.id].progress.progress)
    return call.reply(Listing(shown, total), position)


async def found(call: Call, name: str = "job_id") -> tuple[jobs_read.Row, int]:
    """The job that a parameter of the path names. A key may always read the jobs that it queued."""
    position = await call.caught_up()
    row = await jobs_read.get(call.api.process.db, call.tenant, call.path(name))
    if row is None:
        raise errors.NotFound("There is no such job", kind="job")
    check_job(call.principal, row.actor)
    return row, position


async def _was(call: Call, moment: Moment) -> jobs_read.Row:
    """The same job at a moment, from its events."""
    source = await JOB.find(call, call.path(JOB.parameter))
    row = as_of.folded(await call.api.process.store.stream(source.stream, until=moment.position), jobs_read.fold)
    if row is None or row.deleted_at is not None:
        raise errors.NotFound("There was no such job then", kind="job")
    return row


async def show(call: Call) -> Any:
    """With `as_of` as it was then, as far as that was kept: finer progress than that of events is told only of the
    last attempt of a job that has not completed."""
    moment = await as_of.wanted(call)
    if moment is None:
        return await _shown(call, *await found(call), as_of.PRESENT)
    return await _shown(call, await _was(call, moment), moment.position, moment)


async def _shown(call: Call, row: jobs_read.Row, position: int, moment: Moment) -> Any:
    detail: Detail = job(row, Detail)
    process = call.api.process
    detail.stats = outcome(row.counters)
    detail.stage = UNSET if row.stage is None else row.stage
    seen = None if row.status == "completed" else (await progress.read(process.db, [row.id])).get(row.id)
    if seen is not None and moment.saw(seen.at):
        _refine(detail, row, seen, moment.now)
    limit = process.settings.jobs.log_lines
    lines = await progress.newest_lines(process.db, call.tenant, row.id, limit, moment.until)
    detail.logs = [Line(timestamp_ms(line.at), line.level, line.message) for line in lines]
    return call.reply(detail, position)


def _refine(detail: Detail, row: jobs_read.Row, seen: progress.Seen, now: datetime) -> None:
    """What events do not say: it is newer than they are where a job runs, and never behind them."""
    if seen.progress.progress >= row.progress:
        detail.progress = seen.progress.progress
        if row.status in jobs.OPEN:
            detail.stage = seen.progress.stage
            detail.stats = outcome(seen.progress.counters)
    if row.status == "running" and (expected := seen.completion(now)) is not None:
        detail.estimated_completion = timestamp_ms(expected)


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


async def events(call: Call) -> Any:
    """A stream of `text/event-stream`: `status` for each change of the job's state, `log` for each line, `progress` now
    and then, and `end` once it has completed, failed, was stopped or deleted; then the answer is complete. With the
    `id` of an event as `Last-Event-ID` it goes on behind it, without loss or repetition of status and log; where
    nothing can follow, the answer is 204."""
    live = call.api.live
    cursor = _cursor(call, call.api.process.epoch)
    await call.api.reads.reached(cursor.position, call.api.process.settings.gateway.read_wait_s)
    row, position = await found(call)
    told = row.status in ENDED and cursor.position >= row.position
    if told and cursor.seq >= await progress.last_line(call.api.process.db, row.id):
        return Reply(204, b"", [headers.position(position)])
    key = messages.stream(jobs.STREAM, call.tenant, row.id)
    stream = JobStream(live.streams, call.principal, live.jobs, key, cursor)
    return Live(stream, [headers.position(position)])


def _cursor(call: Call, epoch: int) -> Cursor:
    """Where the client was. Raises Invalid, and Gone for a place in another history."""
    text = headers.last_event_id(call.fields) or call.query().get("lastEventId")
    if not text:
        return Cursor()
    if (match := _ID.fullmatch(text)) is None:
        raise errors.Invalid("Last-Event-ID is the id of an event of this stream")
    if int(match[1]) != epoch:
        raise errors.Gone("That id belongs to another history; read again from the start", resync={"epoch": epoch})
    return Cursor(int(match[2]), int(match[3]))
