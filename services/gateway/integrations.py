"""Integrations: what the Sync Management document starts, stops and shows, and how they come and go."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from domain import answers, errors, integrations, jobs, kinds, messages
from infra.eventstore.store import Done, Wish
from infra.vault import Vault
from projections import integrations as integrations_read
from projections import jobs as jobs_read
from services import integrations as declarations
from services import roots, vaulted
from services.gateway import jobs as job_routes
from services.gateway.dialects import JOBS, Timestamp, timestamp_ms
from services.gateway.routes import Call, Route

log = structlog.get_logger("gateway")

Name = Annotated[str, Meta(min_length=1, max_length=255)]
Kind = Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema={"enum": sorted(kinds.KINDS)})]
Id = Annotated[str, Meta(extra_json_schema={"pattern": "^[a-z0-9][a-z0-9-]{0,63}$"})]
Seconds = Annotated[int, Meta(ge=1, le=integrations.INTERVAL_MAX)]


class Integration(Struct, rename="camel"):
    """`config` is without its secrets, which stay when a change leaves them out; the answer to a change has no times
    of syncs."""

    integration_id: str
    name: str
    kind: str
    status: str
    sync_interval: int | None
    config: Raw
    created_at: Timestamp
    last_sync: Timestamp | UnsetType | None = UNSET
    next_sync: Timestamp | UnsetType | None = UNSET


class Listing(Struct):
    integrations: list[Integration]
    total: int


class CurrentJob(Struct):
    id: str
    status: str
    progress: int


class Stats(Struct, rename="camel"):
    total_jobs: int
    success_rate: float
    average_duration: int


class Status(Struct, rename="camel"):
    integration_id: str
    name: str
    status: str
    last_sync: Timestamp | None
    next_sync: Timestamp | None
    sync_interval: int | None
    stats: Stats
    current_job: CurrentJob | UnsetType = UNSET


class Statuses(Struct):
    integrations: list[Status]


class Create(Struct, rename="camel"):
    name: Name
    kind: Kind
    config: dict[str, Any]
    id: Id | None = None
    sync_interval: Seconds | None = None


class Change(Struct, rename="camel"):
    """What is left out stays; `syncInterval: null` takes the schedule away."""

    name: Name | UnsetType = UNSET
    config: dict[str, Any] | UnsetType = UNSET
    sync_interval: Seconds | UnsetType | None = UNSET


class Start(Struct, rename="camel"):
    sync_type: job_routes.TypeName = "incremental"
    schedule_immediate: bool = True


class Started(Struct, rename="camel"):
    success: bool
    integration_id: str
    message: str
    job_id: str | UnsetType = UNSET


class Stopped(Struct, rename="camel"):
    success: bool
    integration_id: str
    active_jobs_stopped: int
    message: str


class Deleted(Struct):
    success: bool
    deleted: str


class Initialized(Struct, rename="camel"):
    success: bool
    message: str
    scheduler_status: str
    integrations_found: int


def _status(row: integrations_read.Row) -> str:
    if not row.active:
        return "stopped"
    return "error" if row.last_failed else "active"


def _shape(row: integrations_read.Row) -> Integration:
    return Integration(
        integration_id=row.id,
        name=row.name,
        kind=row.kind,
        status=_status(row),
        sync_interval=row.interval,
        config=vaulted.shown(row.kind, row.config),
        created_at=timestamp_ms(row.created_at),
        last_sync=None if row.last_sync is None else timestamp_ms(row.last_sync),
        next_sync=None if row.next_due is None else timestamp_ms(row.next_due),
    )


async def _find(call: Call) -> integrations_read.Row:
    row = await integrations_read.get(call.api.process.db, call.tenant, call.path("integration_id"))
    if row is None:
        raise errors.NotFound("There is no such integration", kind="integration")
    return row


async def list_(call: Call) -> Any:
    position = await call.caught_up()
    rows = await integrations_read.list_(call.api.process.db, call.tenant)
    return call.reply(Listing([_shape(row) for row in rows], len(rows)), position)


async def show(call: Call) -> Any:
    position = await call.caught_up()
    return call.reply(_shape(await _find(call)), position)


async def statuses(call: Call) -> Any:
    position = await call.caught_up()
    database = call.api.process.db
    rows = await integrations_read.list_(database, call.tenant)
    current: dict[str, jobs_read.Row] = {}
    for job in await jobs_read.open_jobs(database, call.tenant):
        if job.integration is not None and (job.integration not in current or job.status != "queued"):
            current[job.integration] = job
    return call.reply(Statuses([_described(row, current.get(row.id)) for row in rows]), position)


def _described(row: integrations_read.Row, job: jobs_read.Row | None) -> Status:
    finished = row.completed + row.failed
    return Status(
        integration_id=row.id,
        name=row.name,
        status=_status(row),
        last_sync=None if row.last_sync is None else timestamp_ms(row.last_sync),
        next_sync=None if row.next_due is None else timestamp_ms(row.next_due),
        sync_interval=row.interval,
        stats=Stats(
            total_jobs=row.total,
            success_rate=round(row.completed / finished, 2) if finished else 0.0,
            average_duration=row.duration_ms // row.completed if row.completed else 0,
        ),
        current_job=UNSET if job is None else CurrentJob(job.id, job.status, job.progress),
    )


async def create(call: Call) -> Any:
    body = await call.body(Create)
    checked = _check_config(call, body.kind, body.config)
    done = await call.earlier(integrations)
    if done is None:
        done = await _create(call, body, checked)
    first = done.events[0]
    assert isinstance(first.event, integrations.Created)
    interval = first.event.interval
    next_due = None if interval is None else integrations_read.after(first.recorded_at, interval)
    made = Integration(
        integration_id=first.id,
        name=first.event.name,
        kind=first.event.kind,
        status="active",
        sync_interval=interval,
        config=vaulted.shown(first.event.kind, first.event.config),
        created_at=timestamp_ms(first.recorded_at),
        last_sync=None,
        next_sync=None if next_due is None else timestamp_ms(next_due),
    )
    return call.reply(made, done.position)


def _check_config(call: Call, kind: str, config: dict[str, Any]) -> Any:
    """A configuration in its canonical form, its folders within what the principal may touch."""
    checked = kinds.configuration(kind, config)
    roots.check(call.api.process.settings, call.principal.roots, *kinds.kind(kind).paths(checked))
    return checked


async def _sealed(call: Call, kind: str, id: str, config: dict[str, Any], before: Raw | None = None) -> Raw:
    """As events hold it: with references in place of secrets."""
    vault = Vault(call.api.process.db, call.api.process.master)
    made = await vaulted.sealed(vault, call.tenant, kind, id, config, before)
    roots.check(call.api.process.settings, call.principal.roots, *kinds.kind(kind).paths(made))
    return Raw(msgspec.json.encode(made))


async def _create(call: Call, body: Create, checked: Any) -> Any:
    """Without an id the next free `<kind>-integration-<n>` is taken."""
    if body.id is not None:
        integrations.check_id(body.id)
        return await call.execute([await _wish(call, body, checked, body.id)])
    await call.caught_up()
    number = len(await integrations_read.list_(call.api.process.db, call.tenant))
    while True:
        number += 1
        try:
            return await call.execute([await _wish(call, body, checked, f"{body.kind}-integration-{number}")])
        except errors.AlreadyExists as taken:
            log.debug("the next number is taken", reason=taken.message)


async def _wish(call: Call, body: Create, checked: Any, id: str) -> Wish:
    if kinds.kind(body.kind).secrets:
        config = await _sealed(call, body.kind, id, body.config)
    else:
        config = Raw(msgspec.json.encode(checked))
    command = integrations.Create(id=id, name=body.name, kind=body.kind, config=config, interval=body.sync_interval)
    return Wish(integrations, id, command, fresh=True)  # if it is not, the append says so


async def change(call: Call) -> Any:
    body = await call.body(Change)
    id = call.path("integration_id")
    stream = messages.stream(integrations.STREAM, call.tenant, id)
    done = await call.earlier(integrations, stream=stream)
    if done is None:
        before = (await call.api.process.store.load(integrations, stream)).state
        if before.name is None:
            raise errors.NotFound("There is no such integration", kind="integration")
        config = UNSET if body.config is UNSET else await _sealed(call, before.kind, id, body.config, before.config)
        command = integrations.Change(name=body.name, config=config, interval=body.sync_interval)
        done = await call.execute([Wish(integrations, id, command)])
    return call.reply(await _changed(call, id, stream, done), done.position)


async def _changed(call: Call, id: str, stream: str, done: Done) -> Integration:
    """From the events alone, so without what passes: when it was synced, and when it will be."""
    recorded = await call.api.process.store.stream(stream, until=done.position)
    created = next(one for one in reversed(recorded) if isinstance(one.event, integrations.Created))
    state = done.state
    return Integration(
        integration_id=id,
        name=state.name,
        kind=state.kind,
        status="active" if state.active else "stopped",
        sync_interval=state.interval,
        config=vaulted.shown(state.kind, state.config),
        created_at=timestamp_ms(created.recorded_at),
    )


async def delete(call: Call) -> Any:
    id = call.path("integration_id")
    done = await call.earlier(integrations, jobs)
    if done is None:
        done = await job_routes.stop_open(call, id, Wish(integrations, id, integrations.Delete()))
    return call.reply(Deleted(True, id), done.position)


async def start(call: Call) -> Any:
    body = await call.optional_body(Start) or Start()
    id = call.path("integration_id")
    type = job_routes.job_type(body.sync_type)
    done = await call.earlier(integrations, jobs)
    if done is None:
        await call.caught_up(integrations.STREAM)
        wishes = [Wish(integrations, id, integrations.Start())]
        if body.schedule_immediate:
            queued = await job_routes.queue(call, id, type, kinds.Options())
            wishes.append(Wish(jobs, queued.ticket.job, jobs.Queue(queued), fresh=True))
        done = await call.execute(wishes)
    job = next((one.id for one in done.events if isinstance(one.event, jobs.Queued)), UNSET)
    text = "Schedule started" if job is UNSET else "Sync started"
    return call.reply(Started(True, id, text, job), done.position)


async def stop(call: Call) -> Any:
    id = call.path("integration_id")
    done = await call.earlier(integrations, jobs)
    if done is None:
        done = await job_routes.stop_open(call, id, Wish(integrations, id, integrations.Stop()))
    stopped = {one.id for one in done.events if one.stream.startswith("jobs/")}
    return call.reply(Stopped(True, id, len(stopped), "Integration sync stopped"), done.position)


async def initialize(call: Call) -> Any:
    done = await call.earlier(answers)
    if done is None:
        said, position = await _initialized(call)
        if call.key() is None:
            return call.reply(said, position)
        give = answers.Give(Raw(msgspec.json.encode(said)))
        done = await call.execute([Wish(answers, uuid.uuid4().hex, give, fresh=True)])
    given = next(one.event for one in done.events if isinstance(one.event, answers.Given))
    return call.reply(msgspec.json.decode(given.answer, type=Initialized), done.position)


async def _initialized(call: Call) -> tuple[Initialized, int]:
    """What is so now: no event tells it, so under a key it is remembered."""
    process = call.api.process
    vault = Vault(process.db, process.master)
    position = await declarations.declare(process.store, vault, process.settings.integrations)
    call.api.reads.wrote(call.principal.actor, position)
    position = await call.caught_up()
    found = await integrations_read.list_(process.db, call.tenant)
    state = "running" if await process.leases.alive("scheduler") else "stopped"
    return Initialized(True, "Sync system initialized", state, len(found)), position


_READ = (400, 401, 403, 404, 503)
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 503)
_ONE = "/api/sync/integrations/{integration_id:str}"

ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/sync/initialize",
        initialize,
        JOBS,
        "Load the declared integrations and say whether the scheduler runs",
        needs="jobs:write",
        answers={200: Initialized},
        errors=(400, 401, 403, 503),
    ),
    Route(
        "GET",
        "/api/sync/integrations/status",
        statuses,
        JOBS,
        "How every integration is doing",
        needs="jobs:read",
        answers={200: Statuses},
        errors=(400, 401, 403, 503),
    ),
    Route(
        "GET",
        "/api/sync/integrations",
        list_,
        JOBS,
        "List integrations",
        needs="jobs:read",
        answers={200: Listing},
        errors=(400, 401, 403, 503),
    ),
    Route(
        "POST",
        "/api/sync/integrations",
        create,
        JOBS,
        "Create an integration",
        needs="jobs:write",
        body=Create,
        answers={200: Integration},
        errors=_WRITE,
    ),
    Route(
        "GET",
        _ONE,
        show,
        JOBS,
        "One integration",
        needs="jobs:read",
        answers={200: Integration},
        errors=_READ,
    ),
    Route(
        "PUT",
        _ONE,
        change,
        JOBS,
        "Change an integration",
        needs="jobs:write",
        body=Change,
        answers={200: Integration},
        errors=_WRITE,
    ),
    Route(
        "DELETE",
        _ONE,
        delete,
        JOBS,
        "Delete an integration; its jobs are stopped and stay listed",
        needs="jobs:write",
        answers={200: Deleted},
        errors=_WRITE,
    ),
    Route(
        "POST",
        _ONE + "/start",
        start,
        JOBS,
        "Turn the schedule on, and sync at once unless told otherwise",
        needs="jobs:write",
        body=Start,
        body_required=False,
        answers={200: Started},
        errors=_WRITE,
    ),
    Route(
        "POST",
        _ONE + "/stop",
        stop,
        JOBS,
        "Turn the schedule off and stop what runs",
        needs="jobs:write",
        answers={200: Stopped},
        errors=_WRITE,
    ),
)
