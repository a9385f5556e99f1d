"""Servers of this node as the Wings document has them: the Panel tells us to look, and asks what we have."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct
from nats.aio.msg import Msg

from domain import errors, jobs, messages, server_config, servers
from domain.plans import servers as plan
from infra import subjects
from infra.bus import Bus
from infra.eventstore.store import Wish
from infra.wings import VERSION
from projections import servers as read
from services import servers as shared
from services.gateway import as_of, bodies, headers, power
from services.gateway.as_of import AS_OF
from services.gateway.dialects import WINGS, Reply
from services.gateway.routes import Call, Parameter, Route

#: How long those that held clients have to say how many a suspension has cut off.
_COUNT_S = 0.5
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_INVALID = b'{"error":"The data provided in the request could not be validated."}'

Uuid = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]


class Create(Struct):
    uuid: Uuid
    start_on_completion: bool = False


class RollBack(Struct):
    """`position` is of the log: the server is configured again as it was then, until the next sync."""

    position: Annotated[int, Meta(ge=1)]


class Deny(Struct):
    jtis: Annotated[list[Annotated[str, Meta(max_length=255)]], Meta(max_length=1000)]


class Deauthorize(Struct):
    """No servers: all of them. What is none of them does not matter."""

    user: Annotated[str, Meta(min_length=1, max_length=255)]
    servers: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=10_000)] = []


class Server(Struct):
    state: servers.Power
    is_suspended: bool
    utilization: shared.Utilization
    configuration: dict[str, Any]


class Synced(Struct):
    """What a sync changed, with `Prefer: return=representation`: each difference, and when it is felt. `clients_cut`
    are the websockets and SFTP sessions that a suspension by it has ended, as far as the processes that held them said
    so within half a second."""

    differences: list[plan.Difference]
    clients_cut: int = 0


class System(Struct):
    architecture: str
    cpu_count: int
    kernel_version: str
    os: str
    version: str


async def sync(call: Call) -> Any:
    """204 once the Panel's configuration is durable; after an error nothing was changed, nor will be."""
    call.raw = await bodies.ignored(call.scope, call.receive)
    prefer, uuid = headers.prefer(call.fields), call.path("server")
    await _known(call, uuid)
    if not prefer.representation:
        return Reply(204, b"", [headers.position((await _run(call, uuid)).position)])
    async with _counting(call.api.process.bus, uuid) as cut:
        ended = await _run(call, uuid)
        differences, suspended = await _differences(call, uuid, ended.position)
        if suspended is not None:
            await asyncio.sleep(_COUNT_S)
    clients = sum(one.clients for one in cut if one.position == suspended)
    return call.reply(Synced(differences, clients), ended.position)


async def create(call: Call) -> Any:
    """The Panel has made a server for this node: its configuration is brought, as a sync does."""
    body = await call.body(Create)
    if not _UUID.fullmatch(body.uuid):
        return Reply(422, _INVALID)
    ended = await _run(call, body.uuid)
    position = ended.position
    if body.start_on_completion:
        wish = Wish(servers, body.uuid, servers.Ask("start", "node"))
        done = await call.api.process.store.execute_all([wish], tenant=call.tenant, metadata=call.metadata())
        position = done.position
    call.api.reads.wrote(call.principal.actor, position)
    return Reply(202, b"", [headers.position(position)])


async def list_(call: Call) -> Any:
    position = await call.caught_up()
    rows = await read.list_(call.api.process.db, call.tenant)
    used = await power.utilizations(call.api.process.bus, rows)
    return call.reply([await _shown(call, row, used[row.uuid]) for row in rows], position)


async def get(call: Call) -> Any:
    """With `as_of` as it was then, but for what its process used."""
    uuid, process = call.path("server"), call.api.process
    moment = await as_of.wanted(call)
    if moment is not None:
        position = moment.position
        row = as_of.folded(await process.store.stream(shared.stream(uuid), until=position), read.fold)
    else:
        position = await call.caught_up()
        row = await read.get(process.db, call.tenant, uuid)
    if row is None:
        raise errors.NotFound("There is no such server", kind="server")
    used = (await power.utilizations(process.bus, [row] if moment is None else [])).get(uuid)
    return call.reply(await _shown(call, row, used or shared.still(row.doing(), row.configured())), position)


async def delete(call: Call) -> Any:
    call.raw = await bodies.ignored(call.scope, call.receive)
    done = await call.earlier(servers) or await call.execute([Wish(servers, call.path("server"), servers.Delete())])
    return Reply(204, b"", [headers.position(done.position)])


async def roll_back(call: Call) -> Any:
    """To the configuration of an earlier position, as an explicit command of somebody's."""
    body, uuid = await call.body(RollBack), call.path("server")
    done = await call.earlier(servers)
    if done is None:
        await _known(call, uuid)
        before = await call.api.process.store.load(servers, shared.stream(uuid), until=body.position)
        if before.state.configuration is None or body.position > await call.api.process.store.head():
            raise errors.Invalid("The server has no configuration at that position")
        wish = Wish(servers, uuid, servers.RollBack(before.state.configuration, body.position))
        done = await call.execute([wish])
    return call.reply(Synced((await _differences(call, uuid, done.position))[0]), done.position)


async def deny(call: Call) -> Any:
    """Tokens that the Panel has taken back: whoever came with one is cut off, and none opens anything again."""
    body, uuid = await call.body(Deny), call.path("server")
    await _known(call, uuid)
    done = await call.earlier(servers) or await call.execute(
        [Wish(servers, uuid, servers.DenyTokens(tuple(body.jtis)))]
    )
    return Reply(204, b"", [headers.position(done.position)])


