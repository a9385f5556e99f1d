"""The RAIDA network as the QMail document has it: one call that brings users and servers, and what it brought."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from domain import errors, items, jobs, messages, network
from domain.plans import network as plan
from infra.eventstore.store import Wish
from infra.vault import Vault
from projections import network as network_read
from services import integrations as declarations
from services import network as runs
from services.gateway import bodies, headers, sessions_attach
from services.gateway.dialects import NETWORK, Reply, Timestamp, timestamp_ms
from services.gateway.routes import Call, Parameter, Route

LIMIT = 20
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}

Id = Annotated[str, Meta(min_length=1, max_length=64)]


class Synced(Struct):
    """`users_synced` and the others count the distinct records of the accepted lists, changed or not."""

    status: str
    users_synced: int
    servers_synced: int
    timestamp: Timestamp
    raida_servers_synced: int


class Accepted(Struct):
    status: str
    job_id: str


class Server(Struct):
    """`address` and `ip_address` are the same; times and `ping_ms` are null before there are any."""

    server_id: str
    server_index: int
    address: str
    ip_address: str
    port: int
    server_type: str
    cost_per_mb: float
    cost_per_8_weeks: float
    ping_ms: int | None
    percent_uptime: int | float
    performance_benchmark_percentile: int | float
    is_available: bool
    use_for_parity: bool
    last_checked: Timestamp | None
    last_seen: Timestamp | None
    region: str | None
    description: str | None
    date_created: str | None


class Servers(Struct):
    servers: list[Server]
    count: int
    include_unavailable: bool


class User(Struct):
    name: str
    email: str
    serial_number: int
    user_class: str = msgspec.field(name="class")


class Users(Struct):
    query: str
    users: list[User]
    count: int


class ParityServer(Struct):
    server_id: str
    server_index: int
    ip_address: str
    port: int
    server_type: str
    ping_ms: int | None
    is_available: bool


class Parity(Struct):
    """`status` is configured or not_configured."""

    status: str
    parity_server: ParityServer | None
    message: str | msgspec.UnsetType = msgspec.UNSET


class Designate(Struct):
    server_id: Id


class Designated(Struct):
    status: str
    server_id: str
    message: str


# The sync.


class Desk:
    """Where requests for a run come in: one at a time looks whether there is one to join."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def sync(self, call: Call) -> Any:
        call.raw = await bodies.ignored(call.scope, call.receive)
        prefer, plan_hash = headers.prefer(call.fields), headers.if_match(call.fields)
        async with self._lock:
            run = await self._join_or_queue(call, plan_hash, waits=not prefer.respond_async)
        if prefer.respond_async:
            job = run.stream.rpartition("/")[2]
            extra = [(b"location", f"/api/sync/jobs/{job}".encode())]
            return call.reply(Accepted("accepted", job), run.position, 202, extra)
        return _answer(call, await _end(call, run))

    async def _join_or_queue(self, call: Call, asked: str | None, *, waits: bool) -> runs.Run:
        process = call.api.process
        earlier = await call.earlier(jobs)
        if earlier is not None:
            return runs.Run(earlier.events[0].stream, earlier.position)
        found = await runs.under_way(process.db, process.store, call.tenant) if asked is None else None
        if found is not None:
            await sessions_attach.named(call)
            return found
        await declarations.declare(process.store, Vault(process.db, process.master), process.settings.integrations)
        deadline = datetime.now(UTC) + timedelta(seconds=process.settings.network.wait_s) if waits else None
        run = await runs.queued(process.store, call.tenant, plan=asked, waited=waits, deadline=deadline)
        done = await sessions_attach.queue(call, run)
        return runs.Run(done.events[0].stream, done.position)


async def _end(call: Call, run: runs.Run) -> messages.Recorded:
    """How the run ended; one that does not in time, or while this process lives, is called off."""
    process, waits = call.api.process, call.api.waits
    ended = await waits.rested(*run, process.settings.network.wait_s, process.stopping)
    if ended is None:
        expire = Wish(jobs, run.stream.rpartition("/")[2], jobs.Expire())
        await process.store.execute_all([expire], tenant=call.tenant, metadata=call.metadata())
        ended = await waits.rested(*run, 0, process.stopping)
    if ended is None:
        raise errors.SyncFailed("The run has neither ended nor could it be called off")
    call.api.reads.wrote(call.principal.actor, ended.position)
    return ended


def _answer(call: Call, ended: messages.Recorded) -> Reply:
    """From the end of the run itself, never from a read model. Raises errors.SyncFailed, errors.PlanChanged."""
    position, event = {"position": ended.position}, ended.event
    match event:
        case jobs.Completed():
            found = msgspec.json.decode(event.result, type=plan.Result)
            synced = Synced(
                "success",
                found.users_synced,
                found.servers_synced,
                timestamp_ms(ended.recorded_at),
                found.raida_servers_synced,
            )
            return call.reply(synced, ended.position)
        case jobs.Held():
            raise errors.SyncFailed(event.reason, **{**event.details, "plan": event.plan, **position})
        case jobs.Failed() if event.code == errors.PlanChanged.code:
            raise errors.PlanChanged(event.message, **{**event.details, **position})
        case jobs.Failed():
            raise errors.SyncFailed(event.message, **{**event.details, **position})
        case jobs.Paused():  # a scheduled run that was joined; it will be tried again
            raise errors.SyncFailed(event.reason, **position)
        case jobs.Stopped(reason="deadline"):
            raise errors.SyncFailed("The network took too long; nothing was changed", **position)
        case _:
            raise errors.SyncFailed("The run was stopped; nothing was changed", **position)


