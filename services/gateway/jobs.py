"""Sync jobs: the routes of the Sync Management document."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from domain import errors, integrations, jobs, kinds, messages
from infra.eventstore.recorder import Claimed
from infra.eventstore.store import Done, Wish
from projections import integrations as integrations_read
from projections import jobs as jobs_read
from services import integrations as queueing
from services.gateway import bodies
from services.gateway.dialects import JOBS, Timestamp, timestamp_ms
from services.gateway.routes import Call, Parameter, Route
from services.worker import progress

LIMIT = 20
LIMIT_MAX = 100
# A job's claim is named `<job>|<line>` (domain.jobs).
_OPEN_WORK = (
    "select stream_id from undrift.claims where tenant = $1 and kind like 'work/%'"
    " and ($2::text is null or substr(key, strpos(key, '|') + 1) = $2) order by pos"
)
_TYPES: dict[str, jobs.Type] = {
    name: full
    for full in ("full_sync", "incremental_sync", "selective_sync")
    for name in (full, full.removesuffix("_sync"))
}


class Outcome(Struct, rename="camel"):
    processed: int
    created: int
    updated: int
    deleted: int
    errors: int


class Line(Struct, rename="camel"):
    timestamp: Timestamp
    level: str
    message: str


class Fault(Struct, rename="camel"):
    """Why a job failed, or what it waits for; `plan` is the hash that a confirmation must name."""

    code: str
    message: str
    plan: str | UnsetType = UNSET


class Job(Struct, rename="camel"):
    id: str
    kind: str
    type: str
    status: str
    progress: int
    created_at: Timestamp
    integration_id: str | UnsetType = UNSET
    started_at: Timestamp | UnsetType = UNSET
    completed_at: Timestamp | UnsetType = UNSET
    duration: int | UnsetType = UNSET
    result: Outcome | UnsetType = UNSET
    error: Fault | UnsetType = UNSET


class Detail(Job, rename="camel"):
    stage: str | UnsetType = UNSET
    estimated_completion: Timestamp | UnsetType = UNSET
    stats: Outcome | UnsetType = UNSET
    logs: list[Line] = []


class Listing(Struct):
    jobs: list[Job]
    total: int


TypeName = Annotated[str, Meta(extra_json_schema={"enum": list(_TYPES)})]


class Create(Struct, rename="camel"):
    integration_id: Annotated[str, Meta(min_length=1, max_length=255)]
    type: TypeName
    options: kinds.Options = kinds.Options()


class Created(Struct, rename="camel"):
    success: bool
    job_id: str
    status: str
    estimated_duration: int


class Resume(Struct):
    confirm: Annotated[str, Meta(max_length=128)] | None = None


class Stop(Struct):
    graceful: bool = True


class StopAll(Struct, rename="camel"):
    integration_id: Annotated[str, Meta(max_length=255)] | None = None


class Changed(Struct, rename="camel"):
    success: bool
    job_id: str
    status: str
    message: str


class StoppedAll(Struct, rename="camel"):
    success: bool
    stopped_jobs: int
    jobs: list[str]


class Interval(Struct):
    interval: Annotated[int, Meta(ge=1, le=integrations.INTERVAL_MAX)]


class IntervalChanged(Struct, rename="camel"):
    success: bool
    job_id: str
    old_interval: int | None
    new_interval: int
    next_run: Timestamp | None


class Delete(Struct, rename="camel"):
    delete_logs: bool = False


class Deleted(Struct):
    success: bool
    deleted: str


class Logs(Struct):
    logs: list[Line]
    next: int


def job_type(text: str) -> jobs.Type:
    """With and without the suffix. Raises errors.Invalid."""
    if text not in _TYPES:
        raise errors.Invalid(f"Unknown type; there are {', '.join(sorted(set(_TYPES.values())))}")
    return _TYPES[text]


def outcome(counters: jobs.Counters) -> Outcome:
    return Outcome(counters.processed, counters.created, counters.updated, counters.deleted, counters.errors)


def _job(row: jobs_read.Row, shape: type[Any] = Job) -> Any:
    made = shape(
        id=row.id,
        kind=row.kind,
        type=row.type,
        status=row.status,
        progress=row.progress,
        created_at=timestamp_ms(row.created_at),
    )
    made.integration_id = UNSET if row.integration is None else row.integration
    made.started_at = UNSET if row.started_at is None else timestamp_ms(row.started_at)
    if row.status in ("completed", "failed", "stopped"):
        made.completed_at = UNSET if row.completed_at is None else timestamp_ms(row.completed_at)
        made.duration = UNSET if row.duration_ms is None else row.duration_ms
        made.result = outcome(row.counters)
    if row.error is not None:
        made.error = msgspec.json.decode(row.error, type=Fault)
    return made


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
    return call.reply(Listing([_job(row) for row in rows], total), position)


async def _row(call: Call) -> tuple[jobs_read.Row, int]:
    """The job of the path. A key may always read the jobs that it queued."""
    position = await call.caught_up()
    row = await jobs_read.get(call.api.process.db, call.tenant, call.path("job_id"))
    if row is None:
        raise errors.NotFound("There is no such job", kind="job")
    if not call.principal.may("jobs:read") and row.actor != call.principal.actor:
        raise errors.Forbidden("This needs the scope jobs:read")
    return row, position


async def show(call: Call) -> Any:
    row, position = await _row(call)
    detail: Detail = _job(row, Detail)
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


async def create(call: Call) -> Any:
    body = await call.body(Create)
    kind = job_type(body.type)
    done = await call.earlier(jobs)
    if done is None:
        await call.caught_up(integrations.STREAM)
        queued = await queue(call, body.integration_id, kind, body.options)
        done = await call.execute([Wish(jobs, queued.ticket.job, jobs.Queue(queued), fresh=True)])
    queued = _queued(done)
    return call.reply(Created(True, queued.ticket.job, "queued", queued.estimated_ms), done.position)


def _queued(done: Done) -> jobs.Queued:
    return next(one.event for one in done.events if isinstance(one.event, jobs.Queued))


async def queue(call: Call, integration: str, type: jobs.Type, options: kinds.Options) -> jobs.Queued:
    """A job of an integration, ready to be queued. Raises NotFound, Invalid, RecentSync."""
    process = call.api.process
    row = await integrations_read.get(process.db, call.tenant, integration)
    if row is None:
        raise errors.NotFound("There is no such integration", kind="integration")
    interval_s = process.settings.jobs.min_full_interval_s
    return queueing.queued(row, type, options, interval_s, datetime.now(UTC))


async def resume(call: Call) -> Any:
    body = await call.optional_body(Resume) or Resume()
    id = call.path("job_id")
    try:
        done = await call.execute([Wish(jobs, id, jobs.Resume(body.confirm))])
    except Claimed:  # another job of the integration, or of the target, runs
        done = await call.execute([Wish(jobs, id, jobs.Resume(body.confirm, running=False))])
    status = done.state.status
    text = "Job resumed" if status == "running" else "Job queued behind another one"
    return call.reply(Changed(True, id, status, text), done.position)


async def stop(call: Call) -> Any:
    body = await call.optional_body(Stop) or Stop()
    id = call.path("job_id")
    done = await call.execute([Wish(jobs, id, jobs.Stop(body.graceful))])
    status = done.state.status
    text = "Job stop requested" if status == "stopping" else "Job stopped"
    return call.reply(Changed(True, id, status, text), done.position)


async def stop_all(call: Call) -> Any:
    body = await call.optional_body(StopAll) or StopAll()
    done = await call.earlier(jobs)
    if done is None:
        done = await stop_open(call, body.integration_id)
    stopped = list(dict.fromkeys(recorded.id for recorded in done.events))
    position = done.position or await call.api.process.store.head()  # where there was nothing to stop
    return call.reply(StoppedAll(True, len(stopped), stopped), position)


async def stop_open(call: Call, integration: str | None, *more: Wish) -> Done:
    """Stops what is queued or running, and carries out `more`, as one command.

    What is open is read from the claims, which are exact: a job that anybody queued before is not missed.
    """
    line = None if integration is None else jobs.line(integration)
    rows = await call.api.process.db.fetch(_OPEN_WORK, call.tenant, line)
    wishes = [Wish(jobs, row["stream_id"].rpartition("/")[2], jobs.Stop(open_only=True)) for row in rows]
    return await call.execute([*more, *wishes])


async def interval(call: Call) -> Any:
    body = await call.body(Interval)
    stream = messages.stream(jobs.STREAM, call.tenant, call.path("job_id"))
    job = (await call.api.process.store.load(jobs, stream)).state
    if job.queued is None:
        raise errors.NotFound("There is no such job", kind="job")
    integration = job.queued.ticket.integration
    if integration is None:
        raise errors.InvalidState("The job has no integration, so no schedule")
    done = await call.earlier(integrations, stream=messages.stream(integrations.STREAM, call.tenant, integration))
    if done is None:
        if job.deleted:
            raise errors.NotFound("There is no such job", kind="job")
        done = await call.execute([Wish(integrations, integration, integrations.Change(interval=body.interval))])
    return call.reply(await _interval_changed(call, integration, done), done.position)


async def _interval_changed(call: Call, integration: str, done: Done) -> IntervalChanged:
    """From the events alone: the interval before, and when the new one first comes round."""
    id, new = call.path("job_id"), done.state.interval
    if not done.events:
        await call.caught_up()
        row = await integrations_read.get(call.api.process.db, call.tenant, integration)
        due = None if row is None or row.next_due is None else timestamp_ms(row.next_due)
        return IntervalChanged(True, id, new, new, due)
    changed = done.events[0]
    before = await call.api.process.store.load(integrations, changed.stream, until=changed.position - 1)
    due = timestamp_ms(changed.recorded_at + timedelta(seconds=new)) if done.state.active else None
    return IntervalChanged(True, id, before.state.interval, new, due)


async def delete(call: Call) -> Any:
    body = await call.optional_body(Delete) or Delete()
    id = call.path("job_id")
    done = await call.execute([Wish(jobs, id, jobs.Delete(body.delete_logs))])
    if any(isinstance(one.event, jobs.Deleted) and one.event.logs for one in done.events):
        await progress.erase(call.api.process.db, call.tenant, id)
    return call.reply(Deleted(True, id), done.position)


_STATUS = Parameter("status", {"type": "string", "enum": [*jobs.STATUSES, "pending"]}, "`pending` means `queued`")
_INTEGRATION = Parameter("integrationId", {"type": "string", "pattern": r"^[^\u0000-\u001f\u007f]*$"})
_LIMIT = Parameter("limit", {"type": "integer", "default": LIMIT}, f"clamped to 1..{LIMIT_MAX}")
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 503)

ROUTES: Sequence[Route] = (
    Route(
        "GET",
        "/api/sync/jobs",
        list_,
        JOBS,
        "List jobs, the newest first",
        query=(_STATUS, _INTEGRATION, _LIMIT),
        answers={200: Listing},
        errors=(400, 401, 503),
    ),
    Route(
        "POST",
        "/api/sync/jobs",
        create,
        JOBS,
        "Queue a job of an integration",
        needs="jobs:write",
        body=Create,
        answers={200: Created},
        errors=_WRITE,
    ),
    Route(
        "POST",
        "/api/sync/jobs/stop-all",
        stop_all,
        JOBS,
        "Stop what is queued or running",
        needs="jobs:write",
        body=StopAll,
        body_required=False,
        answers={200: StoppedAll},
        errors=_WRITE,
    ),
    Route(
        "GET",
        "/api/sync/jobs/{job_id:str}",
        show,
        JOBS,
        "One job with its progress and newest log lines",
        answers={200: Detail},
        errors=(400, 401, 403, 404, 503),
    ),
    Route(
        "DELETE",
        "/api/sync/jobs/{job_id:str}",
        delete,
        JOBS,
        "Delete a job that has ended",
        needs="jobs:write",
        body=Delete,
        body_required=False,
        answers={200: Deleted},
        errors=_WRITE,
    ),
    Route(
        "GET",
        "/api/sync/jobs/{job_id:str}/logs",
        logs,
        JOBS,
        "All log lines of a job, also of a deleted one",
        needs="jobs:read",
        query=(
            Parameter("after", {"type": "integer", "default": 0}),
            Parameter("limit", {"type": "integer", "default": 1000}, "clamped to 1..1000"),
        ),
        answers={200: Logs},
        errors=(400, 401, 403, 404, 503),
    ),
    Route(
        "POST",
        "/api/sync/jobs/{job_id:str}/resume",
        resume,
        JOBS,
        "Resume a paused or failed job; `confirm` is the hash of a plan that a guard holds",
        needs="jobs:write",
        body=Resume,
        body_required=False,
        answers={200: Changed},
        errors=_WRITE,
    ),
    Route(
        "POST",
        "/api/sync/jobs/{job_id:str}/stop",
        stop,
        JOBS,
        "Stop a job; `graceful` lets the operation under way finish",
        needs="jobs:write",
        body=Stop,
        body_required=False,
        answers={200: Changed},
        errors=_WRITE,
    ),
    Route(
        "PUT",
        "/api/sync/jobs/{job_id:str}/interval",
        interval,
        JOBS,
        "Change the schedule of a job's integration, in seconds",
        needs="jobs:write",
        body=Interval,
        answers={200: IntervalChanged},
        errors=_WRITE,
    ),
)
