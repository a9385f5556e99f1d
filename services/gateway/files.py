"""File synchronization as the EonaCat document has it: the result in the response, a plan on request."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from domain import errors, jobs, kinds, messages
from domain.plans import files
from infra.eventstore.store import Done
from services import roots
from services.asks import Ask
from services.gateway import headers, sessions_attach
from services.gateway.dialects import EONACAT, Reply, Timestamp, timestamp_s
from services.gateway.routes import Call, Parameter, Route

Folder = Annotated[str, Meta(min_length=1, max_length=4096, extra_json_schema={"pattern": "^/"})]


class Request(Struct, rename="camel"):
    """`force` (ours) carries out what a deletion guard would hold."""

    source_directory: Folder
    target_directory: Folder
    delete_missing_in_target: bool = False
    verify_integrity: bool = True
    exclude_patterns: list[str] = []
    force: bool = False


class SyncResponse(Struct, rename="camel"):
    success: bool
    changes_applied: int
    conflicts_encountered: int
    errors: list[str]
    synced_at: Timestamp
    execution_time_ms: int


class Accepted(Struct, rename="camel"):
    job_id: str
    status: str


class Action(Struct, rename="camel"):
    action: str
    path: str
    reason: str
    conflict: bool


class Plan(Struct, rename="camel"):
    """What would be done; `planHash` as `If-Match` applies exactly this. `actions` are the first of `actionCount`,
    `truncated` where there are more; `held` says why a guard would hold it; `errors` what could not be read."""

    plan_hash: str
    action_count: int
    created: int
    updated: int
    deleted: int
    conflicts: int
    bytes: int
    actions: list[Action]
    truncated: bool
    held: str | None
    errors: list[str]


def _spec(body: Request, plan: str | None) -> files.Spec:
    return files.Spec(
        source_directory=body.source_directory,
        target_directory=body.target_directory,
        delete_missing_in_target=body.delete_missing_in_target,
        verify_integrity=body.verify_integrity,
        exclude_patterns=tuple(body.exclude_patterns),
        force=body.force,
        plan_hash=plan,
    )


async def sync(call: Call) -> Any:
    body = await call.body(Request)
    prefer = headers.prefer(call.fields)
    spec = _spec(body, headers.if_match(call.fields))
    roots.check(call.api.process.settings, call.principal.roots, spec.source_directory, spec.target_directory)
    spec.scope()
    if prefer.plan:
        await sessions_attach.named(call)
        return await _plan(call, spec)
    done = await call.earlier(jobs)
    if done is None:
        if spec.plan_hash is not None:
            await _check_plan(call, spec)
        queued = _queued(call, spec, later=prefer.respond_async)
        done = await sessions_attach.queue(call, queued)
    if prefer.respond_async:
        return _accepted(call, done)
    return await _result(call, done)


def _queued(call: Call, spec: files.Spec, *, later: bool) -> jobs.Queued:
    ticket = jobs.Ticket(
        job=f"sync-job-{uuid.uuid4()}",
        kind="files",
        type="full_sync" if spec.verify_integrity else "incremental_sync",
        lane="later" if later else "now",
        target=kinds.target(spec.target_directory),
    )
    return jobs.Queued(
        ticket=ticket,
        spec=Raw(msgspec.json.encode(spec)),
        roots=call.principal.roots,
        waited=not later,
    )


async def _summary(call: Call, spec: files.Spec) -> files.Summary:
    process = call.api.process
    ask = Ask(spec=Raw(msgspec.json.encode(spec)), roots=call.principal.roots, tenant=call.tenant)
    answer = await process.bus.ask("files.plan", msgspec.json.encode(ask), process.settings.jobs.wait_s)
    return msgspec.json.decode(answer, type=files.Summary)


async def _plan(call: Call, spec: files.Spec) -> Reply:
    """An ask: it writes nothing, not even to the log."""
    found = await _summary(call, spec)
    return call.reply(msgspec.convert(found, Plan, from_attributes=True), await call.caught_up())


async def _check_plan(call: Call, spec: files.Spec) -> None:
    """Refuses a plan whose world has moved before anything is recorded; the worker looks again all the same."""
    try:
        found = await _summary(call, spec)
    except errors.Unavailable:  # without NATS only the worker looks
        return
    if found.plan_hash != spec.plan_hash:
        raise errors.PlanChanged(plan=found.plan_hash)


def _accepted(call: Call, done: Done) -> Reply:
    job = done.events[0].id
    extra = [(b"location", f"/api/sync/jobs/{job}".encode())]
    return call.reply(Accepted(job, "queued"), done.position, 202, extra)


async def _result(call: Call, done: Done) -> Reply:
    """From the job's own end, never from a read model; 202 when time is up or this process stops."""
    process = call.api.process
    stream = done.events[0].stream
    ended = await call.api.waits.ended(stream, process.settings.jobs.wait_s, process.stopping)
    if ended is None:
        return _accepted(call, done)
    call.api.reads.wrote(call.principal.actor, ended.position)
    match ended.event:
        case jobs.Completed() as event:
            result = msgspec.json.decode(event.result, type=files.Result)
            return call.reply(response(result, event, ended.recorded_at), ended.position)
        case jobs.Failed() as event:
            raise failure(event, ended)
        case _:
            raise errors.SyncFailed("The job was stopped", at=ended.recorded_at, position=ended.position)


def response(result: files.Result, event: jobs.Completed, at: datetime) -> SyncResponse:
    return SyncResponse(
        success=event.counters.errors == 0,
        changes_applied=result.changes_applied,
        conflicts_encountered=result.conflicts,
        errors=list(result.errors),
        synced_at=timestamp_s(at),
        execution_time_ms=event.duration_ms,
    )


_ERRORS = errors.catalogue()


def failure(event: jobs.Failed, ended: messages.Recorded) -> errors.Error:
    """The error that a job ended with, as it was raised where the work was done, and then."""
    details = {**event.details, "at": ended.recorded_at, "position": ended.position}
    return _ERRORS.get(event.code, errors.SyncFailed)(event.message, **details)


_PREFER = Parameter(
    "Prefer",
    {"type": "string", "examples": ["return=plan", "respond-async"]},
    "`return=plan` answers with the plan and changes nothing, `respond-async` does not wait for the result",
    where="header",
)
_IF_MATCH = Parameter(
    "If-Match",
    {"type": "string", "pattern": r'^(\*|"?[A-Za-z0-9:._-]{1,128}"?)$'},
    "the `planHash` of the only plan to carry out",
    where="header",
)

ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/v1/sync/files",
        sync,
        EONACAT,
        "Synchronize two folders; `Prefer: return=plan` answers with the plan, `If-Match: <planHash>` applies it",
        needs="files:write",
        query=(_PREFER, _IF_MATCH, sessions_attach.HEADER),
        body=Request,
        answers={200: (SyncResponse, Plan), 202: Accepted},
        errors=(400, 401, 403, 404, 409, 412, 413, 415, 422, 429, 500, 503, 507),
    ),
)
