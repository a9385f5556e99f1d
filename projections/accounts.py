"""The users of a tenant, and who a name is."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from domain import accounts, messages
from projections.table import Connection, Database, Key, Table

NAME = "accounts"
GENERATION = 1
CONTEXTS = ("accounts",)
SCHEMA = f"rm_{NAME}_{GENERATION}"


class Row(Struct, frozen=True):
    tenant: str
    id: str
    name: str
    name_key: str
    role: str
    created_at: datetime
    position: int
    enabled: bool = True
    password_changed_at: datetime | None = None


TABLE = Table("accounts", Row, ("tenant", "id"), ("(tenant, name_key)",))


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, _fold)


def _key(recorded: messages.Recorded) -> Key:
    return recorded.tenant, recorded.id


def _fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    event = recorded.event
    if isinstance(event, accounts.Created):
        return Row(
            tenant=recorded.tenant,
            id=recorded.id,
            name=event.name,
            name_key=event.name_key,
            role=event.role,
            created_at=recorded.recorded_at,
            position=recorded.position,
        )
    if isinstance(event, accounts.Erased):
        return None
    if row is None:
        raise LookupError(f"{recorded.topic} of a user that was never created")
    row = replace(row, position=recorded.position)
    match event:
        case accounts.RoleChanged():
            return replace(row, role=event.role)
        case accounts.PasswordChanged():
            return replace(row, password_changed_at=recorded.recorded_at)
        case accounts.SessionEnded():
            return row
        case accounts.Disabled():
            return replace(row, enabled=False)
        case accounts.Enabled():
            return replace(row, enabled=True)
        case accounts.Deleted():
            return None
        case _:
            raise LookupError(f"{recorded.topic} is not an event of a user")


async def get(database: Database, tenant: str, id: str) -> Row | None:
    row = await database.fetchrow(f"select * from {SCHEMA}.accounts where tenant = $1 and id = $2", tenant, id)
    return None if row is None else TABLE.parse(row)


async def by_name(database: Database, tenant: str, name_key: str) -> Row | None:
    """The user whose name has this keyed hash."""
    row = await database.fetchrow(
        f"select * from {SCHEMA}.accounts where tenant = $1 and name_key = $2", tenant, name_key
    )
    return None if row is None else TABLE.parse(row)


async def list_(database: Database, tenant: str) -> list[Row]:
    rows = await database.fetch(f"select * from {SCHEMA}.accounts where tenant = $1 order by created_at, id", tenant)
    return [TABLE.parse(row) for row in rows]
