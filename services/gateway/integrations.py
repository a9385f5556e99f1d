"""Integrations: what the Sync Management document starts and stops, and how they come, change and go."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import msgspec
import structlog
from msgspec import UNSET, Meta, Raw, Struct, UnsetType
from msgspec.structs import replace

from domain import answers, errors, integrations, jobs, kinds, messages
from infra.eventstore.store import Done, Wish
from infra.vault import Vault
from projections import integrations as integrations_read
from services import integrations as declarations
from services import roots, vaulted
from services.gateway import integrations_shapes as shapes
from services.gateway import jobs as job_routes
from services.gateway import sessions_attach
from services.gateway.integrations_shapes import Integration
from services.gateway.routes import Call

log = structlog.get_logger("gateway")

Name = Annotated[str, Meta(min_length=1, max_length=255)]
KINDS = sorted(name for name, kind in kinds.KINDS.items() if kind.config is not kinds.NoConfig)
Kind = Annotated[str, Meta(min_length=1, max_length=255, extra_json_schema={"enum": KINDS})]
Id = Annotated[str, Meta(extra_json_schema={"pattern": "^[a-z0-9][a-z0-9-]{0,63}$"})]
Seconds = Annotated[int, Meta(ge=1, le=integrations.INTERVAL_MAX)]


class Create(Struct, rename="camel"):
    """`syncInterval` is short for `schedule.every`."""

    name: Name
    kind: Kind
    config: dict[str, Any]
    id: Id | None = None
    sync_interval: Seconds | None = None
    schedule: declarations.StrictSchedule | None = None
    policy: declarations.StrictPolicy | None = None


class Change(Struct, rename="camel"):
    """What is left out stays; `syncInterval` alone leaves the rest of the schedule as it is, and null takes it away."""

    name: Name | UnsetType = UNSET
    config: dict[str, Any] | UnsetType = UNSET
    sync_interval: Seconds | UnsetType | None = UNSET
    schedule: declarations.StrictSchedule | UnsetType | None = UNSET
    policy: declarations.StrictPolicy | UnsetType | None = UNSET


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


async def create(call: Call) -> Any:
    body = await call.body(Create)
    checked = _check_config(call, body.kind, body.config)
    integrations.decide(_create_command(body, "i", Raw(b"{}")), integrations.initial)  # before anything is sealed
    done = await call.earlier(integrations)
    if done is None:
        done = await _create(call, body, checked)
    return call.reply(shapes.created(done.events[0]), done.position)


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
    # If it is not fresh, the append says so.
    return Wish(integrations, id, _create_command(body, id, config), fresh=True)


def _create_command(body: Create, id: str, config: Raw) -> integrations.Create:
    return integrations.Create(
        id=id,
        name=body.name,
        kind=body.kind,
        config=config,
        interval=body.sync_interval,
        schedule=declarations.schedule(body.schedule),
        policy=declarations.policy(body.policy),
    )


async def change(call: Call) -> Any:
    body = await call.body(Change)
    id = call.path("integration_id")
    stream = messages.stream(integrations.STREAM, call.tenant, id)
    done = await call.earlier(integrations, stream=stream)
    if done is None:
        before = (await call.api.process.store.load(integrations, stream)).state
        if before.name is None:
            raise errors.NotFound("There is no such integration", kind="integration")
        command = integrations.Change(
            name=body.name,
            interval=body.sync_interval,
            schedule=UNSET if body.schedule is UNSET else declarations.schedule(body.schedule),
            policy=UNSET if body.policy is UNSET else declarations.policy(body.policy),
        )
        integrations.decide(command, before)  # before anything is sealed
        if body.config is not UNSET:
            config = await _sealed(call, before.kind, id, body.config, before.config)
            command = replace(command, config=config)
        done = await call.execute([Wish(integrations, id, command)])
        await _forget(call, before, done.state)
    return call.reply(await _changed(call, id, stream, done), done.position)


async def _forget(call: Call, before: integrations.Integration, after: integrations.Integration) -> None:
    """Destroys the secrets that nothing refers to any more."""
    kept = set() if after.name is None else set(vaulted.references(after.kind, after.config))
    stale = [one for one in vaulted.references(before.kind, before.config) if one not in kept]
    if stale:
        await Vault(call.api.process.db, call.api.process.master).forget(call.tenant, stale)


async def _changed(call: Call, id: str, stream: str, done: Done) -> Integration:
    recorded = await call.api.process.store.stream(stream, until=done.position)
    created = next(one for one in reversed(recorded) if isinstance(one.event, integrations.Created))
    return shapes.changed(id, created.recorded_at, done.state)


async def delete(call: Call) -> Any:
    id = call.path("integration_id")
    done = await call.earlier(integrations, jobs)
    if done is None:
        stream = messages.stream(integrations.STREAM, call.tenant, id)
        before = (await call.api.process.store.load(integrations, stream)).state
        done = await job_routes.stop_open(call, id, Wish(integrations, id, integrations.Delete()))
        if before.name is not None:
            await _forget(call, before, integrations.initial)
    return call.reply(Deleted(True, id), done.position)


async def start(call: Call) -> Any:
    body = await call.optional_body(Start) or Start()
    id = call.path("integration_id")
    type = job_routes.job_type(body.sync_type)
    done = await call.earlier(integrations, jobs)
    if done is None:
        await call.caught_up(integrations.STREAM)
        started = Wish(integrations, id, integrations.Start())
        if body.schedule_immediate:
            queued = await job_routes.queue(call, id, type, kinds.Options())
            done = await sessions_attach.queue(call, queued, started)
        else:
            await sessions_attach.named(call)
            done = await call.execute([started])
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
    position = await declarations.declare(
        process.store, Vault(process.db, process.master), process.settings.integrations
    )
    call.api.reads.wrote(call.principal.actor, position)
    position = await call.caught_up()
    found = await integrations_read.list_(process.db, call.tenant)
    state = "running" if await process.leases.alive("scheduler") else "stopped"
    return Initialized(True, "Sync system initialized", state, len(found)), position
