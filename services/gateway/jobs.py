"""Sync jobs: the commands of the Sync Management document."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from msgspec import Meta, Struct

from domain import errors, integrations, jobs, kinds, messages, schedules
from infra.eventstore.recorder import Claimed
from infra.eventstore.store import Done, Wish
from projections import integrations as integrations_read
from services import integrations as queueing
from services.gateway import sessions_attach
from services.gateway.dialects import Timestamp, timestamp_ms
from services.gateway.routes import Call
from services.worker import progress

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


def job_type(text: str) -> jobs.Type:
    """With and without the suffix. Raises errors.Invalid."""
    if text not in _TYPES:
        raise errors.Invalid(f"Unknown type; there are {', '.join(sorted(set(_TYPES.values())))}")
    return _TYPES[text]


async def create(call: Call) -> Any:
    body = await call.body(Create)
    kind = job_type(body.type)
    done = await call.earlier(jobs)
    if done is None:
        await call.caught_up(integrations.STREAM)
        queued = await queue(call, body.integration_id, kind, body.options)
        done = await sessions_attach.queue(call, queued)
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
        due = None if row is None or row.next_fires is None else timestamp_ms(row.next_fires)
        return IntervalChanged(True, id, new, new, due)
    changed = done.events[0]
    before = await call.api.process.store.load(integrations, changed.stream, until=changed.position - 1)
    timing = schedules.timing(f"{call.tenant}/{integration}", done.state.schedule)
    due = None
    if done.state.active and timing is not None:
        due = timestamp_ms(schedules.fires(timing, changed.recorded_at + timedelta(seconds=new)))
    return IntervalChanged(True, id, before.state.interval, new, due)


async def delete(call: Call) -> Any:
    body = await call.optional_body(Delete) or Delete()
    id = call.path("job_id")
    done = await call.execute([Wish(jobs, id, jobs.Delete(body.delete_logs))])
    if any(isinstance(one.event, jobs.Deleted) and one.event.logs for one in done.events):
        await progress.erase(call.api.process.db, call.tenant, id)
    return call.reply(Deleted(True, id), done.position)
