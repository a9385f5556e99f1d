"""The servers of this node: what each is configured to be, and what its process does."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from domain import messages, servers
from domain.server_config import Configuration
from projections.table import Connection, Database, Key, Table

NAME = "servers"
GENERATION = 1
CONTEXTS = ("servers",)
SCHEMA = f"rm_{NAME}_{GENERATION}"


class Row(Struct, frozen=True):
    """`configuration` is JSON of domain.server_config.Configuration, with references in place of secrets;
    `exit_code` is how its process ended last, and `asked` what was wished of it last."""

    tenant: str
    uuid: str
    configuration: str
    suspended: bool
    added_at: datetime
    changed_at: datetime
    position: int
    power: str = "offline"
    pid: int | None = None
    started: int | None = None
    power_at: datetime | None = None
    exit_code: int | None = None
    asked: str | None = None

    def doing(self) -> servers.Power:
        power: servers.Power = msgspec.convert(self.power, servers.Power)
        return power

    def configured(self) -> Configuration:
        return msgspec.json.decode(self.configuration, type=Configuration)


TABLE = Table("servers", Row, ("tenant", "uuid"))


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, fold)


def _key(recorded: messages.Recorded) -> Key:
    return recorded.tenant, recorded.id


def fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    """A server as it is after an event, None once it is deleted. Raises LookupError for one that cannot come then."""
    event, at = recorded.event, recorded.recorded_at
    if isinstance(event, servers.Added):
        one = event.configuration
        return Row(recorded.tenant, recorded.id, _json(one), one.suspended, at, at, recorded.position)
    if row is None:
        raise LookupError(f"{recorded.topic} of a server that was never added")
    row = replace(row, position=recorded.position)
    match event:
        case servers.Deleted():
            return None
        case servers.PowerChanged():
            code = event.exit_code if event.exit_code is not None else row.exit_code
            return replace(row, power=event.power, pid=event.pid, started=event.started, power_at=at, exit_code=code)
        case servers.PowerAsked():
            return replace(row, asked=event.action)
        case servers.Crashed() | servers.StartFailed():
            return row
        case servers.RolledBack() | servers.TokensDenied() | servers.UserDeauthorized():
            return row
        case _ if isinstance(event, servers.Event):
            state = servers.evolve(servers.Server(configuration=row.configured()), event)
            assert state.configuration is not None
            one = state.configuration
            return replace(row, configuration=_json(one), suspended=one.suspended, changed_at=at)
        case _:
            raise LookupError(f"{recorded.topic} is not an event of a server")


def _json(one: Configuration) -> str:
    return msgspec.json.encode(one).decode()


async def get(database: Database, tenant: str, uuid: str) -> Row | None:
    row = await database.fetchrow(f"select * from {SCHEMA}.servers where tenant = $1 and uuid = $2", tenant, uuid)
    return None if row is None else TABLE.parse(row)


async def list_(database: Database, tenant: str) -> list[Row]:
    """All of them, the oldest first."""
    rows = await database.fetch(f"select * from {SCHEMA}.servers where tenant = $1 order by added_at, uuid", tenant)
    return [TABLE.parse(row) for row in rows]
