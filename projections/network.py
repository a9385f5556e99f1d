"""What clients read about the RAIDA network: its users, and its servers with what a sync saw of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain import items, jobs, messages, network
from domain.plans import network as plan
from projections.table import Connection, Database, Key, Table

NAME = "network"
GENERATION = 1
CONTEXTS = ("items", "jobs", "network")
SCHEMA = f"rm_{NAME}_{GENERATION}"


class User(Struct, frozen=True):
    """`search` is what a query is looked for in, in lower case."""

    tenant: str
    id: str
    position: int
    serial_number: int
    name: str
    address: str
    user_class: str
    search: str


class Server(Struct, frozen=True):
    """One that the newest list lacks stays, not available; its type is the one it came with, as in the real client."""

    tenant: str
    id: str
    position: int
    server_index: int
    ip_address: str
    port: int
    server_type: str
    cost_per_mb: float
    cost_per_8_weeks: float
    percent_uptime: float
    performance_benchmark_percentile: float
    region: str | None
    description: str | None
    date_created: str | None
    available: bool = True


class Sighting(Struct, frozen=True):
    """`seen_at` is the last sync whose list had the server, `checked_at` the last that tried to connect. Syncs share
    this row; their positions make it the same in whatever order parked ones come back."""

    tenant: str
    id: str
    seen: int
    seen_at: datetime
    checked: int = 0
    ping_ms: int | None = None
    checked_at: datetime | None = None


class Parity(Struct, frozen=True):
    tenant: str
    server_id: str
    automatic: bool


USERS = Table("users", User, ("tenant", "id"), ("(tenant, serial_number)",))
SERVERS = Table("servers", Server, ("tenant", "id"))
SIGHTINGS = Table("sightings", Sighting, ("tenant", "id"))
PARITY = Table("parity", Parity, ("tenant",))


def ddl(schema: str) -> str:
    return ";\n".join(table.ddl(schema) for table in (USERS, SERVERS, SIGHTINGS, PARITY))


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await USERS.apply(connection, schema, events, lambda one: _key(one, "users"), _user)
    await SERVERS.apply(connection, schema, events, lambda one: _key(one, "servers"), _server)
    await PARITY.apply(connection, schema, events, _parity_key, _parity)
    for recorded in events:
        if _is_sync(recorded):
            await _sight(connection, schema, recorded)


def _key(recorded: messages.Recorded, entity: plan.List) -> Key | None:
    match recorded.event:
        case items.Created() | items.Updated() | items.Deleted() as event:
            ours = event.collection == network.NAME and event.entity == entity
            return (recorded.tenant, event.item) if ours else None
        case _:
            return None


def _user(row: User | None, recorded: messages.Recorded) -> User | None:
    event = recorded.event
    if not isinstance(event, items.Created | items.Updated):
        return None
    found = msgspec.json.decode(event.content)
    name = f"{found['first_name']} {found['last_name']}".strip()
    address = found["auto_address"]
    return User(
        tenant=recorded.tenant,
        id=event.item,
        position=recorded.position,
        serial_number=found["serial_number"],
        name=name,
        address=address,
        user_class=found["class"],
        search=f"{name}\n{address}".lower(),
    )


def _server(row: Server | None, recorded: messages.Recorded) -> Server | None:
    event = recorded.event
    if not isinstance(event, items.Created | items.Updated):
        return None if row is None else replace(row, available=False, position=recorded.position)
    found = msgspec.json.decode(event.content)
    del found["server_id"]
    if row is not None:
        found["server_type"] = row.server_type
    return Server(tenant=recorded.tenant, id=event.item, position=recorded.position, **found)


def _parity_key(recorded: messages.Recorded) -> Key | None:
    return (recorded.tenant,) if isinstance(recorded.event, network.ParityDesignated) else None


def _parity(row: Parity | None, recorded: messages.Recorded) -> Parity | None:
    assert isinstance(recorded.event, network.ParityDesignated)
    return Parity(recorded.tenant, recorded.event.server_id, recorded.event.automatic)


def _is_sync(recorded: messages.Recorded) -> bool:
    event = recorded.event
    return (
        isinstance(event, jobs.Completed)
        and event.ticket.kind == "network"
        and event.ticket.integration == network.NAME
    )


async def _sight(connection: Connection, schema: str, recorded: messages.Recorded) -> None:
    assert isinstance(recorded.event, jobs.Completed)
    servers = msgspec.json.decode(recorded.event.result, type=plan.Result).servers
    later = "excluded.checked > s.checked"
    await connection.execute(
        f"insert into {schema}.sightings as s (tenant, id, seen, seen_at, checked, ping_ms, checked_at)"
        " select $1, id, $2::bigint, $3::timestamptz, case when tried then $2::bigint else 0 end, ping,"
        " case when tried then $3::timestamptz end"
        " from unnest($4::text[], $5::bigint[], $6::boolean[]) as one(id, ping, tried)"
        " on conflict (tenant, id) do update set"
        " seen = greatest(s.seen, excluded.seen), seen_at = greatest(s.seen_at, excluded.seen_at),"
        " checked = greatest(s.checked, excluded.checked),"
        f" ping_ms = case when {later} then excluded.ping_ms else s.ping_ms end,"
        f" checked_at = case when {later} then excluded.checked_at else s.checked_at end",
        recorded.tenant,
        recorded.position,
        recorded.recorded_at,
        [one.server_id for one in servers],
        [one.ping_ms for one in servers],
        [one.checked for one in servers],
    )


# Queries.


class Seen(Struct, frozen=True):
    """A server with all there is to know of it."""

    server: Server
    use_for_parity: bool
    seen_at: datetime | None
    ping_ms: int | None
    checked_at: datetime | None


_SEEN = (
    f"select s.*, p.server_id is not null as parity, g.seen_at, g.ping_ms, g.checked_at from {SCHEMA}.servers s"
    f" left join {SCHEMA}.sightings g using (tenant, id)"
    f" left join {SCHEMA}.parity p on p.tenant = s.tenant and p.server_id = s.id where s.tenant = $1"
)


async def servers(database: Database, tenant: str, *, unavailable: bool) -> list[Seen]:
    """By index; those that the newest list lacks only with `unavailable`."""
    rows = await database.fetch(f"{_SEEN} and (s.available or $2) order by s.server_index, s.id", tenant, unavailable)
    return [_seen(row) for row in rows]


async def parity(database: Database, tenant: str) -> Seen | None:
    """The designated server, also when it is not available."""
    row = await database.fetchrow(f"{_SEEN} and p.server_id is not null", tenant)
    return None if row is None else _seen(row)


def _seen(row: Any) -> Seen:
    values = dict(row)
    more = {name: values.pop(name) for name in ("seen_at", "ping_ms", "checked_at")}
    return Seen(use_for_parity=values.pop("parity"), server=Server(**values), **more)


async def search(database: Database, tenant: str, text: str, limit: int) -> list[User]:
    """Users whose name or address holds a text, in whatever case, by serial number."""
    pattern = text.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    rows = await database.fetch(
        f"select * from {SCHEMA}.users where tenant = $1 and search like $2 order by serial_number, id limit $3",
        tenant,
        f"%{pattern}%",
        limit,
    )
    return [USERS.parse(row) for row in rows]