async def deauthorize(call: Call) -> Any:
    """The same for whatever a user of the Panel's has open; servers that are not here need nothing."""
    body = await call.body(Deauthorize)
    done = await call.earlier(servers)
    if done is None:
        await call.caught_up()
        here = [row.uuid for row in await read.list_(call.api.process.db, call.tenant)]
        wanted = [uuid for uuid in here if not body.servers or uuid in body.servers]
        done = await call.execute([Wish(servers, uuid, servers.Deauthorize(body.user)) for uuid in wanted])
    return Reply(204, b"", [headers.position(done.position)])


async def system(call: Call) -> Any:
    found = platform.uname()
    shown = System(found.machine, os.cpu_count() or 1, found.release, found.system.lower(), VERSION)
    return call.reply(shown, await call.api.process.store.head())


# How a sync runs.


async def _run(call: Call, uuid: str) -> messages.Recorded:
    """The end of a job that was queued for this request, if it is a good one."""
    until = shared.deadline()
    done = await call.earlier(jobs) or await call.execute([shared.queue(uuid, until)])
    job = done.events[0].stream
    ended = await shared.synced(call.api.process, call.api.waits, job, until, call.metadata())
    call.api.reads.wrote(call.principal.actor, ended.position)
    return ended


async def _differences(call: Call, uuid: str, position: int) -> tuple[list[plan.Difference], int | None]:
    """Between the configuration at a position and that before the command which ended there; and where in the log it
    was suspended by that."""
    store, stream = call.api.process.store, shared.stream(uuid)
    recorded = await store.stream(stream, until=position)
    mine = [one for one in recorded if recorded and one.recorded_at == recorded[-1].recorded_at]
    if not mine or position - recorded[-1].position > 1:  # a job's end comes right behind what it brought
        return [], None
    after: servers.Server = (await store.load(servers, stream, until=position)).state
    before: servers.Server = (await store.load(servers, stream, until=mine[0].position - 1)).state
    assert after.configuration is not None
    found = plan.differences(None if before.deleted else before.configuration, after.configuration)
    return list(found), next((one.position for one in mine if isinstance(one.event, servers.Suspended)), None)


@asynccontextmanager
async def _counting(bus: Bus, uuid: str) -> AsyncIterator[list[shared.Cut]]:
    """What is said meanwhile of clients that were cut off."""
    found: list[shared.Cut] = []

    async def hear(message: Msg) -> None:
        with contextlib.suppress(msgspec.MsgspecError):
            found.append(msgspec.json.decode(message.data, type=shared.Cut))

    listener = await bus.subscribe(subjects.server(uuid, shared.CUT), hear)
    try:
        yield found
    finally:
        await listener.close()


# What is shown.


async def _known(call: Call, uuid: str) -> None:
    found: servers.Server = (await call.api.process.store.load(servers, shared.stream(uuid))).state
    if found.configuration is None or found.deleted:
        raise errors.NotFound("There is no such server", kind="server")


async def _shown(call: Call, row: read.Row, used: shared.Utilization) -> Server:
    """With its secrets: whoever has the node's token gave them to us."""
    one = await shared.clear(call.api.process, row.configured())
    return Server(row.doing(), row.suspended, used, server_config.shown(one))


_PREFER = Parameter(
    "Prefer",
    {"type": "string", "examples": ["return=representation"]},
    "`return=representation` answers with what was changed",
    where="header",
)
_READ = (401, 403, 404, 503)
_WRITE = (400, 401, 403, 404, 413, 422, 500, 503)

ROUTES: Sequence[Route] = (
    Route(
        "POST",
        "/api/servers/{server:str}/sync",
        sync,
        WINGS,
        "Bring the Panel's configuration of a server, and apply it",
        query=(_PREFER,),
        answers={200: Synced, 204: None},
        errors=_WRITE,
    ),
    Route(
        "POST",
        "/api/servers/{server:str}/rollback",
        roll_back,
        WINGS,
        "Return to the configuration that a server had at a position of the log",
        body=RollBack,
        answers={200: Synced},
        errors=(400, 401, 403, 404, 413, 415, 422, 503),
    ),
    Route(
        "POST",
        "/api/servers",
        create,
        WINGS,
        "Take over a server that the Panel has made for this node",
        body=Create,
        answers={202: None},
        errors=(*_WRITE, 415),
    ),
    Route("GET", "/api/servers", list_, WINGS, "All servers", answers={200: list[Server]}, errors=_READ),
    Route(
        "GET",
        "/api/servers/{server:str}",
        get,
        WINGS,
        "One server",
        query=(AS_OF,),
        answers={200: Server},
        errors=(400, *_READ),
    ),
    Route(
        "DELETE",
        "/api/servers/{server:str}",
        delete,
        WINGS,
        "Forget a server",
        answers={204: None},
        errors=(400, 401, 403, 404, 413, 422, 503),
    ),
    Route(
        "POST",
        "/api/servers/{server:str}/ws/deny",
        deny,
        WINGS,
        "Cut off whoever came with one of these tokens",
        body=Deny,
        answers={204: None},
        errors=(400, 401, 403, 404, 413, 415, 422, 503),
    ),
    Route(
        "POST",
        "/api/deauthorize-user",
        deauthorize,
        WINGS,
        "Cut off a user",
        body=Deauthorize,
        answers={204: None},
        errors=(400, 401, 403, 413, 415, 422, 503),
    ),
    Route(
        "GET",
        "/api/system",
        system,
        WINGS,
        "The machine",
        answers={200: System},
        errors=(401, 403, 503),
    ),
)
