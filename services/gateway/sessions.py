"""Sync sessions of the EonaCat document: start, status, complete; and ours beside them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Raw

from domain import errors, jobs, kinds, locations, messages, sessions, uploads
from infra import secrets
from infra.eventstore.store import Done, Wish
from projections import sessions as sessions_read
from projections.sessions import Row, Work
from services import integrations, roots
from services import sessions as services
from services.gateway import as_of, auth, bodies, headers, sessions_shapes
from services.gateway.as_of import AS_OF, Moment
from services.gateway.dialects import EONACAT, timestamp_s
from services.gateway.routes import Call, Parameter, Route
from services.gateway.sessions_attach import check_id, turn
from services.gateway.sessions_shapes import Detail, Lease, Listing, Start, Started, Status

LIMIT, LIMIT_MAX = 20, 100
_TYPES: dict[sessions.SyncType, jobs.Type] = {
    "Full": "full_sync",
    "Incremental": "incremental_sync",
    "Differential": "incremental_sync",
}
_TRIES = 5
_BASE = "/api/v1/sync/session"


# Starting.


async def start(call: Call) -> Any:
    body = await call.body(Start)
    sync_type = sessions.sync_type(body.sync_type)
    source, target = _location(call, body.source_location), _location(call, body.target_location)
    queued = _job(call, source, target, sync_type)
    done = await call.earlier(sessions)
    if done is None:
        id = f"session-{uuid.uuid4()}"
        if queued is not None:
            queued = msgspec.structs.replace(queued, session=id)
        job = None if queued is None else queued.ticket.job
        kept = _kept(call, source, body.source_location), _kept(call, target, body.target_location)
        wishes = [Wish(sessions, id, sessions.Start(*kept, sync_type, job), fresh=True)]
        if queued is not None:
            wishes.append(Wish(jobs, queued.ticket.job, jobs.Queue(queued), fresh=True))
        done = await call.execute(wishes)
    return call.reply(_started(done.events), done.position)


def _location(call: Call, text: str) -> locations.Location:
    """Raises errors.Invalid, errors.Forbidden for a connection string of somebody who may not use one."""
    found = locations.parse(text)
    if found.kind == "secret":
        auth.require(call.principal, "databases:raw")
    return found


def _kept(call: Call, found: locations.Location, text: str) -> sessions.Location:
    if found.kind != "secret":
        return sessions.Location(found.shown)
    digest = secrets.derive(call.api.process.master, "session location", call.tenant, text)
    return sessions.Location(found.shown, digest.hex())


def _job(
    call: Call, source: locations.Location, target: locations.Location, sync_type: sessions.SyncType
) -> jobs.Queued | None:
    """The job between two folders; None where clients do the work.

    Raises errors.Forbidden outside the roots or without the scope, errors.Invalid for two connections.
    """
    if (source.kind, target.kind) == ("connection", "connection"):
        raise errors.Invalid("Databases cannot be synchronized by this version; folders under a root can")
    if (source.kind, target.kind) != ("folder", "folder"):
        return None
    auth.require(call.principal, "files:write")
    roots.check(call.api.process.settings, call.principal.roots, source.shown, target.shown)
    config = kinds.FilesConfig(source.shown, target.shown)
    found = kinds.kind("files")
    spec = found.make(config, _TYPES[sync_type], kinds.Options())
    ticket = jobs.Ticket(
        job=integrations.new_id(),
        kind="files",
        type=_TYPES[sync_type],
        lane="later",
        target=found.target(spec),
    )
    return jobs.Queued(ticket=ticket, spec=Raw(msgspec.json.encode(spec)), roots=call.principal.roots)


def _started(events: Sequence[messages.Recorded]) -> Started:
    first = events[0]
    assert isinstance(first.event, sessions.Started)
    job = next((one.event.item for one in events if isinstance(one.event, sessions.Attached)), None)
    at = timestamp_s(first.recorded_at)
    return Started(first.id, at, first.event.source.text, first.event.target.text, job)


# Looking.


async def _find(call: Call) -> tuple[Row, list[Work], int]:
    """The session of the path with its work, and the position of both. Raises errors.NotFound."""
    id, database = check_id(call.path("sync_session_id")), call.api.process.db
    position = await call.caught_up()
    row = await sessions_read.get(database, call.tenant, id)
    if row is None:
        raise errors.NotFound("There is no such session", kind="session")
    return row, await sessions_read.work(database, call.tenant, id), position


async def _progress(call: Call, row: Row, work: Sequence[Work]) -> tuple[int, datetime | None]:
    """How far an open session is, never less than anybody was told before; and until when its lease is good now."""
    if row.completed_at is not None:
        return row.progress, None
    process = call.api.process
    far = services.progress(await services.refined(process.db, work))
    named_at, progress = await services.name(process.db, row.tenant, row.id, far)
    return progress, named_at + timedelta(seconds=process.settings.sessions.lease_s)


async def status(call: Call) -> Any:
    row, work, position = await _find(call)
    progress, _ = await _progress(call, row, work)
    return call.reply(sessions_shapes.status(row, work, progress), position)


async def show(call: Call) -> Any:
    """With `as_of` as it was then; its lease, and progress finer than that of events, are of the present only."""
    if (moment := await as_of.wanted(call)) is not None:
        return call.reply(await _was(call, moment), moment.position)
    row, work, position = await _find(call)
    progress, expires = await _progress(call, row, work)
    now = row.sums or services.totals(work)
    return call.reply(sessions_shapes.detail(row, work, progress, now, expires), position)


async def _was(call: Call, moment: Moment) -> Detail:
    store, id = call.api.process.store, check_id(call.path("sync_session_id"))
    recorded = await store.stream(messages.stream(sessions.STREAM, call.tenant, id), until=moment.position)
    row = as_of.folded(recorded, sessions_read.fold)
    if row is None:
        raise errors.NotFound("There was no such session then", kind="session")
    work = []
    for one in recorded:
        if isinstance(one.event, sessions.Attached):
            context = jobs.STREAM if one.event.kind == "job" else uploads.STREAM
            stream = messages.stream(context, call.tenant, one.event.item)
            found = as_of.folded(await store.stream(stream, until=moment.position), sessions_read.fold_work)
            work += [] if found is None else [found]
    return sessions_shapes.detail(row, work, services.progress(work), row.sums or services.totals(work), None)


async def list_(call: Call) -> Any:
    """Names none of them, so it renews no lease."""
    query = call.query()
    wanted = query.get("status")
    if wanted is not None and wanted not in sessions.STATUSES:
        raise errors.Invalid(f"Unknown status; there are {', '.join(sessions.STATUSES)}")
    limit = bodies.integer(query, "limit", LIMIT, 1, LIMIT_MAX)
    offset = bodies.integer(query, "offset", 0, 0, 2**31)
    position = await call.caught_up()
    database = call.api.process.db
    rows, total = await sessions_read.list_(database, call.tenant, wanted, limit, offset)
    shown = []
    for row in rows:
        work = [] if row.completed_at else await sessions_read.work(database, call.tenant, row.id)
        far = max(services.progress(work), await services.told(database, row.tenant, row.id)) if work else 0
        shown.append(sessions_shapes.summary(row, work, far))
    return call.reply(Listing(shown, total), position)


async def heartbeat(call: Call) -> Any:
    """Keeps a session alive. What has ended cannot be."""
    row, work, position = await _find(call)
    _, expires = await _progress(call, row, work)
    if expires is None:
        raise errors.Ended(f"The session is {row.status}")
    return call.reply(Lease(row.id, timestamp_s(expires)), position)


# Ending.


async def complete(call: Call) -> Any:
    """Waits for the session's jobs, and says what they came to; 202 where they take longer, or wait for somebody: then
    the session completes when they have ended. With `Prefer: respond-async` it does not wait."""
    call.raw = await bodies.ignored(call.scope, call.receive)
    id, process = check_id(call.path("sync_session_id")), call.api.process
    wait_s = 0.0 if headers.prefer(call.fields).respond_async else process.settings.jobs.wait_s
    async with turn(call, id):
        done = await call.execute([Wish(sessions, id, sessions.RequestCompletion())])
    position = await _settled(call, id, done.position, wait_s)
    row, work = await _from_log(call, id), await sessions_read.work(process.db, call.tenant, id)
    call.api.reads.wrote(call.principal.actor, position, sessions.STREAM)
    progress, _ = await _progress(call, row, work)
    shown = sessions_shapes.status(row, work, progress)
    if row.completed_at is not None:
        return call.reply(shown, position)
    return call.reply(shown, position, 202, [(b"location", f"{_BASE}/{id}/status".encode())])


async def _from_log(call: Call, id: str) -> Row:
    row: Row | None = None
    for recorded in await call.api.process.store.stream(messages.stream(sessions.STREAM, call.tenant, id)):
        row = sessions_read.fold(row, recorded)
    assert row is not None
    return row


async def _settled(call: Call, id: str, position: int, wait_s: float) -> int:
    """Waits until a session whose completion was asked for has ended, as long as may be; answers the last position."""
    process, loop = call.api.process, asyncio.get_running_loop()
    deadline = loop.time() + wait_s
    # Somebody may just have said what a job waited for.
    await call.api.reads.reached(await process.store.head(), process.settings.gateway.read_wait_s)
    while True:
        # Only a read model that has seen everything that was attached can tell that all of it has ended.
        if not await call.api.reads.reached(position, process.settings.gateway.read_wait_s):
            raise errors.Unavailable("The session is not seen yet; say it again", retry_after=1)
        row = await sessions_read.get(process.db, call.tenant, id)
        if row is None:
            raise errors.Unavailable("The read models cannot show the session")
        if row.completed_at is not None:
            return max(position, row.position)
        done = await services.finish(process, row)
        if done is not None:
            return max(position, done.position)
        rested = await _rested(call, row, deadline - loop.time())
        if rested is None:
            return position
        position = max(position, rested)


async def _rested(call: Call, row: Row, left_s: float) -> int | None:
    """Waits until none of a session's jobs runs or waits for its turn; answers the position of the last to rest, None
    when time is up, this process stops, or one waits for somebody who may never come."""
    process, waits = call.api.process, call.api.waits
    work = await sessions_read.work(process.db, row.tenant, row.id)
    mine = [one for one in work if one.is_job and one.is_open]
    if left_s <= 0 or any(one.rests for one in mine):
        return None
    streams = [(messages.stream(jobs.STREAM, row.tenant, one.id), one.position) for one in mine]
    found = await asyncio.gather(*(waits.rested(stream, after, left_s, process.stopping) for stream, after in streams))
    if any(one is None for one in found):
        return None
    return max((one.position for one in found if one is not None), default=0)


async def cancel(call: Call) -> Any:
    """Ends a session without completing it, and stops its jobs."""
    call.raw = await bodies.ignored(call.scope, call.receive)
    id = check_id(call.path("sync_session_id"))
    stream = messages.stream(sessions.STREAM, call.tenant, id)
    done = await call.earlier(sessions, jobs, stream=stream) or await _cancelled(call, id)
    row = await _from_log(call, id)
    return call.reply(sessions_shapes.status(row, (), row.progress), done.position)


async def _cancelled(call: Call, id: str) -> Done:
    """Raises errors.Conflict where things are attached faster than can be told what there is to stop."""
    process = call.api.process
    for _ in range(_TRIES):
        if not await call.api.reads.reached(await process.store.head(), process.settings.gateway.read_wait_s):
            raise errors.Unavailable("The session is not seen yet; say it again", retry_after=1)
        row, work, _ = await _find(call)
        far = max(services.progress(work), await services.told(process.db, call.tenant, id))
        wishes = [Wish(sessions, id, sessions.Cancel(services.totals(work), far, row.attached))]
        wishes += [Wish(jobs, one.id, jobs.Stop(open_only=not one.rests)) for one in work if one.is_job and one.is_open]
        try:
            async with turn(call, id):
                return await call.execute(wishes)
        except errors.Conflict:  # something was attached, or came to its end, meanwhile
            continue
    raise errors.Conflict()


_READ = (400, 401, 403, 404, 429, 503)
_WRITE = (400, 401, 403, 404, 409, 413, 415, 422, 429, 503, 507)
_ONE = _BASE + "/{sync_session_id:str}"
_PREFER = Parameter("Prefer", {"type": "string"}, "`respond-async` does not wait for its jobs", where="header")

ROUTES: Sequence[Route] = (
    Route(
        "GET",
        _BASE,
        list_,
        EONACAT,
        "List sync sessions, the newest first",
        needs="sessions:read",
        query=(
            Parameter("status", {"type": "string", "enum": list(sessions.STATUSES)}),
            Parameter("limit", {"type": "integer", "default": LIMIT}, f"clamped to 1..{LIMIT_MAX}"),
            Parameter("offset", {"type": "integer", "default": 0}, "how many to leave out"),
        ),
        answers={200: Listing},
        errors=(400, 401, 403, 429, 503),
    ),
    Route(
        "POST",
        _BASE + "/start",
        start,
        EONACAT,
        "Start a sync session; between two folders a job of ours does the work",
        needs="sessions:write",
        body=Start,
        answers={200: Started},
        errors=_WRITE,
    ),
    Route(
        "GET",
        _ONE,
        show,
        EONACAT,
        "One sync session with its jobs and uploads",
        needs="sessions:read",
        query=(AS_OF,),
        answers={200: Detail},
        errors=_READ,
    ),
    Route(
        "GET",
        _ONE + "/status",
        status,
        EONACAT,
        "How far a sync session is",
        needs="sessions:read",
        answers={200: Status},
        errors=_READ,
    ),
    Route(
        "POST",
        _ONE + "/heartbeat",
        heartbeat,
        EONACAT,
        "Keep a sync session alive",
        needs="sessions:write",
        answers={200: Lease},
        errors=_WRITE,
    ),
    Route(
        "POST",
        _ONE + "/complete",
        complete,
        EONACAT,
        "Complete a sync session; waits for its jobs",
        needs="sessions:write",
        query=(_PREFER,),
        answers={200: Status, 202: Status},
        errors=_WRITE,
    ),
    Route(
        "POST",
        _ONE + "/cancel",
        cancel,
        EONACAT,
        "Cancel a sync session and stop its jobs",
        needs="sessions:write",
        answers={200: Status},
        errors=_WRITE,
    ),
)
