"""Which device a token is, and the devices of a user."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct
from msgspec.structs import replace

from domain import devices, messages
from projections.table import Connection, Database, Key, Table

NAME = "devices"
GENERATION = 1
CONTEXTS = ("devices",)
SCHEMA = f"rm_{NAME}_{GENERATION}"


class Row(Struct, frozen=True):
    """`tokens` counts the tokens it has had."""

    tenant: str
    id: str
    owner: str
    name: str
    device_type: str
    client_version: str
    token_sha256: str
    created_at: datetime
    position: int
    os_info: str | None = None
    enabled: bool = True
    tokens: int = 1
    stale_at: datetime | None = None


TABLE = Table("devices", Row, ("tenant", "id"), ("(token_sha256)", "(tenant, owner, created_at)"))


def ddl(schema: str) -> str:
    return TABLE.ddl(schema)


async def apply(connection: Connection, schema: str, events: Sequence[messages.Recorded]) -> None:
    await TABLE.apply(connection, schema, events, _key, fold)


def _key(recorded: messages.Recorded) -> Key:
    return recorded.tenant, recorded.id


def fold(row: Row | None, recorded: messages.Recorded) -> Row | None:
    """A device as it is after an event, None once it is deleted. Raises LookupError for one that cannot come then."""
    event = recorded.event
    if isinstance(event, devices.Registered):
        return Row(
            tenant=recorded.tenant,
            id=recorded.id,
            owner=recorded.metadata.owner,
            name=event.name,
            device_type=event.device_type,
            client_version=event.client_version,
            token_sha256=event.token_sha256,
            created_at=recorded.recorded_at,
            position=recorded.position,
            os_info=event.os_info,
        )
    if row is None:
        raise LookupError(f"{recorded.topic} of a device that was never registered")
    row = replace(row, position=recorded.position)
    match event:
        case devices.Changed():
            return replace(row, name=event.name, enabled=event.enabled)
        case devices.TokenRegenerated():
            return replace(row, token_sha256=event.token_sha256, tokens=event.number)
        case devices.Stale():
            return replace(row, stale_at=recorded.recorded_at)
        case devices.CaughtUp():
            return row
        case devices.Deleted():
            return None
        case _:
            raise LookupError(f"{recorded.topic} is not an event of a device")


async def by_token(database: Database, token_sha256: str) -> Row | None:
    """The device whose token has this SHA-256 (hex)."""
    row = await database.fetchrow(f"select * from {SCHEMA}.devices where token_sha256 = $1", token_sha256)
    return None if row is None else TABLE.parse(row)


async def get(database: Database, tenant: str, owner: str, id: str) -> Row | None:
    row = await database.fetchrow(
        f"select * from {SCHEMA}.devices where tenant = $1 and owner = $2 and id = $3", tenant, owner, id
    )
    return None if row is None else TABLE.parse(row)


async def list_(database: Database, tenant: str, owner: str) -> list[Row]:
    """The devices of a user, the oldest first."""
    rows = await database.fetch(
        f"select * from {SCHEMA}.devices where tenant = $1 and owner = $2 order by created_at, id", tenant, owner
    )
    return [TABLE.parse(row) for row in rows]