# What it brought.


def _shape(seen: network_read.Seen) -> Server:
    one = seen.server
    return Server(
        server_id=one.id,
        server_index=one.server_index,
        address=one.ip_address,
        ip_address=one.ip_address,
        port=one.port,
        server_type=one.server_type,
        cost_per_mb=one.cost_per_mb,
        cost_per_8_weeks=one.cost_per_8_weeks,
        ping_ms=seen.ping_ms,
        percent_uptime=_plain(one.percent_uptime),
        performance_benchmark_percentile=_plain(one.performance_benchmark_percentile),
        is_available=one.available,
        use_for_parity=seen.use_for_parity,
        last_checked=None if seen.checked_at is None else timestamp_ms(seen.checked_at),
        last_seen=None if seen.seen_at is None else timestamp_ms(seen.seen_at),
        region=one.region,
        description=one.description,
        date_created=one.date_created,
    )


def _plain(value: float) -> int | float:
    """A whole number without its fraction."""
    return int(value) if value == int(value) else value


async def servers(call: Call) -> Any:
    said = call.query().get("include_unavailable", "false").lower()
    if said not in _BOOLEANS:
        raise errors.Invalid("Expected `bool` - at query `include_unavailable`")
    unavailable = _BOOLEANS[said]
    position = await call.caught_up()
    found = await network_read.servers(call.api.process.db, call.tenant, unavailable=unavailable)
    return call.reply(Servers([_shape(one) for one in found], len(found), unavailable), position)


async def search(call: Call) -> Any:
    query = call.query().get("q", "").strip()
    if not query:
        raise errors.Invalid("Missing query")
    position = await call.caught_up()
    found = await network_read.search(call.api.process.db, call.tenant, query, LIMIT)
    users = [User(one.name, one.address, one.serial_number, one.user_class) for one in found]
    return call.reply(Users(query, users, len(users)), position)


async def parity(call: Call) -> Any:
    position = await call.caught_up()
    seen = await network_read.parity(call.api.process.db, call.tenant)
    if seen is None:
        return call.reply(Parity("not_configured", None, "No parity server is designated"), position)
    one = seen.server
    shown = ParityServer(
        one.id, one.server_index, one.ip_address, one.port, one.server_type, seen.ping_ms, one.available
    )
    return call.reply(Parity("configured", shown), position)


async def designate(call: Call) -> Any:
    body = await call.body(Designate)
    done = await call.earlier(network)
    if done is None:
        item = items.stream_id(network.NAME, "servers", body.server_id)
        found = await call.api.process.store.load(items, messages.stream(items.STREAM, call.tenant, item))
        if not found.version:
            raise errors.NotFound("There is no such server", kind="server")
        done = await call.execute([Wish(network, network.NAME, network.Designate(body.server_id))])
    text = f"{body.server_id} is the parity server"
    return call.reply(Designated("success", body.server_id, text), done.position)


_IF_MATCH = Parameter(
    "If-Match",
    {"type": "string", "pattern": r'^(\*|"?[A-Za-z0-9:._-]{1,128}"?)$'},
    "the hash of the only plan to carry out, where a guard held it",
    where="header",
)
_PREFER = Parameter(
    "Prefer", {"type": "string", "examples": ["respond-async"]}, "`respond-async` does not wait", where="header"
)
_READ = (400, 401, 403, 503)


def routes() -> Sequence[Route]:
    desk = Desk()
    return (
        Route(
            "POST",
            "/api/admin/sync",
            desk.sync,
            NETWORK,
            "Bring users and servers from the RAIDA network; who comes while that goes on gets the same answer",
            needs="network:write",
            query=(_IF_MATCH, _PREFER, sessions_attach.HEADER),
            answers={200: Synced, 202: Accepted},
            errors=(400, 401, 403, 404, 409, 412, 413, 422, 500, 503),
        ),
        Route(
            "GET",
            "/api/data/servers",
            servers,
            NETWORK,
            "The network's servers",
            needs="network:read",
            query=(Parameter("include_unavailable", {"type": "boolean", "default": False}),),
            answers={200: Servers},
            errors=_READ,
        ),
        Route(
            "GET",
            "/api/data/users/search",
            search,
            NETWORK,
            f"Up to {LIMIT} users by name or address",
            needs="network:read",
            query=(Parameter("q", {"type": "string", "minLength": 1}, required=True),),
            answers={200: Users},
            errors=_READ,
        ),
        Route(
            "GET",
            "/api/admin/servers/parity",
            parity,
            NETWORK,
            "The server that keeps the parity",
            needs="network:read",
            answers={200: Parity},
            errors=_READ,
        ),
        Route(
            "POST",
            "/api/admin/servers/parity",
            designate,
            NETWORK,
            "Designate the server that keeps the parity",
            needs="network:write",
            body=Designate,
            answers={200: Designated},
            errors=(400, 401, 403, 404, 413, 415, 422, 503),
        ),
    )
